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

NOT_CERTAIN = (
    "Certainty goes by a head that learns to exit, and this model has none: make it with "
    "head='pooler+lte' (or 'linear+lte') and train it by the recipe 'berxit'"
)


@dataclass(frozen=True)
class _Thresholded(ExitPolicy):
    """Compares a figure of one exit's logits with a threshold.

    Args:
        threshold: one for all exits, or a tuple with one per exit (the last needs none).
    """

    threshold: float | tuple[float, ...] = number(unit, per_exit=True, scale=unit)
    of_classes: ClassVar[bool] = True
    """Whether the figure is one of a distribution over classes."""

    def init(self, logits_BC: Tensor) -> State:
        if self.of_classes:
            need_classes(logits_BC.shape[-1], type(self).__name__)
        if not isinstance(self.threshold, tuple):
            return {}
        return {"exit": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        if not isinstance(self.threshold, tuple):
            return state, self._stops(state, logits_BC, self.threshold)
        exit_B = state["exit"]
        threshold_M = logits_BC.new_tensor(self.threshold)
        threshold_B = threshold_M[exit_B.clamp(max=len(threshold_M) - 1)]
        stop_B = self._stops(state, logits_BC, threshold_B) & (exit_B < len(threshold_M))
        return {**state, "exit": exit_B + 1}, stop_B

    @abstractmethod
    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        """stop_B at this exit's threshold."""


@dataclass(frozen=True)
class Entropy(_Thresholded):
    """Stop when H(p) < threshold, in nats (BranchyNet 2016; DeeBERT 2020).

    Args:
        threshold: in nats, 0..log C; one for all exits, or a tuple with one per exit, of which the
            last may be left out.

    Raises:
        ValueError: a threshold that is no finite number.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[4.0, 0], [1, 0]], [[4, 0], [4, 0]]])
        >>> mx.simulate(mx.Entropy(0.3), logits_MBC)  # H is 0.09 and 0.58 at the first exit
        tensor([0, 1])
    """

    threshold: float | tuple[float, ...] = number(nats, per_exit=True, scale=nats)

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return entropy(logits_BC) < threshold


@dataclass(frozen=True)
class NormalizedEntropy(_Thresholded):
    """Stop unless H(p) / log C > threshold, in 0..1 (FastBERT 2020, eq. 7: its "speed").

    Args:
        threshold: in 0..1; one for all exits, or a tuple with one per exit, of which the last may
            be left out.

    Raises:
        ValueError: a threshold that is no finite number.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[4.0, 0], [1, 0]], [[4, 0], [4, 0]]])
        >>> mx.simulate(mx.NormalizedEntropy(0.5), logits_MBC)  # 0.13 and 0.84 at the first exit
        tensor([0, 1])
    """

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return ~(normalized_entropy(logits_BC) > threshold)


@dataclass(frozen=True)
class MaxProb(_Thresholded):
    """Stop when max p ≥ threshold (The Right Tool 2020; MSDNet 2018 with one per exit).

    Args:
        threshold: a probability, in 1/C..1; one for all exits, or a tuple with one per exit, of
            which the last may be left out.

    Raises:
        ValueError: a threshold that is no finite number.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[4.0, 0], [1, 0]], [[4, 0], [4, 0]], [[4, 0], [4, 0]]])
        >>> mx.simulate(mx.MaxProb(0.9), logits_MBC)  # max p is 0.98 and 0.73 at the first exit
        tensor([0, 1])
        >>> mx.simulate(mx.MaxProb((0.7, 0.9)), logits_MBC)
        tensor([0, 0])
    """

    threshold: float | tuple[float, ...] = number(probability, per_exit=True, scale=unit)

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return logits_BC.softmax(-1).amax(-1) >= threshold


@dataclass(frozen=True)
class MostConfident(ExitPolicy):
    """`MaxProb` whose rows that never stop answer as the most confident exit did, not the last.

    Such rows run the whole network; of equally confident exits the earliest counts.

    Args:
        threshold: a probability, in 1/C..1.

    Raises:
        ValueError: a threshold that is no finite number.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[3.0, 0]], [[1.0, 0]]])  # max p is 0.95, then 0.73
        >>> exit_B, answer_BC = mx.policies.answers(mx.MostConfident(0.99), logits_MBC)
        >>> exit_B.tolist(), answer_BC.tolist()
        ([1], [[3.0, 0.0]])

    Reference: Kaya et al., "Shallow-Deep Networks", ICML 2019, section 4.2, and its code.
    """

    threshold: float = number(probability, scale=unit)

    def init(self, logits_BC: Tensor) -> State:
        need_classes(logits_BC.shape[-1], "MostConfident")
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
    """Stop when the two largest probabilities differ by at least the threshold.

    Args:
        threshold: in 0..1; one for all exits, or a tuple with one per exit, of which the last may
            be left out.

    Raises:
        ValueError: a threshold that is no finite number.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[4.0, 0, 0], [4, 3, 0]], [[4, 0, 0], [4, 0, 0]]])
        >>> mx.simulate(mx.Margin(0.5), logits_MBC)  # 0.95 and 0.46 at the first exit
        tensor([0, 1])
    """

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        top = logits_BC.softmax(-1).topk(2).values
        return top[:, 0] - top[:, 1] >= threshold


@dataclass(frozen=True)
class Certainty(_Thresholded):
    """Stop when the exit's own learned certainty ≥ threshold, in 0..1 (BERxiT 2021).

    For models whose head learns to exit (`head="pooler+lte"`, recipe `berxit`); serves
    regression too.

    Args:
        threshold: in 0..1; one for all exits, or a tuple with one per exit, of which the last may
            be left out.

    Raises:
        ValueError: a threshold that is no finite number; when it runs, heads that don't learn to
            exit.

    Example:
        >>> import torch, multiexit as mx
        >>> certainty_MB = torch.tensor([[0.95, 0.20], [0.99, 0.50]])
        >>> mx.simulate(mx.Certainty(0.9), torch.zeros(2, 2, 3), certainty_MB)
        tensor([0, 1])
    """

    of_classes: ClassVar[bool] = False

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        if "certainty" not in state:
            raise ValueError(NOT_CERTAIN)
        return state["certainty"].to(logits_BC.dtype) >= threshold


def entropy(logits_BC: Tensor) -> Tensor:
    """H(softmax(z)) = log Σ e^z − Σ z e^z / Σ e^z, in nats, [B].

    Raises:
        ValueError: logits [B, C] of one class.
    """
    need_classes(logits_BC.shape[-1], "entropy")
    log_p = logits_BC.log_softmax(-1)
    p = log_p.exp()
    return -(p * log_p.where(p > 0, 0)).sum(-1)  # 0 · log 0 = 0, and not NaN


def normalized_entropy(logits_BC: Tensor) -> Tensor:
    """H / log C, in 0..1, [B].

    Raises:
        ValueError: logits [B, C] of one class.
    """
    return entropy(logits_BC) / math.log(logits_BC.shape[-1])
