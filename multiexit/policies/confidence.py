"""Policies that go by how sure an exit is.

Letters: M exits, B batch rows, C classes. Exits are counted from 0. H is entropy in nats.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multiexit.policies.base import ExitPolicy, State, need_classes
from multiexit.policies.numbers import nats, number, probability, unit


@dataclass(frozen=True)
class _Thresholded(ExitPolicy):
    """Compares a figure of one exit's logits with a threshold.

    Args:
        threshold: one for all exits, or a tuple with one per exit (the last needs none).
    """

    threshold: float | tuple[float, ...] = number(unit, per_exit=True)
    of_classes: ClassVar[bool] = True
    """Whether the figure is one of a distribution over classes."""

    def init(self, logits_BC: Tensor) -> State:
        if self.of_classes:
            need_classes(logits_BC, type(self).__name__)
        if not isinstance(self.threshold, tuple):
            return {}
        return {"exit": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        if not isinstance(self.threshold, tuple):
            return state, self._stops(state, logits_BC, self.threshold)
        exit_B = state["exit"]
        each = torch.tensor(self.threshold, device=logits_BC.device)
        threshold_B = each[exit_B.clamp(max=len(each) - 1)]
        stop_B = self._stops(state, logits_BC, threshold_B) & (exit_B < len(each))
        return {**state, "exit": exit_B + 1}, stop_B

    @abstractmethod
    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        """stop_B at this exit's threshold."""


@dataclass(frozen=True)
class Entropy(_Thresholded):
    """Stop when H(p) < threshold, in nats (BranchyNet 2016; DeeBERT 2020)."""

    threshold: float | tuple[float, ...] = number(nats, per_exit=True)

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return entropy(logits_BC) < threshold


@dataclass(frozen=True)
class NormalizedEntropy(_Thresholded):
    """Stop unless H(p) / log C > threshold, in 0..1 (FastBERT 2020, eq. 7: its "speed")."""

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return ~(normalized_entropy(logits_BC) > threshold)


@dataclass(frozen=True)
class MaxProb(_Thresholded):
    """Stop when max p ≥ threshold (The Right Tool 2020; MSDNet 2018 with one per exit)."""

    threshold: float | tuple[float, ...] = number(probability, per_exit=True)

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return logits_BC.softmax(-1).amax(-1) >= threshold


@dataclass(frozen=True)
class MostConfident(ExitPolicy):
    """`MaxProb` whose rows that never stop answer as the most confident exit did, not the last.

    Such rows run the whole network; of equally confident exits the earliest counts.
    Reference: Kaya et al., "Shallow-Deep Networks", ICML 2019, section 4.2, and its code.
    """

    threshold: float = number(probability)

    def init(self, logits_BC: Tensor) -> State:
        need_classes(logits_BC, "MostConfident")
        return {"best": logits_BC, "sure": logits_BC.new_full((len(logits_BC),), -1.0)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        sure_B = logits_BC.softmax(-1).amax(-1)
        most = {
            "best": self.answer(state, logits_BC),
            "sure": torch.maximum(sure_B, state["sure"]),
        }
        return {**state, **most}, sure_B >= self.threshold

    def answer(self, state: State, logits_BC: Tensor) -> Tensor:
        surer_B = logits_BC.softmax(-1).amax(-1) > state["sure"]
        return torch.where(surer_B.unsqueeze(-1), logits_BC, state["best"])


@dataclass(frozen=True)
class Margin(_Thresholded):
    """Stop when the two largest probabilities differ by at least the threshold."""

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        top = logits_BC.softmax(-1).topk(2).values
        return top[:, 0] - top[:, 1] >= threshold


@dataclass(frozen=True)
class Certainty(_Thresholded):
    """Stop when the exit's own learned certainty ≥ threshold, in 0..1 (BERxiT 2021).

    For models whose head learns to exit (`head="pooler+lte"`, recipe `berxit`); serves
    regression too.
    """

    of_classes: ClassVar[bool] = False

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        if "certainty" not in state:
            raise ValueError(
                "Certainty goes by a head that learns to exit, and this model has none: make it "
                "with head='pooler+lte' (or 'linear+lte') and train it by the recipe 'berxit'"
            )
        return state["certainty"] >= threshold


def entropy(logits_BC: Tensor) -> Tensor:
    """H(softmax(z)) = log Σ e^z − Σ z e^z / Σ e^z, in nats, [B]."""
    need_classes(logits_BC, "entropy")
    log_p = logits_BC.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def normalized_entropy(logits_BC: Tensor) -> Tensor:
    """H / log C, in 0..1, [B]."""
    return entropy(logits_BC) / math.log(logits_BC.shape[-1])
