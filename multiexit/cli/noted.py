"""Warnings of a command, as the notes that they are to its user: one line each on stderr."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
