"""A threshold per exit, so that a batch of rows spends a budget of compute (MSDNet).

Letters: M exits, B batch rows.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiexit import problems
from multiexit.arguments import check_positive
from multiexit.evaluation.guarantee import warn_one_answer
from multiexit.evaluation.outputs import Outputs, need_outputs
from multiexit.model.model import MultiExitModel
from multiexit.policies import MaxProb
from multiexit.policies.base import need_classes
from multiexit.problems import refuse_vectors
from multiexit_runner.user_line import user_level

NOBODY = 1.01  # a threshold that no probability reaches
STEEPEST = 60.0


def budgeted(outputs: Outputs, speedup: float) -> MaxProb:
    """Thresholds of max p per exit by which rows spend a budget.

    Of a row of several labels or tokens it is max p of the one that is least sure, as `MaxProb` has
    it.

    Rows are to leave at exit m in the share P_m ∝ q^m, with q such that Σ P_m·MACs_m is the
    budget. Exit after exit, the threshold is the ⌊B·P_m⌋-th largest max p of the rows that are
    still there; ties leave together.

    Warns where the last exit answers one class only, or the rows are all of one class; and where
    rows are so few that whole ones spend a tenth more than the budget.

    Args:
        outputs: on held-out data that is not the evaluation's.
        speedup: MACs of the full network with its last head alone ÷ the budget, which is MACs per
            row on average.

    Returns:
        A policy with M − 1 thresholds; one of 1.01 lets nobody leave.

    Raises:
        ValueError: a budget that leaving at the first exit alone exceeds, or that is more than all
            exits cost, or regression or vectors, or no rows.

    Example:
        The surest of three rows, with a max p of 0.88, may leave at the first exit:

        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[0.0, 0], [2, 0], [0, 1]], [[0, 9], [9, 0], [0, 9]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=20)
        >>> outputs = mx.Outputs(logits_MBC, torch.tensor([1, 0, 1]), cost)
        >>> [round(threshold, 2) for threshold in mx.budgeted(outputs, speedup=1.3).threshold]
        [0.88]

    Reference: Huang et al., "Multi-Scale Dense Networks", ICLR 2018, section 4, and its code.
    """
    need_outputs(outputs)
    check_positive("speedup", speedup)
    M, B = outputs.num_exits, len(outputs.labels_B)
    _check_classes(outputs)
    budget = outputs.cost.full_macs / speedup
    share_M = shares(outputs.cost.macs_M, budget)
    warn_one_answer(outputs)
    sure_MB = problems.confidence(outputs.logits_MBC, outputs.problem, outputs.asked_BT)
    remaining_B = torch.ones(B, dtype=torch.bool)
    thresholds, spent = [], 0.0
    for m in range(M - 1):
        count = int(B * share_M[m] + 1e-9)
        sure_B = sure_MB[m][remaining_B].sort(descending=True).values
        reached = 0 < count <= len(sure_B)
        thresholds.append(float(sure_B[count - 1]) if reached else NOBODY)
        leaving_B = remaining_B & (sure_MB[m] >= thresholds[-1])
        spent += float(leaving_B.sum()) * outputs.cost.macs_M[m] / B
        remaining_B &= ~leaving_B
    spent += float(remaining_B.sum()) * outputs.cost.macs_M[-1] / B
    if spent > 1.1 * budget:
        warnings.warn(
            f"{B} rows are too few to spend this budget: whole rows leave, and these spend "
            f"{spent / budget:.2f} times as much. Give more rows",
            stacklevel=user_level(),
        )
    return MaxProb(tuple(thresholds) or NOBODY)  # one exit has no early ones


def shares(macs_M: tuple[int, ...], budget: float) -> Tensor:
    """P_m ∝ q^m, m = 1..M, such that Σ P_m·MACs_m = budget.

    Args:
        macs_M: cumulated MACs of leaving at each exit.
        budget: MACs per row, on average.

    Returns:
        P, the share of rows that are to leave at each exit, float64 [M], summing to 1.

    Raises:
        ValueError: a budget below the first exit's MACs, or above all that can be spent.
    """
    macs = torch.tensor(macs_M, dtype=torch.float64)
    depth_M = torch.arange(len(macs_M), dtype=torch.float64)

    def spread(log_q: float) -> Tensor:
        return (log_q * depth_M).softmax(0)

    def over(log_q: float) -> float:
        return float(spread(log_q) @ macs) - budget

    if over(-STEEPEST) > 0 or over(STEEPEST) < 0:
        raise ValueError(
            f"a budget of {budget:.0f} MACs per row can't be spent: leaving at the first exit "
            f"costs {macs_M[0]}, at the last {macs_M[-1]}"
        )
    from scipy.optimize import brentq  # which takes a second to import

    log_q: Any = brentq(over, -STEEPEST, STEEPEST)
    return spread(log_q)


def _check_classes(of: Outputs | MultiExitModel) -> None:
    refuse_vectors(of.problem, "a budget", "Settled, calibrated to a speedup")
    K = problems.classes_of_decision(of.problem, of.num_classes)
    need_classes(K, "a budget", "Patience(patience, tolerance=…), calibrated to a speedup")


@dataclass(frozen=True)
class Budget:
    """Gives a trained model `budgeted` thresholds as its policy, when a recipe ends.

    Args:
        speedup: MACs of the full network with its last head alone ÷ mean MACs, above 0.

    Raises:
        ValueError: a speed-up that isn't above 0.
    """

    speedup: float

    def __post_init__(self) -> None:
        check_positive("speedup", self.speedup)

    def check(self, model: MultiExitModel) -> None:
        """Refuse a budget that this model can't keep, before it is trained, by a ValueError."""
        _check_classes(model)
        cost = model.cost()
        shares(cost.macs_M, cost.full_macs / self.speedup)

    def __call__(self, model: MultiExitModel, outputs: Outputs) -> None:
        model.policy = budgeted(outputs, self.speedup)
