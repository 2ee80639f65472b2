"""Policies that count exits.

Letters: M exits, B batch rows, C classes. Exits are counted from 0. H is entropy in nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multiexit.policies.base import ExitPolicy, State, need_classes
from multiexit.policies.confidence import normalized_entropy
from multiexit.policies.numbers import Known, number, unit


def _changes(known: Known) -> tuple[float, float] | None:
    """By how much a regression's value may change; classes have no such number."""
    return (0.0, known.apart) if known.num_classes == 1 else None


@dataclass(frozen=True)
class Patience(ExitPolicy):
    """Stop when an answer has stayed the same `patience` times in a row (PABEE 2020).

    The counter rises when an exit agrees with the one before and falls to 0 when not. With
    patience p the exit of index p, the (p+1)-th, is the earliest.

    Args:
        patience: how many agreements, at least 1.
        tolerance: for regression (C = 1): agreement is |y_m − y_(m−1)| < tolerance.
    """

    patience: int = number(
        lambda known: (1, max(1, known.num_exits - 1)), whole="a whole number", least=1
    )
    tolerance: float | None = number(_changes, default=None, least=0)

    def init(self, logits_BC: Tensor) -> State:
        if self.tolerance is None:
            need_classes(logits_BC, "Patience without a tolerance")
        elif logits_BC.shape[1] != 1:
            raise ValueError(
                f"tolerance={self.tolerance} is for regression (one output); these logits have "
                f"{logits_BC.shape[1]} classes: leave it out"
            )
        answer_B = self._answer(logits_BC)
        never = -1 if self.tolerance is None else math.nan
        return {
            "answer": torch.full_like(answer_B, never),
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
    """Stop at `patience` confident exits in a row: H(p) / log C < threshold (PCEE 2022)."""

    threshold: float = number(unit)
    patience: int = number(lambda known: (1, known.num_exits), whole="a whole number", least=1)

    def init(self, logits_BC: Tensor) -> State:
        need_classes(logits_BC, "PatientConfident")
        return {"count": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        confident_B = normalized_entropy(logits_BC) < self.threshold
        count_B = (state["count"] + 1) * confident_B
        return {"count": count_B}, count_B >= self.patience


@dataclass(frozen=True)
class FixedExit(ExitPolicy):
    """Everyone stops at the exit of this index, counted from 0 (a static, shorter network)."""

    exit: int = number(
        lambda known: (0, known.num_exits - 1), whole="an index", least=0, within=True
    )

    def init(self, logits_BC: Tensor) -> State:
        return {"index": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        return {"index": state["index"] + 1}, state["index"] >= self.exit
