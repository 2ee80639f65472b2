"""Policies in which the exits so far answer together.

Letters: M exits, B batch rows, C classes. Exits are counted from 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multiexit.policies.base import ExitPolicy, State, need_classes
from multiexit.policies.numbers import Known, number, probability, unit


@dataclass(frozen=True)
class ProductOfExperts(ExitPolicy):
    """Answer by the product of the exits' probabilities so far; stop when its max p ≥ threshold.

        p_m(c) ∝ Π_(i ≤ m) softmax(z_i)(c),    answer: Σ_(i ≤ m) log softmax(z_i)

    Of two classes that is a sequential test: log odds are added up until they pass a bound. The
    product is surer than its exits, so that thresholds lie nearer to 1 than those of `MaxProb`. An
    exit whose logits are those of the one before, to the last bit, is no other expert, and adds
    nothing.

    Args:
        threshold: a probability, in 1/C..1.

    Raises:
        ValueError: a threshold that is no finite number.

    Example:
        Three exits with odds of 3, 3 and 1: their products are 3, 9 and 9.

        >>> import math, torch, multiexit as mx
        >>> odds_M = torch.tensor([3.0, 3.0001, 1.0])
        >>> logits_MBC = torch.stack([odds_M.log(), torch.zeros(3)], -1)[:, None]
        >>> exit_B, answer_BC = mx.policies.answers(mx.ProductOfExperts(0.89), logits_MBC)
        >>> exit_B.tolist(), answer_BC.softmax(-1)
        ([1], tensor([[0.9000, 0.1000]]))

    Reference: Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", Neural
    Computation 2002; for exits, Allingham & Nalisnick, "A Product of Experts Approach to Early-Exit
    Ensembles", 2022. Jazbec et al., NeurIPS 2023, multiply logits above 0 in place of
    probabilities, so that no class comes back.
    """

    threshold: float = number(probability, scale=unit)

    def init(self, logits_BC: Tensor) -> State:
        need_classes(logits_BC.shape[-1], "ProductOfExperts")
        said_BC = torch.full_like(logits_BC, math.nan)
        return {"product": torch.zeros_like(logits_BC), "said": said_BC}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        product_BC = self.answer(state, logits_BC)
        after = {**state, "product": product_BC, "said": logits_BC}
        return after, product_BC.softmax(-1).amax(-1) >= self.threshold

    def answer(self, state: State, logits_BC: Tensor) -> Tensor:
        # Asked with or without a step before it: what this exit has said already isn't said again.
        said_B1 = (logits_BC == state["said"]).all(-1, keepdim=True)
        return state["product"] + torch.where(said_B1, 0.0, logits_BC.log_softmax(-1))


def _scores(known: Known) -> tuple[float, float]:
    """From nothing to more than M exits can add up, by default or with weights up to 1."""
    M = known.num_exits
    return 0.0, float(max(M, M * (M + 1) / 20))


@dataclass(frozen=True)
class Beem(ExitPolicy):
    """Stop when exits that agree in a row have added up enough confidence (BEEM 2025).

        S_m = S_(m−1) + w_m·max p_m    where exit m answers as the one before, else 0;
        S_0 = 0;    stop when S_m ≥ threshold

    The answer is the exit's own. So the second exit is the earliest that a threshold above 0 lets
    stop.

    Args:
        threshold: of S; one for all exits, or a tuple with one per exit, of which the last may be
            left out.
        weight: λ of w_m = λ·(m + 1), which grows with the cost of the exit (BEEM-C); or a tuple
            with w_m per exit, such as the exits' accuracies (BEEM-A), see `multiexit.fit_experts`.

    Raises:
        ValueError: a threshold or weight that is no finite number, or a weight not above 0.

    Example:
        Four exits of max p 0.9 that answer class 0, 1, 1, 1: S is 0, 0, 0.27 and 0.63.

        >>> import math, torch, multiexit as mx
        >>> logits_MBC = math.log(9) * torch.eye(2)[[0, 1, 1, 1, 1]].unsqueeze(1)
        >>> mx.simulate(mx.Beem(0.6), logits_MBC)
        tensor([3])

    Reference: Bajpai & Hanawal, "BEEM: Boosting Performance of Early Exit DNNs using Multi-Exit
    Classifiers as Experts", ICLR 2025, and its code, in which w_m = λ·m, λ = 0.1 or 0.4.
    """

    threshold: float | tuple[float, ...] = number(_scores, per_exit=True)
    weight: float | tuple[float, ...] = number(
        lambda known: None, default=0.1, per_exit=True, least=0
    )

    def init(self, logits_BC: Tensor) -> State:
        need_classes(logits_BC.shape[-1], "Beem")
        B = len(logits_BC)
        return {
            "answer": logits_BC.new_full((B,), -1, dtype=torch.long),
            "score": logits_BC.new_zeros(B),
            "exit": logits_BC.new_zeros(B, dtype=torch.long),
        }

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        exit_B = state["exit"]
        sure_B, answer_B = logits_BC.softmax(-1).amax(-1), logits_BC.argmax(-1)
        if isinstance(self.weight, tuple):
            weight_B = _at(self.weight, exit_B, logits_BC)
        else:
            weight_B = self.weight * (exit_B + 1).to(logits_BC.dtype)
        score_B = (state["score"] + weight_B * sure_B) * (answer_B == state["answer"])
        after = {"answer": answer_B, "score": score_B, "exit": exit_B + 1}
        if not isinstance(self.threshold, tuple):
            return after, score_B >= self.threshold
        has_B = exit_B < len(self.threshold)
        return after, (score_B >= _at(self.threshold, exit_B, logits_BC)) & has_B


def _at(numbers: tuple[float, ...], exit_B: Tensor, logits_BC: Tensor) -> Tensor:
    """Each row's number of those per exit, as fine as logits; behind their end the last one's."""
    number_M = logits_BC.new_tensor(numbers)
    return number_M[exit_B.clamp(max=len(numbers) - 1)]
