"""Seconds on the clock, of calls run in turn."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def paired_times(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int = 5
) -> tuple[float, float]:
    """Median seconds of two calls, run in turn after one warm-up of each.

    On a GPU the device is waited for before each reading.

    Args:
        first, second: the calls.
        repeats: readings of each.

    Returns:
        Seconds of the first, and of the second.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for round in range(repeats + 1):
        for call, readings in zip((first, second), times, strict=True):
            wait()
            begin = time.perf_counter()
            call()
            wait()
            if round > 0:
                readings.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def wait() -> None:
    """Block until the device has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ms(repeats: int, call: Callable[[], Any]) -> float:
    """Median milliseconds of a call; short calls are repeated within each reading.

    Args:
        repeats: readings.
        call: what is timed, after one warm-up.
    """
    call()
    wait()
    begin = time.perf_counter()
    call()
    wait()
    count = max(1, min(100, int(0.002 / max(time.perf_counter() - begin, 1e-6))))
    readings = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        readings.append((time.perf_counter() - begin) / count)
    return 1e3 * statistics.median(readings)
