"""Calls timed in turn."""

import time

import pytest

from multiexit.serving import timing


def test_both_calls_run_in_turn():
    calls = []
    ours, theirs = timing.median_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 4)
    assert "".join(calls) == "ab" * 5
    assert ours >= 0
    assert theirs >= 0


def test_short_calls_are_repeated_within_a_reading(monkeypatch):
    """On a clock that each call puts forward, with binary fractions that add without rounding."""
    now, calls = [0.0], []

    def call(name, seconds):
        calls.append(name)
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    short, long = (lambda: call("s", 0.25)), (lambda: call("l", 2.0))
    assert timing.median_seconds([short, long], 2, least=1.0) == [0.25, 2.0]
    assert "".join(calls) == "slsl" + "ssssl" * 2


@pytest.mark.parametrize(("readings", "median"), [([1, 9, 2], 2), ([4, 1, 2, 1], 1.5)])
def test_the_median_of_the_readings(readings, median, monkeypatch):
    now, waits = [0.0], iter([100, *readings])  # the warm-up does not count

    def call():
        now[0] += next(waits)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert timing.median_seconds([call], len(readings)) == [median]
