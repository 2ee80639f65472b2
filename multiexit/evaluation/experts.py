"""Weights and thresholds of exits that vote, from their errors on held-out rows (BEEM).

Letters: M exits, B batch rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiexit import problems
from multiexit.evaluation.guarantee import warn_one_answer
from multiexit.evaluation.outputs import Outputs, need_outputs
from multiexit.model.model import MultiExitModel
from multiexit.policies import Beem

LEAST = 1e-3
"""The weight of an exit that is never right."""


def fit_experts(outputs: Outputs) -> Beem:
    """Weigh exits by their accuracy, and let rows leave where they err no more than at the end.

        w_m = share of rows on which exit m is right
        α_m = least α where, of the rows still here, those with S_m ≥ α err no more than at the end

    exit after exit, S as for `multiexit.Beem`; rows of one score leave together. Where no α does,
    nobody leaves. Few rows make that share uncertain: `multiexit.calibrate(outputs, policy,
    risk=…)` bounds it.

    Warns where the last exit answers one class only, or the rows are all of one class.

    Args:
        outputs: on held-out data that is not the evaluation's.

    Returns:
        A policy with M weights and M − 1 thresholds.

    Raises:
        ValueError: rows that aren't of one class each, or none.

    Example:
        The second exit is right wherever it agrees with the first; the last is right everywhere:

        >>> import torch, multiexit as mx
        >>> said = torch.tensor([[0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
        >>> cost = mx.Cost((1, 2, 3), (10, 20, 30), (5, 10, 15), full_macs=28)
        >>> outputs = mx.Outputs(9 * torch.eye(2)[said], torch.tensor([0, 1, 0, 1]), cost)
        >>> policy = mx.fit_experts(outputs)
        >>> policy.weight, outputs.answers(policy)[0]
        ((1.0, 0.5, 1.0), tensor([0, 0, 0, 0]))

    Reference: Bajpai & Hanawal, "BEEM", ICLR 2025: the weights are its BEEM-A. It sets thresholds
    by the exits' error rates too; this condition, and how they are found, are ours.
    """
    need_outputs(outputs)
    _check(outputs)
    B = len(outputs.labels_B)
    warn_one_answer(outputs)
    wrong_MB = outputs.logits_MBC.argmax(-1) != outputs.labels_B
    weight_M = (1 - wrong_MB.double().mean(1)).clamp(min=LEAST)
    allowed = float(wrong_MB[-1].double().mean())
    weights = tuple(weight_M.tolist())
    here_B = torch.ones(B, dtype=torch.bool)
    thresholds = []
    for m, score_B in enumerate(_scores(outputs, weights)):
        thresholds.append(_least(score_B[here_B], wrong_MB[m][here_B], allowed, sum(weights) + 1))
        here_B &= score_B < thresholds[m]
    return Beem(tuple(thresholds) or sum(weights) + 1, weights)  # one exit has no early ones


def _scores(outputs: Outputs, weights: tuple[float, ...]) -> list[Tensor]:
    """S [B] at each exit but the last."""
    policy = Beem(0.0, weights)
    state, scores = policy.init(outputs.logits_MBC[0]), []
    for logits_BC in outputs.logits_MBC[:-1]:
        state, _ = policy.step(state, logits_BC)
        scores.append(state["score"])
    return scores


def _least(score_B: Tensor, wrong_B: Tensor, allowed: float, nobody: float) -> float:
    """The least of these scores from which on no larger a share of rows is wrong than allowed."""
    order_B = score_B.argsort(descending=True)
    score_B, wrong_B = score_B[order_B], wrong_B[order_B]
    count_B = torch.arange(1, len(score_B) + 1, dtype=torch.float64)
    together_B = torch.ones_like(wrong_B)
    together_B[:-1] = score_B[1:] < score_B[:-1]
    good_B = together_B & (wrong_B.cumsum(0) <= allowed * count_B + 1e-9)
    return float(score_B[good_B].min()) if good_B.any() else nobody


def _check(of: Outputs | MultiExitModel) -> None:
    problem = problems.resolve(of.problem, of.num_classes)
    if problem != "classification":
        raise ValueError(
            "experts are weighed by how often each is right, which needs one class a row, and the "
            f"problem is {problem!r}: calibrate Beem's threshold to a speedup, or use "
            "Patience(patience, tolerance=…) or Settled for numbers and vectors"
        )


@dataclass(frozen=True)
class Experts:
    """Gives a trained model the policy of `fit_experts`, when a recipe ends."""

    def check(self, model: MultiExitModel) -> None:
        """Refuse a model whose rows aren't of one class each, before it is trained."""
        _check(model)

    def __call__(self, model: MultiExitModel, outputs: Outputs) -> None:
        model.policy = fit_experts(outputs)
