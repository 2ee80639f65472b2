"""How the weights Ω of the loss terms are learned: what each learner computes of their gradient.

Equations, algorithms and sections without another name are those of Zhu, "LeeBERT", ACL 2021.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from multiexit.losses import matrix
from multiexit.losses.criterion import Criterion
from multiexit.losses.weights.names import ASCENDING, PARAMETRIZATIONS
from multiexit.losses.weights.parametrisations import FixedWeights, LossWeights


class Plan(NamedTuple):
    """The parts of Ω's gradient at one step of Θ.

        g = a·∂L_B1(Θ_t) + b·∂L_B1(Θ_t+1) + c·∂L_B2(Θ_t+1) + h·d outer_B2(Θ_t+1(Ω)) / dΩ

    All zero: Ω stays.

    Args:
        stepping: a, of the loss that Θ's own step computed on B1; it costs nothing.
        first: b, of the loss on B1 after the step: one forward pass without gradient.
        second: c, of the loss on B2 after the step: one forward pass without gradient.
        hyper: h, of the gradient through Θ's step: a gradient on B2 and a forward-mode pass on B1.

    Example:
        CLO-v2 at the last step of its cycle, with ρ = 0.5:

        >>> import multiexit as mx
        >>> mx.weights.CLO2(cycle=4).plan(3, rho=0.5)
        Plan(stepping=0.0, first=0.5, second=1.0, hyper=0.0)
    """

    stepping: float = 0.0
    first: float = 0.0
    second: float = 0.0
    hyper: float = 0.0


@dataclass(frozen=True)
class Learner(ABC):
    """A way to learn Ω beside Θ. Subclass it, answer `plan`, and it works in any recipe.

    Args:
        parametrization: a name of `multiexit.weights.PARAMETRIZATIONS`.

    Raises:
        ValueError: another parametrisation, or one that ascends beside hypergradients.

    Example:
        Ω follows the loss on B2 at every other step:

        >>> from dataclasses import dataclass
        >>> import multiexit as mx
        >>> @dataclass(frozen=True)
        ... class EveryOther(mx.weights.Learner):
        ...     def plan(self, step, rho):
        ...         return mx.weights.Plan(second=float(step % 2))
        >>> mx.recipes.leebert(learner=EveryOther()).phases[0].learner
        EveryOther(parametrization='softmax')
    """

    splits: ClassVar[bool] = True
    """Whether the training set is cut 5:5 into D1 and D2 at each epoch's start."""
    learns: ClassVar[bool] = True
    """Whether Ω changes at all."""
    weighs_rows: ClassVar[bool] = False
    """Whether its weights are `RowWeights`."""
    looks_back: ClassVar[bool] = False
    """Whether its plans ask for hypergradients."""

    parametrization: str = "softmax"

    def __post_init__(self) -> None:
        if self.parametrization not in PARAMETRIZATIONS:
            raise ValueError(
                f"no parametrization {self.parametrization!r}; there are {sorted(PARAMETRIZATIONS)}"
            )
        if self.looks_back and self.parametrization in ASCENDING:
            raise ValueError(
                f"parametrization={self.parametrization!r} ascends the loss, and "
                f"{type(self).__name__} follows a hypergradient, which it would make worse: use "
                "'softmax', or another learner, such as SLO"
            )

    def weights(self, teaches_MM: Tensor, seed: int) -> LossWeights:
        """Make a new Ω.

        Args:
            teaches_MM: who teaches whom, bool [M, M].
            seed: of weights that are drawn.
        """
        return PARAMETRIZATIONS[self.parametrization](teaches_MM)

    def outer(
        self, logits_MBC: Tensor, labels_B: Tensor, criterion: Criterion | None = None
    ) -> Tensor:
        """The loss that a hypergradient is to make small: Σ_m CE_m on D2, all exits counting 1.

        Args:
            logits_MBC: the exits' logits on a batch of D2, [M, B, C], after Θ's step.
            labels_B: its labels [B].
            criterion: what they mean, as for `multiexit.loss_matrix`.

        Returns:
            A scalar.
        """
        return matrix.row_losses(logits_MBC, labels_B, criterion).mean(1).sum()

    @abstractmethod
    def plan(self, step: int, rho: float) -> Plan:
        """Say what Ω does at a step of Θ.

        Args:
            step: of the phase, counted from 0.
            rho: ρ = λ1 / λ2, Θ's learning rate divided by Ω's.
        """


@dataclass(frozen=True)
class Uniform(Learner):
    """Every weight stays 1 (LeeBERT-uniform, section 4.4).

    Example:
        >>> import multiexit as mx
        >>> mx.weights.Uniform().weights(mx.topology.lae(2), seed=0)().tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    splits: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def weights(self, teaches_MM: Tensor, seed: int) -> LossWeights:
        return FixedWeights(torch.ones(teaches_MM.shape))

    def plan(self, step: int, rho: float) -> Plan:
        return Plan()


@dataclass(frozen=True)
class Random(Uniform):
    """Integers from 1..50, normalised so that each exit's weights sum to 1 (section 4.4).

    Example:
        >>> import multiexit as mx
        >>> W_MM = mx.weights.Random().weights(mx.topology.lle(3), seed=0)()
        >>> W_MM.sum(1).round(decimals=4), bool(W_MM[2, 0] == 0)  # nobody teaches the last exit
        (tensor([1., 1., 1.]), True)
    """

    def weights(self, teaches_MM: Tensor, seed: int) -> LossWeights:
        generator = torch.Generator().manual_seed(seed)
        integers = torch.randint(1, 51, teaches_MM.shape, generator=generator)
        counts_MM = teaches_MM | torch.eye(len(teaches_MM), dtype=torch.bool)
        drawn_MM = integers * counts_MM
        return FixedWeights(drawn_MM / drawn_MM.sum(1, keepdim=True))


@dataclass(frozen=True)
class SLO(Learner):
    """Single-level: Ω follows the same loss on the same batch as Θ; D1 = D2 = all (eq. 7).

    Example:
        >>> import multiexit as mx
        >>> mx.weights.SLO().plan(0, rho=0.5), mx.weights.SLO().splits
        (Plan(stepping=1.0, first=0.0, second=0.0, hyper=0.0), False)
    """

    splits: ClassVar[bool] = False

    def plan(self, step: int, rho: float) -> Plan:
        return Plan(stepping=1.0)


@dataclass(frozen=True)
class BLO(Learner):
    """Bi-level, first order: Θ on B1, then Ω on B2 with the new Θ (eq. 8; DARTS 2019).

    Example:
        >>> import multiexit as mx
        >>> mx.weights.BLO().plan(0, rho=0.5)
        Plan(stepping=0.0, first=0.0, second=1.0, hyper=0.0)
    """

    def plan(self, step: int, rho: float) -> Plan:
        return Plan(second=1.0)


@dataclass(frozen=True)
class CLO1(Learner):
    """Cross-level, v1: Θ on B1, then Ω on ρ·L_B1 + L_B2 with the new Θ (eq. 9, Algorithm 1).

    Args:
        rho: ρ; None is λ1 / λ2, the paper to the letter.
        fresh: L_B1 is that of the new Θ, a forward pass more; if not, that which Θ's own step
            had, as on Algorithm 2's other steps.

    Raises:
        ValueError: a ρ below 0 or infinite.

    Example:
        >>> import multiexit as mx
        >>> mx.weights.CLO1().plan(0, rho=0.5)
        Plan(stepping=0.0, first=0.5, second=1.0, hyper=0.0)
        >>> mx.weights.CLO1(fresh=False).plan(0, rho=0.5)
        Plan(stepping=0.5, first=0.0, second=1.0, hyper=0.0)
    """

    rho: float | None = None
    fresh: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rho(self.rho)

    def plan(self, step: int, rho: float) -> Plan:
        return _cross_level_plan(rho if self.rho is None else self.rho, self.fresh)


@dataclass(frozen=True)
class CLO2(Learner):
    """Cross-level, v2: v1 at every C-th step only (section 3.4, Algorithm 2).

    Args:
        rho: ρ; None is λ1 / λ2.
        cycle: C, the cross-level cycle's length.
        in_cycle: on the other C − 1 steps Ω follows ρ·L_B1 too (Algorithm 2), or stays (the text
            of section 3.4).
        fresh: as for `CLO1`, at every C-th step.

    Raises:
        ValueError: a ρ below 0 or infinite, or a cycle that is no whole number from 1.

    Example:
        >>> import multiexit as mx
        >>> clo = mx.weights.CLO2(cycle=3)
        >>> [clo.plan(step, rho=0.5).second for step in range(6)]
        [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    """

    rho: float | None = None
    cycle: int = 4
    in_cycle: bool = True
    fresh: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rho(self.rho)
        check_cycle(self.cycle)

    def plan(self, step: int, rho: float) -> Plan:
        rho = rho if self.rho is None else self.rho
        if (step + 1) % self.cycle == 0:
            return _cross_level_plan(rho, self.fresh)
        return Plan(stepping=rho) if self.in_cycle else Plan()


@dataclass(frozen=True)
class Hyper(Learner):
    """Ω follows the gradient of Σ_m CE_m on B2 through Θ's own step on B1.

        dΩ = d/dΩ Σ_m CE_m(B2; Θ_t+1(Ω)),    Θ_t+1(Ω) = Θ_t − step(∇_Θ (W(Ω) ∘ A ∘ L_B1).sum())

    exactly, for one step of SGD or AdamW (see `multiexit.losses.weights.hypergradient`), where BLO
    and CLO take Θ_t+1 as if it didn't depend on Ω. The outer loss has no weights, or Ω would shrink
    it by itself.

    Args:
        cycle: Ω moves at every so many steps.

    Raises:
        ValueError: a cycle that is no whole number from 1.

    Example:
        >>> import multiexit as mx
        >>> [mx.weights.Hyper(cycle=2).plan(step, rho=0.5).hyper for step in range(4)]
        [0.0, 1.0, 0.0, 1.0]
    """

    looks_back: ClassVar[bool] = True
    cycle: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cycle(self.cycle)

    def plan(self, step: int, rho: float) -> Plan:
        return Plan(hyper=1.0) if (step + 1) % self.cycle == 0 else Plan()


def _cross_level_plan(rho: float, fresh: bool) -> Plan:
    """ρ·L_B1 + L_B2 (eq. 9)."""
    return Plan(first=rho, second=1.0) if fresh else Plan(stepping=rho, second=1.0)


def check_cycle(cycle: int) -> None:
    """Refuse a cycle that is no whole number from 1, by a ValueError."""
    if not isinstance(cycle, int) or cycle < 1:
        raise ValueError(f"cycle must be a whole number from 1, got {cycle!r}")


def _check_rho(rho: float | None) -> None:
    if rho is not None and not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho must be a number from 0, or None for λ1 / λ2, got {rho}")
