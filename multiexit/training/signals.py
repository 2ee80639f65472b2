"""SIGTERM, SIGHUP and Ctrl-C noted, so that what is under way can be finished and saved."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather

ECHO = 1.0
"""A second signal within this many seconds is an echo: launchers forward a signal that the whole
process group has already received."""


ASKING = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""The signals that ask a process to end; SIGHUP comes when a terminal or a connection closes."""


class NotedSignal:
    """The number of the signal that asked the process to end, or 0."""

    number = 0

    def agreed(self, accelerator: Accelerator, meeting: bool) -> int:
        """Give the same answer on every process.

        Args:
            accelerator: of the run's processes.
            meeting: whether they wait for one another here anyway, so that they may ask each other.

        Returns:
            The number of the signal that one of them got, or 0; 0 where several don't meet.
        """
        if accelerator.num_processes == 1:
            return self.number
        if not meeting:
            return 0
        number = torch.tensor([self.number], device=accelerator.device)
        return int(gather(number).max())  # type: ignore[union-attr]


@contextmanager
def noted(enabled: bool = True) -> Iterator[NotedSignal]:
    """Inside, the first such signal is only noted; a later one ends the process at once.

    A signal that is ignored, as Ctrl-C is in a shell's background and SIGHUP under nohup, still is.

    Args:
        enabled: if not, and outside the main thread (which alone may handle signals), nothing
            changes.
    """
    noted_signal, first = NotedSignal(), 0.0
    if not enabled or current_thread() is not main_thread():
        yield noted_signal
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if not noted_signal.number:
            noted_signal.number, first = number, now
        elif now - first > ECHO:
            end(number)

    handlers = {number: signal.getsignal(number) for number in ASKING}
    before = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield noted_signal
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end(number: int) -> NoReturn:
    """End the process as the signal would, with all that is to be closed closed.

    Raises:
        KeyboardInterrupt: for Ctrl-C.
        SystemExit: for the others, with 128 + number, as shells report it.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
