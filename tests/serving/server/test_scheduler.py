"""Continuous depth batching, on a network of numbers and a clock that a test turns."""

import queue
import threading
from collections import deque
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiexit_runner.server.network import Outcome, Row
from multiexit_runner.server.scheduler import Full, Scheduler

M = 4


class Clock:
    """Seconds that pass where they are said to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Numbers:
    """Rows (length, depth, x): x ← 3x + exit at each exit; the row leaves at its depth."""

    num_exits = M

    def __init__(self, clock, fixed=0.001, per_row=0.002):
        self.clock, self.fixed, self.per_row = clock, fixed, per_row
        self.batches = []

    def length(self, item):
        return item[0]

    def first(self, items, policies):
        assert len({item[0] for item in items}) == 1
        return np.array(items, float)

    def run(self, exit, group):
        self.batches.append((exit, len(group)))
        self.clock.now += self.fixed + self.per_row * len(group)
        after = group.copy()
        after[:, 2] = 3 * after[:, 2] + exit
        broken = dict.fromkeys(np.flatnonzero(group[:, 1] == -exit - 1), "{row} broke")
        stop_B = (group[:, 1] <= exit) & (group[:, 1] >= 0) | (exit == M - 1)
        return Outcome(after[:, 2:], stop_B, broken, after)

    def take(self, group, keep_B):
        return group[keep_B]

    def merge(self, groups):
        return np.concatenate(groups)

    def shape_key(self, group):
        return group[0, 0]


def alone(item):
    """The exit and answer of one row by itself, and the exits that ran."""
    _, depth, x = item
    for exit in range(M):
        x = 3 * x + exit
        if depth == -exit - 1:
            return None, exit
        if exit == M - 1 or 0 <= depth <= exit:
            return x, exit
    raise AssertionError


ITEMS = st.tuples(st.sampled_from([8, 16]), st.integers(-2, M), st.integers(0, 50))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(ITEMS, min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.integers(0, 4), max_size=8),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_every_row_is_answered_once_as_it_would_be_alone(requests, steps, batch_size, max_wait):
    clock = Clock()
    network = Numbers(clock)
    scheduler = Scheduler(network, batch_size, max_wait, clock=clock)
    answered = {}
    for number, request in enumerate(requests):
        rows = []
        for place, item in enumerate(request):
            rows.append(
                Row(
                    item,
                    None,
                    lambda left, k=(number, place): answered.setdefault(k, []).append(left),
                    M - 1,
                )
            )
        scheduler.submit(rows)
        for _ in range(steps[number] if number < len(steps) else 0):
            scheduler.step()
    while scheduler.rows:
        scheduler.step()
    assert max(rows for _, rows in network.batches) <= batch_size
    for number, request in enumerate(requests):
        for place, item in enumerate(request):
            (left,) = answered[number, place]
            x, exit = alone(item)
            assert left.exit == exit
            assert left.ran == tuple(range(exit + 1))
            stopped = "last_exit" if exit == M - 1 else "policy"
            assert left.why == ("broken" if x is None else stopped)
            assert x is None or left.answer_C.tolist() == [x]


def test_rows_that_wait_at_one_exit_go_on_together():
    clock = Clock()
    network = Numbers(clock)
    scheduler = Scheduler(network, batch_size=8, max_wait=1.0, clock=clock)
    left = []
    for _ in range(3):  # one after another, each caught up by the next
        scheduler.submit([Row((8, M, 1), None, left.append, M - 1)])
        scheduler.step()
    while scheduler.rows:
        scheduler.step()
    assert network.batches == [(0, 1)] * 3 + [(exit, 3) for exit in range(1, M)]
    assert len(left) == 3


def test_a_row_that_never_leaves_is_answered_within_its_bound():
    """A hard row beside easy ones that come without end, as fast as they can be served."""
    clock = Clock()
    network = Numbers(clock, fixed=0.0, per_row=0.002)
    max_wait, max_rows = 0.05, 16
    scheduler = Scheduler(network, batch_size=4, max_wait=max_wait, max_rows=max_rows, clock=clock)
    hard, easy = [], []
    for turn in range(400):
        if turn % 40 == 0:
            scheduler.submit([Row((8, M, 0), None, hard.append, M - 1)])
        while scheduler.rows < max_rows - 1:  # a full queue, always
            scheduler.submit([Row((8, 0, 0), None, easy.append, M - 1)])
        scheduler.step()
    assert len(hard) >= 9
    bound = max_wait + max_rows * M * network.per_row
    assert max(left.seconds for left in hard) <= bound
    assert max(left.seconds for left in easy) <= bound
    # Without the rule it would wait for ever: new rows are always shallower.
    endless = Scheduler(network, batch_size=4, max_wait=float("inf"), clock=clock)
    starved = []
    endless.submit([Row((8, M, 0), None, starved.append, M - 1)])
    endless.step()
    for _ in range(400):
        endless.submit([Row((8, 0, 0), None, easy.append, M - 1)])
        endless.step()
    assert not starved


def test_a_budget_ends_with_the_answer_so_far():
    clock = Clock()
    scheduler = Scheduler(Numbers(clock, fixed=0.01, per_row=0.0), clock=clock)
    left = []
    scheduler.submit([Row((8, M, 1), None, left.append, M - 1)])
    while scheduler.rows:  # now the time of a segment is known
        scheduler.step()
    for budget in (0.001, 0.015, 0.025, 1.0):
        scheduler.submit([Row((8, M, 1), None, left.append, M - 1, budget)])
        while scheduler.rows:
            scheduler.step()
    assert [(each.exit, each.why) for each in left[1:]] == [
        (0, "budget"), (0, "budget"), (1, "budget"), (M - 1, "last_exit")
    ]  # fmt: skip
    assert [each.answer_C[0] for each in left[1:3]] == [3, 3]


def test_a_budget_that_ends_while_a_row_waits_ends_its_wait():
    clock = Clock()
    network = Numbers(clock, fixed=0.01, per_row=0.0)
    scheduler = Scheduler(network, max_wait=10.0, clock=clock)
    left = []
    scheduler.submit([Row((8, M, 1), None, left.append, M - 1, 0.05)])
    scheduler.step()
    clock.now += 1  # others were served
    scheduler.step()
    assert [(each.exit, each.why) for each in left] == [(0, "budget")]
    assert network.batches == [(0, 1)]


def test_rows_that_nobody_waits_for_are_not_run_further():
    clock = Clock()
    network = Numbers(clock)
    scheduler = Scheduler(network, clock=clock)
    left, gone = [], []
    scheduler.submit([Row((8, M, 1), None, left.append, M - 1, abandoned=lambda: bool(gone))])
    scheduler.step()
    gone.append(True)
    scheduler.step()
    assert left[0].why == "abandoned"
    assert scheduler.rows == 0
    assert network.batches == [(0, 1)]


def test_a_last_exit_of_its_own():
    clock = Clock()
    scheduler = Scheduler(Numbers(clock), clock=clock)
    left = []
    scheduler.submit([Row((8, M, 1), None, left.append, last) for last in (2, 0)])
    while scheduler.rows:
        scheduler.step()
    assert [(each.exit, each.why) for each in left] == [(0, "max_exit"), (2, "max_exit")]


def test_a_full_queue_takes_no_part_of_a_request():
    clock = Clock()
    scheduler = Scheduler(Numbers(clock), max_rows=3, clock=clock)
    left = []
    rows = [Row((8, 0, 1), None, left.append, M - 1) for _ in range(4)]
    scheduler.submit(rows[:2])
    with pytest.raises(Full, match="2 rows for a queue with 1 places"):
        scheduler.submit(rows[2:])
    assert scheduler.rows == 2
    scheduler.submit(rows[2:3])


@given(st.lists(ITEMS, min_size=1, max_size=9), st.lists(ITEMS, min_size=1, max_size=9))
def test_work_that_waits_is_reckoned_by_the_length_of_its_rows(before, waiting):
    """Of a network that takes so many seconds a token; what isn't text has no length."""
    clock = Clock()

    class Tokens(Numbers):
        def run(self, exit, group):
            clock.now += 0.01 * (group[:, 0].sum() or len(group))
            return Outcome(group[:, 2:], np.ones(len(group), bool), {}, group)

    for texts in (True, False):
        scheduler, told = Scheduler(Tokens(clock), clock=clock), []
        assert scheduler.backlog == 0
        for items in (before, waiting):
            rows = [(n if texts else 0, d, x) for n, d, x in items]
            scheduler.submit([Row(row, None, told.append, M - 1) for row in rows])
            while items is before and scheduler.rows:
                scheduler.step()
        wanted = 0.01 * sum(n if texts else 1 for n, *_ in waiting)
        assert scheduler.backlog == pytest.approx(wanted)
        while scheduler.rows:
            scheduler.step()
        assert scheduler.backlog == 0


def test_a_network_that_fails_fails_its_rows_alone():
    clock = Clock()
    network = Numbers(clock)
    scheduler = Scheduler(network, batch_size=1, clock=clock)
    left = []
    network.run, working = (lambda exit, group: 1 / 0), network.run
    scheduler.submit([Row((8, 0, 1), None, left.append, M - 1)])
    scheduler.step()
    network.run = working
    scheduler.submit([Row((8, 0, 1), None, left.append, M - 1)])
    scheduler.step()
    assert [each.why for each in left] == ["broken", "policy"]
    assert left[0].error == "exit 0 fails on {row}"


def test_a_row_that_fails_takes_no_other_with_it():
    network = Numbers(Clock())
    scheduler = Scheduler(network, clock=network.clock)
    left, run = {}, network.run

    def fragile(exit, group):
        assert not (exit == 1 and (group[:, 2] == 3 * 5).any())  # that began as 5
        return run(exit, group)

    network.run = fragile
    items = [(8, i % M, i) for i in range(1, 9)]
    scheduler.submit([Row(i, None, partial(left.__setitem__, i), M - 1) for i in items])
    while scheduler.rows:
        scheduler.step()
    assert {item[2] for item, each in left.items() if each.why == "broken"} == {5}
    for item, each in left.items():
        if item[2] != 5:
            assert (each.answer_C[0], each.exit) == alone(item)


def test_rows_without_a_length_never_begin():
    network = Numbers(Clock())
    scheduler, left = Scheduler(network), []
    rows = [Row((8, 1, 1), None, left.append, M - 1), Row((), None, left.append, M - 1)]
    with pytest.raises(IndexError):
        scheduler.submit(rows)
    scheduler.step()
    assert (scheduler.rows, left, network.batches) == (0, [], [])


@pytest.mark.parametrize("part", ["take", "merge", "shape_key"])
def test_whatever_fails_each_row_is_told_and_the_next_one_answered(part):
    network = Numbers(Clock())
    working = getattr(network, part)
    setattr(network, part, lambda *_: 1 / 0)
    scheduler = Scheduler(network, batch_size=4)
    left = queue.Queue()
    scheduler.submit([Row((8, i % M, i), None, left.put, M - 1) for i in range(9)])
    scheduler.start()
    told = [left.get(timeout=10) for _ in range(9)]
    assert part == "merge" or "broken" in {each.why for each in told}
    setattr(network, part, working)
    scheduler.submit([Row((8, 1, 1), None, left.put, M - 1)])
    assert left.get(timeout=10).why == "policy"
    assert scheduler.rows == 0
    scheduler.close()


def test_a_row_that_comes_while_a_failure_is_told_is_answered_once():
    network, left = Numbers(Clock()), []
    scheduler = Scheduler(network)
    comes = Row((8, 1, 1), None, left.append, M - 1)

    class Slow(deque):
        def clear(self):
            super().clear()
            thread.start()
            thread.join(0.2)

    thread = threading.Thread(target=scheduler.submit, args=([comes],))
    scheduler._new = Slow()
    scheduler._fail(ValueError("whatever"))
    thread.join()
    while scheduler.rows or scheduler._new:
        scheduler.step()
    assert [each.why for each in left] == ["policy"]


def test_what_has_come_is_answered_before_the_end():
    scheduler = Scheduler(Numbers(Clock()))
    left, all_left = [], threading.Event()

    def done(each):
        left.append(each)
        if len(left) == 50:
            all_left.set()

    scheduler.start()
    for i in range(50):
        scheduler.submit([Row((8, i % M, i), None, done, M - 1)])
    scheduler.close()
    assert all_left.is_set()
    with pytest.raises(Full):
        scheduler.submit([Row((8, 0, 1), None, done, M - 1)])
