"""Ctrl-C while a command's libraries are still being imported ends it without a traceback.

Imported first of all, and by nothing but the package itself: torch takes seconds.
"""

import os
import signal
import sys
from typing import Any


def end(*_: Any) -> None:
    """End as Ctrl-C ends a program."""
    os._exit(128 + signal.SIGINT)


def begin() -> None:
    """Arm, where this process is a command and Ctrl-C is neither ignored nor someone else's."""
    words = sys.orig_argv
    module = "-m" in words and words[words.index("-m") + 1 :][:1] == ["multiexit.cli"]
    script = os.path.basename(sys.argv[0] if sys.argv else "").partition(".")[0] == "multiexit"
    if (module or script) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def done() -> None:
    """From here on Ctrl-C is a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


begin()
