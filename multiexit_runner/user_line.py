"""Where a warning points: the line of the user's that led to it."""

import sys

LIBRARIES = ("multiexit", "multiexit_runner", "torch", "functools")
"""Packages whose lines are not the user's."""


def user_level() -> int:
    """The `stacklevel` by which a warning of the caller names the user's line, in no library."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_library(frame.f_globals.get("__name__")):
        frame, level = frame.f_back, level + 1
    return level


def _is_library(module: object) -> bool:
    return str(module).partition(".")[0] in LIBRARIES
