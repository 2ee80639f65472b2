"""What a user is told of his data: what was guessed, drawn, cut and left out."""

import sys
from collections.abc import Callable

Notes = Callable[[str], None]
"""Is told a note."""


def say(note: str) -> None:
    """Print a note to stderr."""
    print(f"multiexit: {note}", file=sys.stderr)
