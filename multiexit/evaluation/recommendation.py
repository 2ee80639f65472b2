"""Which policy to take for a target, chosen on some rows and judged on others.

Letters: B rows, C outputs.
"""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from multiexit import problems
from multiexit.evaluation.calibration import calibrate
from multiexit.evaluation.grids import default_policies
from multiexit.evaluation.judging import Row, judge, score
from multiexit.evaluation.outputs import Outputs, need_outputs
from multiexit.evaluation.targets import mean_ms
from multiexit.model.latency import Latency
from multiexit.policies import ExitPolicy, FixedExit, Margin, check

RESAMPLES = 1000


@dataclass(frozen=True)
class Recommendation:
    """A policy, and how it did on rows that it wasn't chosen on.

    Args:
        target, wanted: what was asked for: `"speedup"`, `"max_loss"` or `"milliseconds"`, and the
            number.
        row: the policy, judged.
        full: no early exit, judged on the same rows.
        interval: the difference of their scores in new rows lies there, with `confidence`.
        confidence: in (0, 1).
        changed: judged rows whose answer isn't the full network's; None of numbers and vectors.
        tried: the best setting of each kind of policy, on the rows that chose; the chosen one
            first.
        full_tried: no early exit, on the same rows as these.
        rows_chosen, rows_judged: how many rows.
        repeated: rows left out, since equal ones were among those that chose.
    """

    target: str
    wanted: float
    row: Row
    full: Row
    interval: tuple[float, float]
    confidence: float
    changed: int | None
    tried: Sequence[Row]
    full_tried: Row
    rows_chosen: int
    rows_judged: int
    repeated: int

    @property
    def difference(self) -> float:
        """The policy's score minus the full network's."""
        return self.row.score - self.full.score

    @property
    def breaks(self) -> bool:
        """Whether it loses more than was allowed, beyond chance."""
        return self.target == "max_loss" and self.interval[1] < -self.wanted


def recommend(
    outputs: Outputs,
    *,
    speedup: float | None = None,
    max_loss: float | None = None,
    milliseconds: float | None = None,
    latency: Latency | None = None,
    batch_size: int = 1,
    own: ExitPolicy | None = None,
    share: float = 0.5,
    seed: int = 0,
    confidence: float = 0.95,
) -> Recommendation:
    """Choose among several kinds of policies for one target, and judge the choice on other rows.

    Of each kind `multiexit.calibrate` gives one setting on a random share of the rows. For a
    speed-up or milliseconds the one that scores most is taken; for a loss the fastest. `FixedExit`
    is among the kinds, and wins where others are only as good: then looking at the input doesn't
    help.

    Args:
        outputs: from `multiexit.collect`, on rows that the model wasn't trained on.
        speedup: by layers, at least this.
        max_loss: of score against the full network, on the rows that choose, at most this; 0.005
            is half a point.
        milliseconds: that a batch takes on average, at most this.
        latency, batch_size: for milliseconds, as for `multiexit.calibrate`.
        own: the model's policy; its kind is tried too.
        share, seed: of the rows that choose.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: no target or two, a target that no policy reaches, or a share that leaves either
            part empty.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.evaluation.recommendation import recommend
        >>> labels_B = torch.arange(40) % 2
        >>> sure_BC = 4.0 * torch.nn.functional.one_hot(labels_B)
        >>> first_BC = torch.where((torch.arange(40) < 10)[:, None], 0.1, 1.0) * sure_BC
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.stack([first_BC, sure_BC]), labels_B, cost)
        >>> advice = recommend(outputs, max_loss=0.01)
        >>> advice.rows_chosen, advice.rows_judged, advice.difference, advice.row.speedup_layers
        (20, 20, 0.0, 2.0)
    """
    name, wanted = check_target(speedup=speedup, max_loss=max_loss, milliseconds=milliseconds)
    need_outputs(outputs)
    choosing, judging = outputs.split(share, seed)
    rest = judging
    if choosing.keys_B is not None and judging.keys_B is not None:
        rest = judging.take(~torch.isin(judging.keys_B, choosing.keys_B))
    if not len(rest.labels_B):
        raise ValueError(
            f"all {len(judging.labels_B)} rows that would judge are among those that choose: give "
            "a set whose rows differ"
        )
    last = FixedExit(outputs.num_exits - 1)
    full_tried = judge(choosing, last)
    goal: dict[str, float | int | Latency | None]
    if max_loss is not None:
        goal = {"score": full_tried.score - max_loss}
    elif milliseconds is not None:
        goal = {"milliseconds": milliseconds, "latency": latency, "batch_size": batch_size}
    else:
        goal = {"speedup": speedup}
    tried, reasons = [], []
    for kind in _kinds(choosing, own):
        try:
            tried.append(judge(choosing, calibrate(choosing, kind, **goal)))  # type: ignore[arg-type]
        except ValueError as error:
            reasons.append(error)
    if not tried:
        raise ValueError(f"none of {len(reasons)} kinds of policies will do: {reasons[-1]}")

    def fast(row: Row) -> float:
        if latency is not None and milliseconds is not None:
            return -mean_ms(row, latency, batch_size)
        return row.speedup_layers

    if max_loss is not None:
        tried.sort(key=lambda row: (-fast(row), -row.score))
    else:
        tried.sort(key=lambda row: (-row.score, -fast(row)))
    policy = tried[0].policy
    _, answers_BC = rest.answers(policy)
    changed = differs(rest, answers_BC, rest.logits_MBC[-1])
    return Recommendation(
        name,
        wanted,
        judge(rest, policy),
        judge(rest, last),
        paired_interval(rest, answers_BC, rest.logits_MBC[-1], confidence),
        confidence,
        changed,
        tried,
        full_tried,
        len(choosing.labels_B),
        len(rest.labels_B),
        len(judging.labels_B) - len(rest.labels_B),
    )


def check_target(**target: float | None) -> tuple[str, float]:
    """Refuse what isn't one target in its range.

    Args:
        target: `speedup`, `max_loss` and `milliseconds`, as for `recommend`.

    Returns:
        Its name and its number.

    Raises:
        ValueError: no target or two, or a number that none can have.
    """
    given = {name: value for name, value in target.items() if value is not None}
    if len(given) != 1:
        every, got = ([f"{name}=" for name in names] for names in (target, given))
        raise ValueError(
            f"a recommendation has one target: give one of {', '.join(every)}; got "
            + (" and ".join(got) or "none")
        )
    ((name, value),) = given.items()
    if name == "max_loss" and not 0 <= value < 1:
        raise ValueError(
            f"max_loss must be 0 or more and below 100 points, got {100 * value:g} points"
        )
    if name == "speedup" and not 1 <= value < math.inf:
        raise ValueError(f"speedup is 1 without early exits; give more, got {value}")
    if name == "milliseconds" and not 0 < value < math.inf:
        raise ValueError(f"milliseconds must be above 0, got {value}")
    return name, value


def differs(outputs: Outputs, one_BC: torch.Tensor, other_BC: torch.Tensor) -> int | None:
    """In how many of a set's rows two outputs have other answers; None of numbers and vectors."""
    if problems.resolve(outputs.problem, outputs.num_classes) in ("regression", "embedding"):
        return None
    one, other = (problems.answer(x, outputs.problem) for x in (one_BC, other_BC))
    different = one != other
    if outputs.asked_BT is not None:
        different &= outputs.asked_BT
    return int(different.flatten(1).any(1).sum() if different.ndim > 1 else different.sum())


def paired_interval(
    outputs: Outputs, one_BC: torch.Tensor, other_BC: torch.Tensor, confidence: float = 0.95
) -> tuple[float, float]:
    """An interval for the difference of two scores, both measured on the same rows.

    Of accuracy it is Agresti and Min's: with b rows that the first alone has right, c that the
    second alone has right, and half a row added to each of the four cells,

        d ± z·√(b' + c' − (b' − c')²/n') / n',  b' = b + ½, c' = c + ½, n' = n + 2, d = (b' − c')/n'

    so that it isn't empty where all answers are the same. Of other metrics it holds the middle
    share of the differences in 1,000 samples of the rows, drawn with replacement (bootstrap).

    Args:
        outputs: gives labels and metric.
        one_BC, other_BC: outputs on the same rows.
        confidence: in (0, 1).

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.evaluation.recommendation import paired_interval
        >>> cost = mx.Cost((1,), (10,), (5,), full_macs=10)
        >>> outputs = mx.Outputs(torch.zeros(1, 98, 2), torch.zeros(98, dtype=torch.long), cost)
        >>> low, high = paired_interval(outputs, outputs.logits_MBC[0], outputs.logits_MBC[0])
        >>> round(low, 4), round(high, 4)
        (-0.0196, 0.0196)

    Reference: Agresti & Min, "Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 2005.
    """
    labels_B, metric, problem = outputs.labels_B, outputs.metric, outputs.problem
    single = problems.resolve(problem, outputs.num_classes) == "classification"
    if metric == "accuracy" and single and not labels_B.is_floating_point():
        right, other = ((x.argmax(-1) == labels_B) for x in (one_BC, other_BC))
        b, c = float((right & ~other).sum()) + 0.5, float((other & ~right).sum()) + 0.5
        n = len(labels_B) + 2
        middle, spread = (b - c) / n, (b + c - (b - c) ** 2 / n) ** 0.5 / n
        wide = NormalDist().inv_cdf((1 + confidence) / 2) * spread
        return max(-1.0, middle - wide), min(1.0, middle + wide)
    generator = torch.Generator().manual_seed(0)
    differences = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(RESAMPLES):
            rows = torch.randint(len(labels_B), (len(labels_B),), generator=generator)
            drawn = outputs.take(rows)
            one, two = (score(drawn, x[rows]) for x in (one_BC, other_BC))
            differences.append(one["score"] - two["score"])
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _kinds(outputs: Outputs, own: ExitPolicy | None) -> list[ExitPolicy]:
    """One policy of each kind that fits, `FixedExit` first; calibration chooses their numbers."""
    kinds: dict[type[ExitPolicy], ExitPolicy] = {}
    for policy in [*default_policies(outputs, own), Margin(0.5)]:
        with suppress(ValueError):  # of classes, and these are numbers
            check(policy, outputs.num_exits, outputs.num_classes, outputs.problem)
            kinds.setdefault(type(policy), policy)
    return sorted(kinds.values(), key=lambda policy: not isinstance(policy, FixedExit))
