"""What a command tells its user on stderr, one line each: its warnings, and how far it is."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PAUSE = 10.0
"""Seconds between two lines that say how far it is, at least."""


def now_and_then() -> Callable[[str], None]:
    """Says what it is told, where it said nothing for `PAUSE` seconds."""
    said = time.monotonic()

    def tell(note: str) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= PAUSE:
            from multiexit.data.own.notes import say

            say(note)
            said = now

    return tell


@contextmanager
def warnings_noted(worded: Callable[[str], str]) -> Iterator[None]:
    """Meanwhile a warning is said once, without Python's file and line.

    Args:
        worded: what is said for its text.
    """
    said = set()

    def show(message: Warning | str, *_: Any) -> None:
        from multiexit.data.own.notes import say

        note = worded(" ".join(str(message).split()))
        if note not in said:
            said.add(note)
            say(note)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
