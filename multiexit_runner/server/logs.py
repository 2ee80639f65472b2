"""A service's log: lines of JSON on stderr, whoever says them."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("multiexit.server")


class Said(dict):
    """A line of the log in named values; elsewhere, as under Ray, it reads as JSON too."""

    def __str__(self) -> str:
        return json.dumps(self)


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, and its values or its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = record.msg if isinstance(record.msg, Said) else {"message": record.getMessage()}
        line = {"time": time, "level": record.levelname.lower(), **said}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextmanager
def json_lines(level: str) -> Iterator[None]:
    """Meanwhile all that is logged, and what Python warns of, is lines of JSON on stderr.

    Args:
        level: below which nothing is said, as `"info"`.
    """

    def warned(message: Warning | str, *_: Any) -> None:
        log.warning("%s", " ".join(str(message).split()))

    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warned
            yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
