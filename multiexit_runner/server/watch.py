"""Whether a service's certificate still holds: its rows are compared with those that calibrated it.

Letters: M exits, E bins of confidence.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from multiexit_runner.drift import BINS, Drift, bins_of
from multiexit_runner.server.network import BY_POLICY, Left
from multiexit_runner.server.served import Served

LATE = 256
"""Rows whose exits an alarm tells."""

log = logging.getLogger("multiexit.server")


@dataclass(slots=True, eq=False)
class _Request:
    """A request on its way, and what came of its rows."""

    lefts: list[Left] = field(default_factory=list)
    done: bool = False


class Watch:
    """Voids a certificate when rows leave otherwise than at calibration.

    The test is `multiexit_runner.drift.Drift`. It takes rows in the order in which they are given
    to the network: in the order of their answers, early exits would come first.

    Args:
        served: the network and its certificate.
        alpha: the chance that the test ever gives an alarm though rows are drawn as at calibration;
            0 doesn't watch.
        turned: whether the policy is turned, which has no certificate then.
        random: for the test's ties.

    Attributes:
        alarm: when the certificate was voided and why; None while it wasn't.
        blind: why drift can't be watched; empty where it is.
        drift: the test.
    """

    def __init__(
        self,
        served: Served,
        alpha: float,
        turned: bool = False,
        random: np.random.Generator | None = None,
    ):
        self.alpha = alpha
        self.alarm: dict[str, Any] | None = None
        self._certified, self._problem = served.certificate is not None, served.problem
        self._line: deque[_Request] = deque()
        self._exits: deque[int] = deque(maxlen=LATE)
        counts_ME, self.blind = _counts(served.certificate, len(served.exits), alpha, turned)
        self._before_M = counts_ME.sum(1)
        self.drift = Drift(counts_ME, random)
        if self.blind and self._certified and alpha:
            log.warning("%s", self.blind)

    @property
    def valid(self) -> bool:
        """Whether there is a certificate that wasn't voided."""
        return self._certified and self.alarm is None

    @property
    def wealth(self) -> float:
        """What the test's bets on drift have made of 1; an alarm comes at 1/α."""
        return float(self.drift.wealth)

    @contextmanager
    def request(self) -> Iterator[list[Left]]:
        """A place in line for a request under the certificate; its rows are put into the list.

        Requests that get no answer have none.
        """
        request = _Request()
        self._line.append(request)
        try:
            yield request.lefts
        finally:
            request.done = True
            while self._line and self._line[0].done:
                self._look(self._line.popleft().lefts)

    def _look(self, lefts: Sequence[Left]) -> None:
        for left in lefts:
            if self.blind or self.alarm or left.why not in BY_POLICY or left.answer_C is None:
                continue
            self._exits.append(left.exit)
            self.drift.add(left.exit, int(bins_of(left.answer_C[None], self._problem)[0]))
            if self.drift.wealth >= 1 / self.alpha:
                self._void()

    def _void(self) -> None:
        late_M = np.bincount(np.array(self._exits), minlength=len(self._before_M))
        why = (
            f"rows leave otherwise than at calibration (alpha {self.alpha:g}): shares by exit were "
            f"{_said(self._before_M)}, of the last {len(self._exits)} rows {_said(late_M)}"
        )
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.alarm = {"since": since, "rows": self.drift.rows, "why": why}
        log.warning("the certificate is void after %d rows: %s", self.drift.rows, why)

    def info(self) -> dict[str, Any]:
        """What is to be said of it."""
        return {
            "watched": not self.blind,
            "why_not": self.blind or None,
            "alpha": self.alpha,
            "rows": self.drift.rows,
            "evidence": self.wealth,
            "alarm": self.alarm,
        }


def _counts(
    certificate: Mapping[str, Any] | None, exits: int, alpha: float, turned: bool
) -> tuple[np.ndarray, str]:
    """The calibration rows' counts [M, E], or none of them and why drift can't be watched."""
    none = np.zeros((exits, BINS), np.int64)
    if alpha == 0:
        return none, "drift_alpha is 0"
    if turned:
        return none, (
            "the policy of this service is turned: neither a certificate nor the bounds of its "
            "settings are watched for drift"
        )
    if certificate is None:
        return none, "the policy of this service has no certificate"
    counts = certificate.get("counts")
    if counts is None:
        return none, (
            "drift can't be watched: the certificate is of before it kept where its rows left; "
            "calibrate again"
        )
    counts_ME = np.asarray(counts)
    whole = counts_ME.shape == none.shape and counts_ME.dtype.kind == "i"
    if not whole or counts_ME.min() < 0 or not counts_ME.any():
        return none, f"drift can't be watched: the certificate's counts aren't {exits} × {BINS}"
    return counts_ME, ""


def _said(rows_M: np.ndarray) -> str:
    return ", ".join(f"{share:.1%}" for share in rows_M / rows_M.sum())
