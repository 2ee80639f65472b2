"""Whether what was calibrated still holds: a service's rows are compared with those that did it.

Letters: M exits, E bins of confidence; S settings of the policy.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from multiexit_runner.drift import BINS, Drift, bins_of, floor_of, unpacked
from multiexit_runner.server.dial import Setting
from multiexit_runner.server.network import BY_POLICY, Left
from multiexit_runner.server.served import Served

LATE = 256
"""Rows whose exits an alarm tells."""

log = logging.getLogger("multiexit.server")


@dataclass(slots=True, eq=False)
class _Request:
    """A request on its way, by which setting, and what came of its rows."""

    place: int
    lefts: list[Left] = field(default_factory=list)
    done: bool = False


class _Test:
    """The rows of one policy against those that calibrated it.

    Args:
        said: the policy, as it is typed.
        counts_ME: of calibration rows.
        tests: S, of which this is one.
        random: for ties.
    """

    def __init__(
        self, said: str, counts_ME: np.ndarray, tests: int, random: np.random.Generator | None
    ):
        self.said, self._before_ME = said, counts_ME
        self.drift, self._tests = Drift(counts_ME, random), tests
        self.late: deque[tuple[int, int]] = deque(maxlen=LATE)

    def add(self, exit: int, bin: int) -> None:
        """Look at one more row."""
        self.late.append((exit, bin))
        self.drift.add(exit, bin)

    @property
    def evidence(self) -> float:
        """What its bets have made of 1/S."""
        return float(self.drift.wealth) / self._tests

    @property
    def why(self) -> str:
        """Where rows left, and how sure half of them were, at calibration and of late."""
        late_ME = np.zeros_like(self._before_ME)
        np.add.at(late_ME, tuple(np.array(self.late).T), 1)
        before, late = map(_said, (self._before_ME, late_ME))
        return (
            f"by {self.said} shares by exit were {before}, of the last {len(self.late)} rows {late}"
        )


class Watch:
    """Voids a certificate, or a calibration table, when rows leave otherwise than at calibration.

    The test is `multiexit_runner.drift.Drift`. It takes rows in the order in which they are given
    to the network: in the order of their answers, early exits would come first.

    Where a policy is turned among S settings, each has a test of its own, at the level α/S. Which
    setting a row gets is decided by what came before it. So the rows of one setting are
    exchangeable with the calibration rows where all rows are (predictable sampling), each test
    alone gives an alarm with a chance of at most α/S, and any of them with at most α. The mean of
    the tests' wealths would give alarms sooner, but isn't a martingale: they share calibration
    rows, so that each tells what the others are about to see.

    Reference: Kallenberg, "Spreading and predictable sampling in exchangeable sequences and
    processes", Annals of Probability, 1988.

    Args:
        served: the network, and its certificate or its calibration table.
        alpha: the chance that there ever is an alarm though rows are drawn as at calibration; 0
            doesn't watch.
        settings: among which the policy is turned, which has no certificate then; none where it
            isn't.
        random: for the tests' ties.

    Attributes:
        alarm: since when, after how many rows and why nothing holds any more; None while it does.
        blind: why drift can't be watched; empty where it is.
        tests: of each setting, or of the certificate; none where drift isn't watched.
    """

    def __init__(
        self,
        served: Served,
        alpha: float,
        settings: Sequence[Setting] = (),
        random: np.random.Generator | None = None,
    ):
        self.alpha = alpha
        self.alarm: dict[str, Any] | None = None
        self._certified, self._problem = served.certificate is not None, served.problem
        self._turned = bool(settings)
        self._line: deque[_Request] = deque()
        counts, self.blind = _counts(served, settings) if alpha else ([], "drift_alpha is 0")
        if self.blind and alpha and (self._certified or self._turned):
            log.warning("%s", self.blind)
        self.tests = [_Test(*each, len(counts), random) for each in counts]

    @property
    def certified(self) -> bool:
        """Whether there is a certificate that wasn't voided."""
        return self._certified and self.alarm is None

    @property
    def evidence(self) -> float:
        """What the bets on drift of one test have made of 1/S, the most; an alarm comes at 1/α."""
        return max((test.evidence for test in self.tests), default=1.0)

    @contextmanager
    def request(self, place: int = 0) -> Iterator[list[Left]]:
        """A place in line for a request that goes by the service's policy alone; its rows are put
        into the list.

        Requests that get no answer have none.

        Args:
            place: of its setting.
        """
        request = _Request(place)
        self._line.append(request)
        try:
            yield request.lefts
        finally:
            request.done = True
            while self._line and self._line[0].done:
                self._look(self._line.popleft())

    def _look(self, request: _Request) -> None:
        for left in request.lefts:
            if self.blind or self.alarm or left.why not in BY_POLICY or left.answer_C is None:
                continue
            test = self.tests[request.place]
            test.add(left.exit, int(bins_of(left.answer_C[None], self._problem)[0]))
            if test.evidence >= 1 / self.alpha:
                self._void(test)

    def _void(self, test: _Test) -> None:
        why = f"rows leave otherwise than at calibration (alpha {self.alpha:g}): {test.why}"
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.alarm = {"since": since, "rows": self._rows, "why": why}
        void = "the certificate is void"
        if self._turned:
            void = (
                "the policy is turned as before, but what the calibration table expects is void, "
                "and so is what min_score and max_loss bound,"
            )
        log.warning("%s after %d rows: %s", void, self._rows, why)

    @property
    def _rows(self) -> int:
        return sum(test.drift.rows for test in self.tests)

    def info(self) -> dict[str, Any]:
        """What is to be said of it."""
        return {
            "watched": not self.blind,
            "why_not": self.blind or None,
            "alpha": self.alpha,
            "rows": self._rows,
            "evidence": self.evidence,
            "alarm": self.alarm,
        }


def _counts(
    served: Served, settings: Sequence[Setting]
) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Policies with the counts [M, E] of their calibration rows, or none and why there are none."""
    exits, counts = len(served.exits), []
    for setting in settings:
        assert served.calibration is not None
        counts_ME = unpacked(setting.counts, exits, served.calibration["rows"])
        if counts_ME is None:
            return [], (
                "drift can't be watched: the calibration table doesn't say where its rows left, as "
                "one of before doesn't, nor a float model's in int8 or bfloat16; calibrate again"
            )
        counts.append((setting.said, counts_ME))
    if settings:
        return counts, ""
    if served.certificate is None:
        return [], "the policy of this service has no certificate"
    listed = served.certificate.get("counts")
    if listed is None:
        return [], (
            "drift can't be watched: the certificate is of before it kept where its rows left; "
            "calibrate again"
        )
    counts_ME = np.asarray(listed)
    whole = counts_ME.shape == (exits, BINS) and counts_ME.dtype.kind == "i"
    if not whole or counts_ME.min() < 0 or not counts_ME.any():
        return [], f"drift can't be watched: the certificate's counts aren't {exits} × {BINS}"
    return [(served.policy, counts_ME)], ""


def _said(rows_ME: np.ndarray) -> str:
    """The shares of rows by exit, and how sure half of them were where they left."""
    shares = ", ".join(f"{share:.1%}" for share in rows_ME.sum(1) / rows_ME.sum())
    up_to_E = rows_ME.sum(0).cumsum()
    sure = floor_of(int((2 * up_to_E < up_to_E[-1]).sum()))
    return shares + (f" (half of them at least {sure:.3g} sure)" if sure else "")
