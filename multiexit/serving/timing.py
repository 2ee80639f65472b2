"""Seconds on the clock, of calls run in turn."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def median_seconds(
    calls: Sequence[Callable[[], Any]], repeats: int, least: float = 0.0
) -> list[float]:
    """Median seconds of calls, run in turn after one warm-up of each.

    All so see the same machine. On a GPU the device is waited for around each reading.

    Args:
        calls: what is timed.
        repeats: readings of each.
        least: seconds that a reading takes at the least, about: a shorter call is repeated in it.

    Returns:
        Seconds of each call.

    Example:
        >>> from multiexit.serving.timing import median_seconds
        >>> short, long = median_seconds([lambda: sum(range(9)), lambda: sum(range(99_999))], 3)
        >>> short < long
        True
    """
    for call in calls:
        call()
    counts = [max(1, int(least / max(_reading(call), 1e-6))) if least else 1 for call in calls]
    readings: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, count, kept in zip(calls, counts, readings, strict=True):
            kept.append(_reading(call, count))
    return [statistics.median(kept) for kept in readings]


def _reading(call: Callable[[], Any], count: int = 1) -> float:
    """Seconds of one call, the mean of so many."""
    _wait()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    _wait()
    return (time.perf_counter() - begin) / count


def _wait() -> None:
    """Block until the device has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
