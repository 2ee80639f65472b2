"""Policies that count exits.

Letters: M exits, B batch rows, C classes. Exits are counted from 0. H is entropy in nats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multiexit.policies.base import ExitPolicy, State, need_classes
from multiexit.policies.confidence import normalized_entropy
from multiexit.policies.numbers import Known, number, unit


def _tolerance_range(known: Known) -> tuple[float, float] | None:
    """The range of a regression's tolerance; classes have no such number."""
    return (0.0, known.apart) if known.num_classes == 1 else None


@dataclass(frozen=True)
class Patience(ExitPolicy):
    """Stop when an answer has stayed the same `patience` times in a row (PABEE 2020).

    The counter rises when an exit agrees with the one before and falls to 0 when not. With
    patience p the exit of index p, the (p+1)-th, is the earliest.

    Args:
        patience: how many agreements, at least 1.
        tolerance: for regression (C = 1): agreement is |y_m − y_(m−1)| < tolerance, in the unit of
            the labels.

    Raises:
        ValueError: a patience that is no whole number from 1, or a tolerance that isn't above 0.

    Example:
        Six exits that answer class 0, 1, 1, 1, 0, 0:

        >>> import torch, multiexit as mx
        >>> classes = torch.tensor([[0], [1], [1], [1], [0], [0]])
        >>> mx.simulate(mx.Patience(2), torch.nn.functional.one_hot(classes).float())
        tensor([3])
    """

    patience: int = number(
        lambda known: (1, max(1, known.num_exits - 1)), whole="a whole number", least=1
    )
    tolerance: float | None = number(_tolerance_range, default=None, least=0)

    def init(self, logits_BC: Tensor) -> State:
        if self.tolerance is None:
            need_classes(logits_BC.shape[-1], "Patience without a tolerance")
        elif logits_BC.shape[1] != 1:
            raise ValueError(
                f"tolerance={self.tolerance} is for regression (one output); these logits have "
                f"{logits_BC.shape[1]} classes: leave it out"
            )
        answer_B = self._answer(logits_BC)
        no_answer = -1 if self.tolerance is None else math.nan
        return {
            "answer": torch.full_like(answer_B, no_answer),
            "count": torch.zeros_like(answer_B, dtype=torch.long),
        }

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        answer_B = self._answer(logits_BC)
        if self.tolerance is None:
            agrees_B = answer_B == state["answer"]
        else:
            agrees_B = (answer_B - state["answer"]).abs() < self.tolerance
        count_B = (state["count"] + 1) * agrees_B
        return {"answer": answer_B, "count": count_B}, count_B >= self.patience

    def _answer(self, logits_BC: Tensor) -> Tensor:
        return logits_BC.argmax(-1) if self.tolerance is None else logits_BC[:, 0]


@dataclass(frozen=True)
class PatientConfident(ExitPolicy):
    """Stop at `patience` confident exits in a row: H(p) / log C < threshold (PCEE 2022).

    Args:
        threshold: in 0..1.
        patience: how many exits, at least 1.

    Raises:
        ValueError: a threshold that is no finite number, or a patience that is no whole number
            from 1.

    Example:
        Five exits that are sure, unsure, sure, sure, sure:

        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[5.0, 0]], [[0.0, 0]], [[5.0, 0]], [[5.0, 0]], [[5.0, 0]]])
        >>> mx.simulate(mx.PatientConfident(0.2, patience=2), logits_MBC)
        tensor([3])
    """

    threshold: float = number(unit, scale=unit)
    patience: int = number(lambda known: (1, known.num_exits), whole="a whole number", least=1)

    def init(self, logits_BC: Tensor) -> State:
        need_classes(logits_BC.shape[-1], "PatientConfident")
        return {"count": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        confident_B = normalized_entropy(logits_BC) < self.threshold
        count_B = (state["count"] + 1) * confident_B
        return {"count": count_B}, count_B >= self.patience


@dataclass(frozen=True)
class FixedExit(ExitPolicy):
    """Stop every row at one exit (a static, shorter network).

    Args:
        exit: its index, counted from 0.

    Raises:
        ValueError: no whole number from 0; when it meets a model, an exit that isn't there.

    Example:
        >>> import torch, multiexit as mx
        >>> mx.simulate(mx.FixedExit(1), torch.zeros(3, 2, 4))
        tensor([1, 1])
    """

    reads: ClassVar[tuple[str, ...]] = ("decisions", "vectors")

    exit: int = number(
        lambda known: (0, known.num_exits - 1), whole="an index", least=0, within=True
    )

    def init(self, logits_BC: Tensor) -> State:
        return {"index": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        return {"index": state["index"] + 1}, state["index"] >= self.exit

    def with_exits(self, exits: Sequence[int]) -> "FixedExit | None":
        return FixedExit(exits.index(self.exit)) if self.exit in exits else None
