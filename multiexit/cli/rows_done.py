"""How many rows are answered, told on stderr: a bar on a terminal, lines elsewhere."""

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from tqdm import tqdm

QUICK, PAUSE = 2.0, 10.0
"""Seconds before a bar comes, and between lines: of what is over before nothing is told."""


class RowsDone:
    """Counts rows while it is open, and tells how many there are and how long it takes still.

    Args:
        total: rows there are; None where that isn't known.
        before: rows that an earlier command answered.
    """

    def __init__(self, total: int | None, before: int = 0):
        self.total, self.before, self.rows = total, before, before
        self._bar = tqdm(
            total=total, initial=before, desc="predict", unit=" rows", disable=None, delay=QUICK
        )
        self._began = self._said = time.monotonic()

    def add(self, rows: int) -> None:
        """So many more are answered."""
        self.rows += rows
        self._bar.update(rows)
        now = time.monotonic()
        if not self._bar.disable or now - self._said < PAUSE or self.rows == self.total:
            return
        speed = (self.rows - self.before) / (now - self._began)
        parts = [f"{self.rows} rows", f"{speed:.0f} rows/s"]
        if self.total is not None:
            left = timedelta(seconds=round((self.total - self.rows) / speed))
            parts = [f"{self.rows}/{self.total} rows", parts[1], f"{left} left"]
        print(f"predict: {', '.join(parts)}", file=sys.stderr)
        self._said = now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
