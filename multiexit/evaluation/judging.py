"""Run the model once over a data set, then judge exits and policies from what it said.

Letters: M exits, N rows of the set, C classes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from multiexit import policies, problems
from multiexit.evaluation import metrics
from multiexit.evaluation.outputs import Outputs, exit_shares, need_outputs
from multiexit.model.cost import Cost
from multiexit.policies import ExitPolicy, check

MOST_SEEN = 0.01
"""Largest share of the judged rows that may also be rows calibrated on. It isn't 0, since GLUE's
dev sets repeat rows: random halves of them have up to 0.4 % in common."""


@dataclass(frozen=True)
class Row:
    """A policy's score and speed on a set: one row of a sweep.

    Args:
        policy: the policy.
        score: the metric's main figure; more is better.
        scores: all figures by name, that one as `"score"`.
        mean_layers: stages run per input row, averaged.
        speedup_layers: stages of the full network ÷ mean_layers.
        speedup_macs: MACs of the full network with its last head alone ÷ mean MACs with all heads
            that were asked. Below 1 when heads cost and nobody leaves.
        shares_M: the share of the rows that left at each exit, summing to 1.
        speedup_time: seconds of the full network ÷ seconds with the policy, where measured.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[0.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> row = mx.judge(mx.Outputs(logits_MBC, torch.tensor([1, 0]), cost), mx.MaxProb(0.8))
        >>> row.score, row.mean_layers, round(row.speedup_layers, 2), row.speedup_macs, row.shares_M
        (1.0, 1.5, 1.33, 1.2, [0.5, 0.5])
    """

    policy: ExitPolicy
    score: float
    scores: dict[str, float]
    mean_layers: float
    speedup_layers: float
    speedup_macs: float
    shares_M: list[float] = field(repr=False)
    speedup_time: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as plain data."""
        return {**asdict(self), "policy": policies.to_json(self.policy)}


def score(outputs: Outputs, logits_BC: Tensor) -> dict[str, float]:
    """Measure answers against a set's labels.

    Args:
        outputs: from `collect`: the labels, the metric and the problem. Of tokens those count that
            are asked for and have a label.
        logits_BC: of all its rows, as one exit or a policy answers them.

    Returns:
        Figures by name; `"score"` is the one to compare by.

    Raises:
        ValueError: what `multiexit.metrics.measure` raises.
    """
    predicted_B = problems.answer(logits_BC, outputs.problem)
    return metrics.measure(
        outputs.metric,
        predicted_B.numpy(),
        outputs.scored_labels.numpy(),
        logits_BC.shape[-1],
        outputs.problem,
        outputs.names,
    )


def exit_scores(outputs: Outputs) -> list[dict[str, float]]:
    """Each exit's scores, as if everyone left there.

    Args:
        outputs: from `collect`.

    Returns:
        Per exit, the metric's figures by name; `"score"` is the one to compare by.

    Raises:
        ValueError: what the metric raises.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[1.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> mx.exit_scores(mx.Outputs(logits_MBC, torch.tensor([1, 0]), cost))
        [{'score': 0.5, 'accuracy': 0.5}, {'score': 1.0, 'accuracy': 1.0}]
    """
    need_outputs(outputs)
    return [score(outputs, logits_BC) for logits_BC in outputs.logits_MBC]


def judge(outputs: Outputs, policy: ExitPolicy) -> Row:
    """Judge one policy on the collected outputs.

    Args:
        outputs: from `collect`.
        policy: any `ExitPolicy`.

    Returns:
        Its score and its speed.

    Raises:
        ValueError: a policy that doesn't fit the outputs; one with a certificate, where over 1 % of
            the rows (`MOST_SEEN`) are among those that it was calibrated on.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[1.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(logits_MBC, torch.tensor([1, 0]), cost)
        >>> row = mx.judge(outputs, mx.FixedExit(0))
        >>> row.score, row.speedup_layers
        (0.5, 2.0)
    """
    need_outputs(outputs)
    check(policy, outputs.num_exits, outputs.num_classes, outputs.problem)
    _check_unseen(outputs, policy)
    exit_B, answer_BC = outputs.answers(policy)
    scores = score(outputs, answer_BC)
    shares_M = exit_shares(exit_B, outputs.num_exits)
    cost = outputs.cost
    mean_layers = float(shares_M @ torch.tensor(cost.layers_M, dtype=torch.float64))
    mean_macs = float(shares_M @ torch.tensor(cost.macs_M, dtype=torch.float64))
    return Row(
        policy=policy,
        score=scores["score"],
        scores=scores,
        mean_layers=mean_layers,
        speedup_layers=cost.layers_M[-1] / mean_layers,
        speedup_macs=cost.full_macs / mean_macs,
        shares_M=shares_M.tolist(),
    )


def sweep(outputs: Outputs, policies: Iterable[ExitPolicy]) -> list[Row]:
    """Judge each of some policies; the model is not run again.

    Args:
        outputs: from `collect`.
        policies: to judge; `multiexit.evaluation.grids.family` lists one policy's settings.

    Returns:
        A row per policy, in their order.

    Raises:
        ValueError: one policy or its class in place of a list, and as `judge`.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[1.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(logits_MBC, torch.tensor([1, 0]), cost)
        >>> rows = mx.sweep(outputs, [mx.MaxProb(t) for t in (0.7, 0.8, 0.9)])
        >>> [(row.policy.threshold, row.score, row.mean_layers) for row in rows]
        [(0.7, 0.5, 1.0), (0.8, 1.0, 1.5), (0.9, 1.0, 2.0)]
    """
    if isinstance(policies, type | ExitPolicy):
        raise ValueError("sweep takes a list of policies, such as [MaxProb(0.5), MaxProb(0.9)]")
    need_outputs(outputs)
    policies = list(policies)
    for policy in policies:
        check(policy, outputs.num_exits, outputs.num_classes, outputs.problem)
    return [judge(outputs, policy) for policy in policies]


def _check_unseen(outputs: Outputs, policy: ExitPolicy) -> None:
    if policy.certificate is None:
        return
    count, rows = int(outputs.seen(policy.certificate).sum()), len(outputs.labels_B)
    if count > MOST_SEEN * rows:
        raise ValueError(
            f"{count} of these {rows} rows are among those that {policy} was calibrated on, and "
            "its bound is on new rows: judge it on outputs.without(policy.certificate)"
        )


def relative_to(row: Row, own: Cost, full: Cost, time: float | None = None) -> Row:
    """Make a static network's row with its speed-ups against the full network.

    By itself a network of one exit has speed-up 1. Here they are L_full / L and MACs_full / MACs,
    so that the row can stand beside those of multi-exit methods on the full network.

    Args:
        row: from `sweep` of the static network.
        own, full: both networks' costs.
        time: seconds of the full network ÷ seconds of this one, where measured.

    Raises:
        ValueError: a network of several exits; its rows have their own speed-ups.
    """
    if len(own.layers_M) != 1:
        raise ValueError(f"a static network has 1 exit, this one has {len(own.layers_M)}")
    return replace(
        row,
        speedup_layers=full.layers_M[-1] / own.layers_M[-1],
        speedup_macs=full.full_macs / own.macs_M[-1],
        speedup_time=time,
    )
