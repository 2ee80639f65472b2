"""Continuous depth batching: rows join and leave a network at any of its exits.

One thread runs the network. Between two segments it looks again at who waits where: rows that have
just come begin at once, rows of different requests that wait at the same exit go on together, and
a row that leaves is answered then, whatever becomes of the others.

Letters: M exits, B batch rows, C classes.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic

import numpy as np

from multiexit_runner.server.network import AnyGroup, Left, Network, Row

log = logging.getLogger("multiexit.server")


class Full(Exception):
    """The queue has no place for these rows; `retry_after` is in seconds."""

    def __init__(self, rows: int, places: int, retry_after: float):
        super().__init__(f"{rows} rows for a queue with {places} places left")
        self.retry_after = retry_after


@dataclass(slots=True)
class _Group(Generic[AnyGroup]):
    """Rows that wait together; those that have just come have no tensors yet."""

    rows: list[Row]
    tensors: AnyGroup | None
    oldest: float = 0.0

    def __post_init__(self) -> None:
        self.oldest = min(row.came for row in self.rows)


class Scheduler(Generic[AnyGroup]):
    """Runs rows of many requests through one network.

    What is run next, between two segments:

    1. the exit where the oldest row waits, if it came more than `max_wait` ago;
    2. else the deepest exit where `batch_size` rows wait;
    3. else the shallowest one, so that its rows catch up with those ahead.

    Nothing waits while the thread is idle. A row that never leaves early is the oldest at last, and
    from then on goes first: with at most Q rows in the queue and t seconds a row for the whole
    network, its answer comes within `max_wait` + Q·t.

    Args:
        network: what to run.
        batch_size: rows that go through a segment together, at most.
        max_wait: seconds; 0 serves the oldest first, always.
        max_rows: how many rows may be on their way.
        clock: in seconds, for tests.
        on_run: called after each segment with the exit, the rows and the seconds.
    """

    def __init__(
        self,
        network: Network[AnyGroup],
        batch_size: int = 32,
        max_wait: float = 0.0,
        max_rows: int = 1024,
        clock: Callable[[], float] = time.perf_counter,
        on_run: Callable[[int, int, float], None] = lambda exit, rows, seconds: None,
    ):
        self.network, self.batch_size, self.max_wait = network, batch_size, max_wait
        self.max_rows = max_rows
        self._clock, self._on_run = clock, on_run
        self._new: deque[Row] = deque()
        self._waiting: dict[tuple[int, Hashable], deque[_Group[AnyGroup]]] = {}
        self._on_the_way: set[Row] = set()
        self._took = 0.0, 0.0
        self._segment_seconds = [0.0] * network.num_exits
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def rows(self) -> int:
        """How many rows are on their way."""
        return len(self._on_the_way)

    @property
    def backlog(self) -> float:
        """Seconds that the rows on their way take, if each takes what rows have taken lately, by
        its length."""
        with self._wake:
            waiting = sum(map(_price, self._on_the_way))
        seconds, priced = self._took
        return waiting * seconds / priced if priced else 0.0

    def start(self, before: Callable[[], None] = lambda: None) -> None:
        """Begin to run, in a thread of its own; once more after `close`, too.

        Args:
            before: is run in that thread first, and is done when this returns.
        """
        self._closing, begun = False, threading.Event()

        def run() -> None:
            try:
                before()
            except Exception as error:  # rows may do where it fails
                log.warning("what comes before the first row failed", exc_info=error)
            begun.set()
            self._serve()

        self._thread = threading.Thread(target=run, name="multiexit-scheduler", daemon=True)
        self._thread.start()
        begun.wait()

    def close(self) -> None:
        """Answer all rows that have come, and end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, rows: Sequence[Row]) -> None:
        """Let rows begin: all of them, or none.

        Raises:
            Full: there is no place for all of them.
        """
        with self._wake:
            places = self.max_rows - self.rows
            if len(rows) > places or self._closing:
                raise Full(len(rows), 0 if self._closing else places, self.backlog)
            now = self._clock()
            for row in rows:
                row.came = now
                row.length = self.network.length(row.item)
            self._on_the_way.update(rows)
            self._new.extend(rows)
            self._wake.notify()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not (self._on_the_way or self._closing):
                    self._wake.wait()
                if not self._on_the_way:
                    return
            try:
                self.step()
            except Exception as error:  # nobody is left waiting, whatever fails
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Tell all rows, and begin anew."""
        log.error("the scheduler failed", exc_info=error)
        with self._wake:
            self._new.clear()
            rows = [*self._on_the_way]
        self._waiting.clear()
        for row in rows:
            with suppress(Exception):
                self._leave(row, None, len(row.ran), "broken", f"{{row}}: {error}")

    def step(self) -> None:
        """Run one segment, if any row waits."""
        self._begin()
        place = self._next(self._clock())
        if place is None:
            return
        groups = self._taken(place)
        if groups:
            self._run(place[0], groups)

    def _run(self, exit: int, groups: Sequence[_Group[AnyGroup]]) -> None:
        """Run a segment on rows, those that stop leave.

        Of rows that fail together each is run alone: none suffers for another one.
        """
        rows = [row for group in groups for row in group.rows]
        start = self._clock()
        try:
            outcome = self.network.run(exit, self._together(groups))
        except Exception as error:  # a network may fail in any way
            if len(rows) > 1:
                for alone in [each for group in groups for each in self._apart(group)]:
                    self._run(exit, [alone])
                return
            log.error("exit %d failed on a row", exit, exc_info=error)
            return self._leave(rows[0], None, exit, "broken", f"exit {exit} fails on {{row}}")
        now = self._clock()
        self._measure(exit, rows, now - start)
        stays_B = np.zeros(len(rows), bool)
        for place, row in enumerate(rows):
            answer_C = outcome.answer_BC[place]
            if place in outcome.broken:
                self._leave(row, None, exit, "broken", outcome.broken[place])
            elif exit == self.network.num_exits - 1:
                self._leave(row, answer_C, exit, "last_exit")
            elif outcome.stop_B[place]:
                self._leave(row, answer_C, exit, "policy")
            elif exit >= row.max_exit:
                self._leave(row, answer_C, exit, "max_exit")
            elif self._is_spent(row, now, exit + 1):
                self._leave(row, answer_C, exit, "budget")
            else:
                stays_B[place] = True
                row.so_far = None if row.budget is None else (answer_C, exit)
        if stays_B.any():
            after = self._kept(_Group(rows, outcome.after), stays_B)
            self._wait(exit + 1, self.network.shape_key(outcome.after), after)

    def _begin(self) -> None:
        """Rows that have come wait for the first exit, with those of their length."""
        while self._new:
            row = self._new.popleft()
            self._wait(0, row.length, _Group([row], None))

    def _wait(self, exit: int, key: Hashable, group: _Group[AnyGroup]) -> None:
        self._waiting.setdefault((exit, key), deque()).append(group)

    def _next(self, now: float) -> tuple[int, Hashable] | None:
        """The exit that is run next, and the shape of its rows."""

        def rank(place: tuple[int, Hashable]) -> tuple[float, float, float]:
            exit, groups = place[0], self._waiting[place]
            oldest = min(group.oldest for group in groups)
            if now - oldest >= self.max_wait:
                return (0, oldest, 0)
            if sum(len(group.rows) for group in groups) >= self.batch_size:
                return (1, -exit, oldest)
            return (2, exit, oldest)

        return min(self._waiting, key=rank, default=None)

    def _taken(self, place: tuple[int, Hashable]) -> list[_Group[AnyGroup]]:
        """The oldest rows that wait there, a batch at most, but those nobody waits for."""
        groups, chosen, count = self._waiting[place], [], 0
        while groups and (not chosen or count + len(groups[0].rows) <= self.batch_size):
            chosen.append(groups.popleft())
            count += len(chosen[-1].rows)
        if not groups:
            del self._waiting[place]
        now = self._clock()
        left = [self._without_left(group, now) for group in chosen]
        return [group for group in left if group is not None]

    def _together(self, groups: Sequence[_Group[AnyGroup]]) -> AnyGroup:
        """The rows of groups that wait at one exit, as the network takes them."""
        tensors = [group.tensors for group in groups if group.tensors is not None]
        if tensors:
            return tensors[0] if len(tensors) == 1 else self.network.merge(tensors)
        rows = [row for group in groups for row in group.rows]
        return self.network.first([row.item for row in rows], [row.policy for row in rows])

    def _apart(self, group: _Group[AnyGroup]) -> list[_Group[AnyGroup]]:
        places = np.arange(len(group.rows))
        return [self._kept(group, places == place) for place in places]

    def _without_left(self, group: _Group[AnyGroup], now: float) -> _Group[AnyGroup] | None:
        """The rows that still wait for an answer."""
        stays_B = np.ones(len(group.rows), bool)
        for place, row in enumerate(group.rows):
            if row.abandoned():
                self._leave(row, None, len(row.ran) - 1, "abandoned")
            elif row.so_far is not None and self._is_spent(row, now, len(row.ran)):
                self._leave(row, *row.so_far, "budget")
            else:
                continue
            stays_B[place] = False
        return self._kept(group, stays_B) if stays_B.any() else None

    def _kept(self, group: _Group[AnyGroup], keep_B: np.ndarray) -> _Group[AnyGroup]:
        if keep_B.all():
            return group
        rows = [row for row, keep in zip(group.rows, keep_B, strict=True) if keep]
        tensors = None if group.tensors is None else self.network.take(group.tensors, keep_B)
        return _Group(rows, tensors)

    def _is_spent(self, row: Row, now: float, exit: int) -> bool:
        """Whether a row's budget ends before it would leave an exit."""
        return row.budget is not None and now - row.came + self._segment_seconds[exit] > row.budget

    def _measure(self, exit: int, rows: Sequence[Row], seconds: float) -> None:
        """Keep running means, of the time of a segment and of a row."""
        old = self._segment_seconds[exit]
        self._segment_seconds[exit] = 0.9 * old + 0.1 * seconds if old else seconds
        for row in rows:
            row.ran.append(exit)
            row.seconds += seconds / len(rows)
        self._on_run(exit, len(rows), seconds)

    def _leave(
        self, row: Row, answer_C: np.ndarray | None, exit: int, why: str, error: str = ""
    ) -> None:
        seconds, priced = self._took
        self._took = 0.99 * seconds + row.seconds, 0.99 * priced + _price(row)
        with self._wake:
            self._on_the_way.discard(row)
        left = Left(
            answer_C, exit, tuple(row.ran), why, error, self._clock() - row.came, row.seconds
        )
        row.done(left)


def _price(row: Row) -> int:
    """A text costs about as much as its tokens, any other input as each."""
    return row.length or 1
