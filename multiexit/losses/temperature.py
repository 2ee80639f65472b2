"""Distillation temperatures τ while training goes on: state in, state out.

Letters: M exits, N decisions of a batch (its rows, where a row is one), K classes of each.
"""

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
    """A rule for τ. The value is a tensor on the device where it changes, a float where not.

    Args:
        value: τ before the first batch, above 0.

    Raises:
        ValueError: no number above 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        number = isinstance(self.value, int | float)
        if not (number and math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"temperature must be a number above 0, got {self.value!r}")

    @abstractmethod
    def start(self, device: torch.device) -> float | Tensor:
        """Give τ before the first batch: a float, or a tensor without dimensions on the device."""

    @abstractmethod
    def after(
        self,
        current: float | Tensor,
        logits_MNK: Tensor,
        mean: Mean = alone,
    ) -> float | Tensor:
        """Give τ after a batch.

        Args:
            current: τ of this batch, as `start` or the last `after` gave it.
            logits_MNK: what the exits said on it, by decision (`multiexit.problems`): [M, N, K],
                of classification [M, B, C].
            mean: averages a tensor over processes.

        Returns:
            τ of the next batch: a float, or a tensor without dimensions.
        """


@dataclass(frozen=True)
class Constant(Temperature):
    """τ stays.

    Args:
        value: τ, above 0.

    Example:
        >>> import torch
        >>> from multiexit.losses.temperature import Constant
        >>> Constant(4.0).after(4.0, torch.zeros(2, 5, 3))
        4.0
    """

    def start(self, device: torch.device) -> float:
        return self.value

    def after(
        self,
        current: float | Tensor,
        logits_MNK: Tensor,
        mean: Mean = alone,
    ) -> float | Tensor:
        return current


@dataclass(frozen=True)
class Rising(Temperature):
    """τ grows by `factor` after each batch on which the last exit's mean max p exceeds `above`.

    A teacher that grows surer while it learns is softened, so that it never teaches with near-hard
    labels.

    Args:
        value: τ before the first batch, above 0.
        factor: by which τ grows.
        above: a probability, of p softened by the present τ.

    Example:
        >>> import torch
        >>> from multiexit.losses.temperature import Rising
        >>> rule = Rising(factor=2.0)
        >>> tau = rule.start(torch.device("cpu"))
        >>> sure, unsure = torch.tensor([[[9.0, 0.0]]]), torch.zeros(1, 1, 2)
        >>> rule.after(tau, sure), rule.after(tau, unsure)
        (tensor(2.), tensor(1.))

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
        logits_MNK: Tensor,
        mean: Mean = alone,
    ) -> Tensor:
        soft_NK = (logits_MNK[-1].detach().float() / current).softmax(-1)
        sure = mean(soft_NK.amax(-1).mean()) > self.above
        return torch.where(sure, current * self.factor, torch.as_tensor(current))
