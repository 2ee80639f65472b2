"""Ctrl-C while a command's libraries are still being imported ends it without a traceback.

Imported first of all, and by nothing but the package itself: torch takes seconds.
"""

import os
import signal
import sys
from typing import Any


def exit_as_interrupted(*_: Any) -> None:
    """End as Ctrl-C ends a program."""
    os._exit(128 + signal.SIGINT)


def arm() -> None:
    """Arm, where this process is a command and Ctrl-C is neither ignored nor someone else's."""
    words = sys.orig_argv
    is_module = "-m" in words and words[words.index("-m") + 1 :][:1] == ["multiexit.cli"]
    is_script = os.path.basename(sys.argv[0] if sys.argv else "").partition(".")[0] == "multiexit"
    if (is_module or is_script) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_as_interrupted)


def disarm() -> None:
    """Make Ctrl-C a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is exit_as_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


arm()
