"""How soft teachers are while training goes on. State in, state out; M exits, B rows, C classes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Mean = Callable[[Tensor], Tensor]


def alone(value: Tensor) -> Tensor:
    """The mean over one process."""
    return value


@dataclass(frozen=True)
class Temperature(ABC):
    """A rule for τ. The value is a tensor on the device where it changes, a float where not."""

    value: float = 1.0

    def __post_init__(self) -> None:
        number = isinstance(self.value, int | float)
        if not (number and math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"temperature must be a number above 0, got {self.value!r}")

    @abstractmethod
    def start(self, device: torch.device) -> float | Tensor:
        """τ before the first batch."""

    @abstractmethod
    def after(
        self,
        current: float | Tensor,
        logits_MBC: Tensor,
        mean: Mean = alone,
    ) -> float | Tensor:
        """τ after a batch on which the exits said this; `mean` averages over processes."""


@dataclass(frozen=True)
class Constant(Temperature):
    """τ stays."""

    def start(self, device: torch.device) -> float:
        return self.value

    def after(
        self,
        current: float | Tensor,
        logits_MBC: Tensor,
        mean: Mean = alone,
    ) -> float | Tensor:
        return current


@dataclass(frozen=True)
class Rising(Temperature):
    """τ grows by `factor` after each batch on which the last exit's mean max p exceeds `above`.

    So that the teacher, while it grows surer, never teaches with near-hard labels.
    Reference: Phuong & Lampert, "Distillation-Based Training for Multi-Exit Architectures",
    ICCV 2019, section 3.3, and its code.
    """

    factor: float = 1.05
    above: float = 0.5

    def start(self, device: torch.device) -> Tensor:
        return torch.tensor(self.value, device=device)

    def after(
        self,
        current: float | Tensor,
        logits_MBC: Tensor,
        mean: Mean = alone,
    ) -> Tensor:
        soft_BC = (logits_MBC[-1].detach().float() / current).softmax(-1)
        sure = mean(soft_BC.amax(-1).mean()) > self.above
        return torch.where(sure, current * self.factor, torch.as_tensor(current))
