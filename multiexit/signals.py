"""SIGTERM and Ctrl-C noted, so that what is under way can be finished and saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import NoReturn


class Noted:
    """What was asked: a signal's number, or 0."""

    number = 0


@contextmanager
def noted(wanted: bool = True) -> Iterator[Noted]:
    """Inside, the first SIGTERM or Ctrl-C is only noted; a second one ends the process at once.

    Args:
        wanted: if not, and outside the main thread (which alone may handle signals), nothing
            changes.
    """
    seen = Noted()
    if not wanted or current_thread() is not main_thread():
        yield seen
        return

    def note(number: int, frame: FrameType | None) -> None:
        if seen.number:
            end(number)
        seen.number = number

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end(number: int) -> NoReturn:
    """End as the signal would, with all that is to be closed closed.

    Raises:
        KeyboardInterrupt: for Ctrl-C.
        SystemExit: for the others, with 128 + number, as shells report it.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
