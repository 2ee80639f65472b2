"""Whether rows still leave as they did at calibration: a test that may be looked at at any time.

Letters: M exits, E bins of confidence, K = M·E places where a row may leave, B rows, C classes,
J bets.
"""

import math
import re
from typing import Any

import numpy as np

BINS = 40
"""E. Bin e holds confidences c with 1 − exp(−e/4) ≤ c < 1 − exp(−(e + 1)/4); the last, all above.
They are fixed beforehand: bins chosen by calibration rows would favour these rows."""

DECILES = 10

COUNTS = 'null, or the calibration rows by exit and bin, as "36:120 76:9", as many as it has rows'
"""What `unpacked` wants, in words."""

_COUNT = re.compile("([0-9]{1,6}):([0-9]{1,16})")


def packed(counts_ME: Any) -> str:
    """Counts as a calibration table keeps them: `k:n` for n rows in bin e of exit m, k = E·m + e.

    >>> packed(np.eye(2, BINS, dtype=int))
    '0:1 41:1'
    """
    counts_K = np.asarray(counts_ME).ravel()
    return " ".join(f"{k}:{counts_K[k]}" for k in np.flatnonzero(counts_K))


def unpacked(counts: Any, exits: int, rows: int) -> np.ndarray | None:
    """The counts [M, E] that `packed` gave; None of anything else.

    Args:
        counts: as they were read.
        exits: M.
        rows: that were counted.
    """
    counts_K = np.zeros(exits * BINS, np.int64)
    for each in counts.split(" ") if isinstance(counts, str) else ():
        match = _COUNT.fullmatch(each)
        if match is None or int(match[1]) >= len(counts_K):
            return None
        counts_K[int(match[1])] = int(match[2])
    right = sum(counts_K.tolist()) == rows and packed(counts_K) == counts
    return counts_K.reshape(exits, BINS) if right else None


def bins_of(logits_BC: np.ndarray, problem: str) -> np.ndarray:
    """The bin of each row's confidence, int64 [B].

    Confidence is the largest probability, of several labels that of the least sure; of other
    answers there is none, and all are in bin 0.

    Args:
        logits_BC: what the rows answer, [B, C].
        problem: of the model.

    >>> bins_of(np.array([[0.0, 0.0], [9.0, 0.0]]), "classification").tolist()  # c = 1/2, 0.9999
    [2, 36]
    """
    z_BC = np.asarray(logits_BC, np.float64)
    if problem == "classification":
        odds_B = np.exp(np.sort(z_BC, 1)[:, :-1] - z_BC.max(1, keepdims=True)).sum(1)
        doubt_B = odds_B / (1 + odds_B)
    elif problem == "multi-label":
        doubt_B = 1 / (1 + np.exp(np.minimum(np.abs(z_BC).min(1), 700)))
    else:
        return np.zeros(len(z_BC), np.int64)
    return np.clip(np.floor(-4 * np.log(np.maximum(doubt_B, 1e-9))), 0, BINS - 1).astype(np.int64)


def floor_of(bin: int) -> float:
    """The least confidence of a bin."""
    return 1 - math.exp(-bin / 4)


def bets(u: np.ndarray) -> np.ndarray:
    """What each bet pays, [..., J]: densities on [0, 1] at u, each of mean 1 if u is uniform.

    Four say that rows leave later, or earlier, than at calibration, 1 ± ε(2u − 1); ten that more of
    them are in one tenth, 0.9 + 1 there and 0.9 elsewhere.
    """
    tilt = (2 * u - 1)[..., None] * np.array([-1.0, -0.3, 0.3, 1.0])
    in_tenth = np.minimum(u * DECILES, DECILES - 1).astype(np.int64)[..., None]
    return np.concatenate([1 + tilt, 0.9 + (in_tenth == np.arange(DECILES))], -1)


class Drift:
    """A sequential test that rows leave as calibration rows do: at these exits, as sure.

    Places are ordered by exit, and within an exit from sure to unsure. Row n, at place k, has the
    conformal p-value

        u_n = (#{later places} + U·#{the same place}) / (N + n),   U uniform on [0, 1),

    among the N calibration rows and the n rows so far, itself included. If all these rows are
    exchangeable, the u_n are independent and uniform, however few rows calibrated. So no bet on
    them is expected to win, and

        W_n = r_n + Σ_j S_jn,  S_jn = f_j(u_n)·(S_j,n−1 + (r_n−1 − r_n)/J),
        r_n = 1/(1 + log(1 + n)),  W_0 = 1,

    is a martingale: capital of which a part is put on each bet f_j at each time, so that a drift
    that begins late is noticed too. By Ville's inequality

        P(W_n ≥ 1/α for any n) ≤ α.

    Reference: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2nd ed., 2022,
    chapter 8; Vovk et al., "Retrain or not retrain: conformal test martingales for change-point
    detection", COPA 2021.

    Args:
        counts_ME: of calibration rows, by the exit where they left and the bin of their confidence.
            Dimensions before these are tests of their own, for simulations.
        random: for U.

    Attributes:
        wealth: W_n.
        rows: n.

    >>> drift = Drift(np.full((2, BINS), 10), np.random.default_rng(0))
    >>> for _ in range(100):
    ...     drift.add(1, 0)
    >>> bool(drift.wealth > 100)  # an alarm for α = 0.01
    True
    """

    def __init__(self, counts_ME: np.ndarray, random: np.random.Generator | None = None):
        counts_ME = np.asarray(counts_ME, np.int64)
        self._counts_K = counts_ME[..., ::-1].reshape(*counts_ME.shape[:-2], -1)
        self._total = self._counts_K.sum(-1)
        self._random = np.random.default_rng() if random is None else random
        self._on_bets = np.zeros((*self._total.shape, bets(np.zeros(())).shape[-1]))
        self._reserve = 1.0
        self.rows = 0
        self.wealth = np.ones(self._total.shape)

    @property
    def counts_ME(self) -> np.ndarray:
        """Of calibration rows and of those since."""
        return self._counts_K.reshape(*self._total.shape, -1, BINS)[..., ::-1]

    def add(self, exit: np.ndarray | int, bin: np.ndarray | int) -> None:
        """Look at one more row of each test.

        Args:
            exit: where it left.
            bin: of its confidence there.
        """
        place = np.asarray(exit * BINS + BINS - 1 - bin)[..., None]
        self.rows += 1
        places_K = np.arange(self._counts_K.shape[-1])
        here_K = places_K == place
        self._counts_K = self._counts_K + here_K
        self._total = self._total + 1
        same = (self._counts_K * here_K).sum(-1)
        later = (self._counts_K * (places_K > place)).sum(-1)
        u = (later + self._random.random(self._total.shape) * same) / self._total
        reserve = 1 / (1 + np.log(1 + self.rows))
        share = (self._reserve - reserve) / self._on_bets.shape[-1]
        self._on_bets = bets(u) * (self._on_bets + share)
        self._reserve = reserve
        self.wealth = reserve + self._on_bets.sum(-1)
