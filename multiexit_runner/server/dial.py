"""Which setting of the calibration table serves a request, as the load changes.

Letters: M exits; S settings, from the slowest to the fastest; K sizes of runs, by doubling.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

SLOWEST_UNTIL, FASTEST_FROM, SHED_FROM = 0.5, 0.75, 0.9
"""Shares of the target, of the time that a request is expected to take."""

REMEMBERED, SECONDS = 256, 2.0
"""How many requests are remembered, and how long."""

FORGET = 0.9
"""What stays, at each run of a segment, of its runs before."""

SIZES = 8
"""Sizes of runs that are told apart: 1 row, 2 or 3, 4 to 7, …, 128 and more."""

STALE = 500
"""Runs of other segments after which a segment's own are forgotten: one that was slow once, so that
no row comes there any more, is not slow for ever."""


class Setting(NamedTuple):
    """What one setting of the policy gives, by the calibration table.

    Args:
        policy: as the network takes it.
        said: as it is typed.
        score: expected.
        loss_bound: in 0..1, if there is one.
        mean_layers: that are run per row.
        shares_M: of the rows that leave at each exit.
        counts: of the calibration rows, as `multiexit_runner.drift.unpacked` reads them; None where
            they weren't counted.
    """

    policy: Any
    said: str
    score: float
    loss_bound: float | None
    mean_layers: float
    shares_M: Sequence[float]
    counts: str | None = None

    def info(self, holds: bool = True) -> dict[str, Any]:
        """What is to be said of it: without numbers, where the table no longer holds."""
        given = {
            "score": self.score,
            "loss_bound": self.loss_bound,
            "mean_layers": self.mean_layers,
        }
        return {"policy": self.said, **(given if holds else dict.fromkeys(given))}


class Entry(NamedTuple):
    """A request whose rows began.

    Args:
        place: of their setting.
        own: they have a policy of their own, and follow none.
        expected: seconds up to their answers, as reckoned.
        size: of the request, among those that are told apart.
    """

    place: int
    own: bool
    expected: float = 0.0
    size: int = 0


class Shed(Exception):
    """No setting answers a request in time; `retry_after` is in seconds."""

    def __init__(self, expected: float, target: float):
        allowed = SHED_FROM * target
        super().__init__(
            f"this would take {1000 * expected:.0f} ms now, more than the {1000 * allowed:g} ms "
            f"that are allowed, {SHED_FROM:.0%} of the service's target"
        )
        self.retry_after = max(0.0, expected - allowed)


class Dial(Protocol):
    """Chooses among settings.

    Attributes:
        settings: from the slowest to the fastest.
    """

    settings: Sequence[Setting]

    @property
    def place(self) -> int:
        """The setting in force, counted from the slowest."""
        ...

    def enter(self, rows: int, own: int | None = None) -> Entry:
        """Let a request's rows begin.

        Args:
            rows: how many.
            own: the setting that they cost as much as, where they have a policy of their own.

        Raises:
            Shed: they can't be answered in time.
        """
        ...

    def ran(self, exit: int, rows: int, seconds: float) -> None:
        """A segment was run: called from any thread."""
        ...

    def left(self, entry: Entry, layers: int | None, seconds: float = 0.0) -> None:
        """A row left after so many layers and seconds of the network; None without an answer."""
        ...

    def answered(self, entry: Entry, seconds: float) -> None:
        """A request was answered, so many seconds after it came."""
        ...


class LoadDial:
    """Keeps the time of requests below a target: as slow as the rows on their way allow.

    A request of R rows that enters at setting s is expected to be answered after

        L_s = Σ_r t(r) + max(R·t_s(R), d_s)

    with t(r) the network's time for a row r on its way, by its setting and the rows of its request,
    so that the sum is the work w before it; t_s(R) that for one of R rows; and d_s the time of a
    batch up to the exit where 95 % have left. A segment's time for a row is its mean over the last
    runs, or that in runs of as many rows as are left there of its request, or of fewer, where one
    is lower: rows that come together cost less than as many that come alone. Let e be what the
    last requests took beyond that. A setting is allowed where L_s and 95 % of e are at most
    target · (0.5 + 0.25·s/(S−1)) together. The slowest such is taken, else the fastest, and where
    that one's L_s and the median of e are above 0.9 · target the request is shed: a machine that
    stands still now and then makes settings faster, but is no reason to shed, which makes work less
    and nothing else.

    w changes by λ·t(w) − 1 per second, at λ new rows per second. As t falls where w rises, w
    settles where λ·t(w) = 1, without swinging around it, and follows a jump of λ within the target.

    Args:
        settings: that are allowed, from the slowest to the fastest.
        target: in seconds, for 95 % of requests.
        clock: in seconds.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        target: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.settings, self.target = settings, target
        self._clock = clock
        shares_SM = np.array([setting.shares_M for setting in settings])
        S, M = shares_SM.shape
        left_SM = shares_SM.cumsum(1)
        self._reach_SM = np.hstack([np.ones((S, 1)), 1 - left_SM[:, :-1]]).clip(0, 1)
        stay_SKM = np.arange(SIZES)[:, None] + np.log2(self._reach_SM.clip(1e-9))[:, None]
        self._size_SKM = stay_SKM.clip(0).astype(int)
        self._deepest_S = (left_SM < 0.95).sum(1).clip(max=M - 1)
        self._allowed_S = target * np.linspace(SLOWEST_UNTIL, FASTEST_FROM, S)
        self._rows_SK = np.zeros((S, SIZES), int)
        self._runs_M = [np.zeros(3)] * M
        self._sized_MK2 = np.zeros((M, SIZES, 2))
        self._last_M, self._runs = [0] * M, 0
        self._took: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    @property
    def place(self) -> int:
        """The setting of a request of one row, were it to come now."""
        return self._fit(1)[0]

    def enter(self, rows: int, own: int | None = None) -> Entry:
        """Let a request's rows begin.

        Args:
            rows: how many.
            own: the setting that they cost as much as, where they have a policy of their own.

        Raises:
            Shed: they would be answered too late, and others are on their way.
        """
        place, reckoned_S, usual = self._fit(rows)
        place = place if own is None else own
        reckoned = float(reckoned_S[place])
        expected = reckoned + usual
        if self._rows_SK.any() and expected > SHED_FROM * self.target:
            raise Shed(expected, self.target)
        self._rows_SK[place, _size(rows)] += rows
        return Entry(place, own is not None, reckoned, _size(rows))

    def ran(self, exit: int, rows: int, seconds: float) -> None:
        """A segment was run."""
        kept = FORGET * self._fresh(exit)
        self._runs_M[exit] = kept * self._runs_M[exit] + (seconds, rows, 1)
        sized_K2 = self._sized_MK2[exit]
        sized_K2[_size(rows)] = FORGET * sized_K2[_size(rows)] + (seconds, rows)
        self._runs += 1
        self._last_M[exit] = self._runs

    def left(self, entry: Entry, layers: int | None = None, seconds: float = 0.0) -> None:
        """A row left, wherever."""
        self._rows_SK[entry.place, entry.size] -= 1

    def answered(self, entry: Entry, seconds: float) -> None:
        """A request was answered, so many seconds after it came."""
        self._took.append((self._clock(), seconds - entry.expected))

    def _fit(self, rows: int) -> tuple[int, np.ndarray, float]:
        """The setting for a request, and in seconds what is reckoned of each [S], and the median of
        what the last requests took beyond that."""
        row_SK, through_S = self._seconds()
        alone_S = np.maximum(rows * row_SK[:, _size(rows)], through_S)
        reckoned_S = (self._rows_SK * row_SK).sum() + alone_S
        usual, late = self._beyond()
        fits_S = reckoned_S + late <= self._allowed_S
        fits_S[-1] = True
        return int(fits_S.argmax()), reckoned_S, usual

    def _seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """The network's time for a row of requests of each size, and a batch's time on its way, by
        setting."""
        kept = [self._fresh(exit) * runs for exit, runs in enumerate(self._runs_M)]
        seconds_M, rows_M, runs_M = np.array(kept).T
        sums_MK, counts_MK = np.moveaxis(self._sized_MK2, 2, 0)
        sized_MK = np.divide(sums_MK, counts_MK, np.full_like(sums_MK, np.inf), where=counts_MK > 0)
        row_MK = np.minimum.accumulate(sized_MK, 1).clip(max=_filled(seconds_M, rows_M)[:, None])
        run_M = _filled(seconds_M, runs_M)
        row_SKM = row_MK[np.arange(len(row_MK)), self._size_SKM]
        return (self._reach_SM[:, None] * row_SKM).sum(2), run_M.cumsum()[self._deepest_S]

    def _fresh(self, exit: int) -> bool:
        return self._runs - self._last_M[exit] < STALE

    def _beyond(self) -> tuple[float, float]:
        """What half and 95 % of the last requests took beyond what was reckoned, in seconds."""
        since = self._clock() - SECONDS
        beyond = [seconds for when, seconds in self._took if when >= since]
        half, most = np.quantile(beyond or [0.0], (0.5, 0.95)).clip(0).tolist()
        return half, most


def _size(rows: int) -> int:
    return min(rows.bit_length() - 1, SIZES - 1)


def _filled(sum_M: np.ndarray, count_M: np.ndarray) -> np.ndarray:
    """Means; of an exit that never ran, or long ago, that of the one before."""
    mean_M, last = np.zeros(len(sum_M)), 0.0
    for exit, (total, count) in enumerate(zip(sum_M, count_M, strict=True)):
        mean_M[exit] = last = total / count if count else last
    return mean_M
