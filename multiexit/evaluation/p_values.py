"""How likely losses so low are, if their true mean is a risk or more.

A p-value p of n losses in [0, 1], drawn independently from one distribution whose mean is α or
more, has P(p ≤ δ) ≤ δ for any δ.

Letters: B calibration rows, n of them.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def hoeffding_bentkus(loss_B: Tensor, risk: float, delta: float = 0.1) -> float:
    """By Hoeffding's and Bentkus' bounds, for any losses; r is their mean, α the risk.

        p = min(exp(−n·h(min(r, α), α)), e·P(Bin(n, α) ≤ ⌈n·r⌉)),
        h(a, b) = a log(a/b) + (1 − a) log((1 − a)/(1 − b))

    Args:
        loss_B: in [0, 1].
        risk: α, in (0, 1).
        delta: plays no part.

    Reference: Bates et al., "Distribution-Free, Risk-Controlling Prediction Sets", 2021.

    >>> round(hoeffding_bentkus(torch.zeros(10), 0.2), 6)  # 0.8 ** 10
    0.107374
    """
    return _hoeffding_bentkus(float(loss_B.double().mean()), len(loss_B), risk)


@lru_cache(100_000)
def _hoeffding_bentkus(mean: float, n: int, risk: float) -> float:
    a = min(mean, risk)
    divergence = a * math.log(a / risk) if a > 0 else 0.0
    divergence += (1 - a) * math.log((1 - a) / (1 - risk)) if a < 1 else 0.0
    # Means of losses that are 0 or 1 come back as whole numbers only up to rounding.
    bentkus = math.e * _at_most(math.ceil(n * mean - 1e-9), n, risk)
    return min(1.0, math.exp(-n * divergence), bentkus)


def binomial(loss_B: Tensor, risk: float, delta: float = 0.1) -> float:
    """Of losses that are 0 or 1: exactly, k of them being 1.

        p = P(Bin(n, α) ≤ k)

    It is smaller than `hoeffding_bentkus`.

    Args:
        loss_B: 0 or 1.
        risk: α, in (0, 1).
        delta: plays no part.

    >>> binomial(torch.tensor([0.0, 1, 0]), 0.5)  # 4 of 8 ways
    0.5
    """
    return _at_most(round(float(loss_B.double().sum())), len(loss_B), risk)


@lru_cache(100_000)
def _at_most(count: int, n: int, risk: float) -> float:
    from scipy.stats import binom  # which takes a second to import

    return float(binom.cdf(count, n, risk))


def betting(loss_B: Tensor, risk: float, delta: float = 0.1) -> float:
    """By bets that losses are below the risk: for losses that vary little, the smallest.

        p = 1 / max_i K_i,  K_i = ∏_{j ≤ i} (1 − ν_j (L_j − α)),
        ν_j = min(1, √(2 log(1/δ) / (n·σ²_{j−1}))),  σ²_i = (¼ + Σ_{j ≤ i} (L_j − μ_j)²) / (1 + i),
        μ_i = (½ + Σ_{j ≤ i} L_j) / (1 + i),  σ²_0 = ¼

    If the mean is α or more, no bet is expected to win, and K exceeds 1/p with a chance of at most
    p (Ville). Rows are taken in an order drawn beforehand, for data sets may be sorted.

    Args:
        loss_B: in [0, 1].
        risk: α, in (0, 1).
        delta: δ, for which the bets are tuned; the p-value holds for any.

    Reference: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    JRSS B 2024; with these bets Bates et al., "Distribution-Free, Risk-Controlling Prediction
    Sets", 2021, proposition 5.

    >>> betting(torch.full((100,), 0.01), 0.05) < hoeffding_bentkus(torch.full((100,), 0.01), 0.05)
    True
    """
    order_B = torch.randperm(len(loss_B), generator=torch.Generator().manual_seed(0))
    return math.exp(-max(0.0, float(log_capital(loss_B.double()[order_B], risk, delta))))


def log_capital(loss_TB: Tensor, risk: float, delta: float) -> Tensor:
    """max_i log K_i of `betting`, of rows in the order they are in, [...].

    Args:
        loss_TB: in [0, 1], float64 [..., B].
        risk, delta: as for `betting`.
    """
    n = loss_TB.shape[-1]
    after_B = torch.arange(2, n + 2, dtype=torch.float64)
    mean_TB = (0.5 + loss_TB.cumsum(-1)) / after_B
    variance_TB = (0.25 + (loss_TB - mean_TB).square().cumsum(-1)) / after_B
    before_TB = torch.cat([torch.full_like(loss_TB[..., :1], 0.25), variance_TB[..., :-1]], -1)
    bet_TB = (2 * math.log(1 / delta) / (n * before_TB)).sqrt().clamp(max=1.0)
    return (-bet_TB * (loss_TB - risk)).log1p().cumsum(-1).amax(-1)


P_VALUES: dict[str, Callable[[Tensor, float, float], float]] = {
    "hoeffding-bentkus": hoeffding_bentkus,
    "binomial": binomial,
    "betting": betting,
}
"""P-values by name, of losses [B], a risk and δ."""


def upper_bound(loss_B: Tensor, delta: float, bound: str = "hoeffding-bentkus") -> float:
    """The smallest risk that losses certify by themselves, up to 1e-6.

    It is the smallest α with p ≤ δ. Of settings from the safest on, the last whose bound, and whose
    every safer one's, is at most α is the one that `multiexit.evaluation.guarantee.learn_then_test`
    gives for the risk α.

    Args:
        loss_B: in [0, 1].
        delta: δ, in (0, 1).
        bound: a key of `P_VALUES`.

    >>> upper_bound(torch.zeros(45), 0.1) <= 0.05 < upper_bound(torch.zeros(44), 0.1)
    True
    """
    low, high = min(float(loss_B.double().mean()), 1.0), 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        fits = P_VALUES[bound](loss_B, middle, delta) <= delta
        low, high = (low, middle) if fits else (middle, high)
    return high


def rows_needed(risk: float, delta: float | None, bound: str = "hoeffding-bentkus") -> int:
    """The number of rows without any loss that it takes to certify a risk.

    The first n with p ≤ δ, which is (1 − α)^n ≤ δ but for betting; with no δ, of
    `multiexit.evaluation.guarantee.conformal`: 1 / (n + 1) ≤ α.

    Args:
        risk: α, in (0, 1).
        delta: δ, in (0, 1), or None.
        bound: a key of `P_VALUES`.

    >>> rows_needed(0.05, 0.1), rows_needed(0.05, None), rows_needed(0.05, 0.1, "betting")
    (45, 19, 48)
    """
    if delta is None:
        return math.ceil(1 / risk - 1 - 1e-9)
    low = math.ceil(math.log(delta) / math.log(1 - risk))
    if bound != "betting":
        return low
    high = 8 * low + 8
    low = 1
    while low < high:
        middle = (low + high) // 2
        enough = betting(torch.zeros(middle), risk, delta) <= delta
        low, high = (low, middle) if enough else (middle + 1, high)
    return low
