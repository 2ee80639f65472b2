"""Run the model once over a data set, then judge exits and policies from what it said.

Letters: M exits, N rows of the set, C classes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from multiexit import policies
from multiexit.evaluation import metrics
from multiexit.evaluation.metrics import Metric
from multiexit.evaluation.outputs import Outputs
from multiexit.model.cost import Cost
from multiexit.policies import ExitPolicy, check

MOST_SEEN = 0.01
"""Share of rows that may equal ones calibrated on: halves of GLUE's dev sets share up to 0.4 %."""


@dataclass(frozen=True)
class Row:
    """What a policy achieves on a set: one row of a sweep.

    Args:
        policy: the policy.
        score: the metric's main figure; `scores` holds all of them by name.
        mean_layers: stages run per input row, averaged.
        speedup_layers: stages of the full network ÷ mean_layers.
        speedup_macs: MACs of the full network with its last head alone ÷ mean MACs with all heads
            that were asked. Below 1 when heads cost and nobody leaves.
        shares_M: which share of the rows left at each exit.
        speedup_time: seconds of the full network ÷ seconds with the policy, where measured.
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


def score(logits_BC: Tensor, labels_B: Tensor, metric: str | Metric) -> dict[str, float]:
    """A metric of logits [N, C] against labels [N]; `"score"` is the one to compare by."""
    C = logits_BC.shape[1]
    predicted_B = logits_BC[:, 0] if C == 1 else logits_BC.argmax(-1)
    return metrics.measure(metric, predicted_B.numpy(), labels_B.numpy(), C)


def exit_scores(outputs: Outputs) -> list[dict[str, float]]:
    """Each exit's scores, as if everyone left there."""
    return [score(logits_BC, outputs.labels_B, outputs.metric) for logits_BC in outputs.logits_MBC]


def judge(outputs: Outputs, policy: ExitPolicy) -> Row:
    """What one policy achieves on the collected outputs.

    Raises:
        ValueError: a policy with a certificate, where over 1 % of the rows (`MOST_SEEN`) are among
            those that it was calibrated on.
    """
    check(policy, outputs.num_exits, outputs.logits_MBC.shape[2])
    _check_unseen(outputs, policy)
    exit_B, answer_BC = policies.answers(policy, outputs.logits_MBC, outputs.certainty_MB)
    scores = score(answer_BC, outputs.labels_B, outputs.metric)
    shares_M = torch.bincount(exit_B, minlength=outputs.num_exits).double() / len(exit_B)
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
    """What each policy achieves; the model is not run again.

    Raises:
        ValueError: one policy or its class in place of a list, and as `judge`.
    """
    if isinstance(policies, type | ExitPolicy):
        raise ValueError("sweep takes a list of policies, such as [MaxProb(0.5), MaxProb(0.9)]")
    policies = list(policies)
    for policy in policies:
        check(policy, outputs.num_exits, outputs.logits_MBC.shape[2])
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
    """A static network's row with its speed-ups against the full network.

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
