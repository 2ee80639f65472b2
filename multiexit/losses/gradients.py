"""Changes of gradients between the loss and the optimiser.

A *branch* scales them where an exit leaves the trunk. *Surgery* takes the loss apart, looks at
each part's gradient, and puts them together. Letters: M exits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from multiexit.arguments import unknown

Branch = Callable[[int, int], tuple[float, float]]
"""`(exit m, M) -> (factor of exit m's gradient into the trunk, factor of what comes from behind)`.
Exits are counted from 0."""


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grads[0], None


def scale(tree: Any, factor: float) -> Any:
    """The same values; gradients through them are multiplied by the factor.

    Args:
        tree: a tensor, or a dict of these and dicts; anything else comes back as it is.
        factor: of the gradients.

    Returns:
        The same structure, with the same values and shapes.

    Example:
        >>> import torch, multiexit as mx
        >>> x = torch.ones(2, requires_grad=True)
        >>> (2 * mx.gradients.scale(x, 0.5)).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    if isinstance(tree, Tensor):
        return _Scale.apply(tree, factor) if tree.requires_grad else tree
    if isinstance(tree, dict):
        return {key: scale(value, factor) for key, value in tree.items()}
    return tree


def equilibrium(exit: int, M: int) -> tuple[float, float]:
    """1 / (M − m + 1) from exit m, (M − m) / (M − m + 1) from behind it, m = 1..M.

    So each exit's gradient arrives in the trunk as 1/M of what it is at its exit, whatever lies
    between, and the sum's variance stays level over depth.

    Args:
        exit: m − 1, counted from 0.
        M: how many exits there are.

    Returns:
        The factor of the exit's own gradient into the trunk, and of what comes from behind it.

    Example:
        >>> import multiexit as mx
        >>> [mx.gradients.equilibrium(exit, 4) for exit in (0, 2, 3)]
        [(0.25, 0.75), (0.5, 0.5), (1.0, 0.0)]

    Reference: Li et al., "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019,
    section 3.1; Liu et al., "ElasticBERT", NAACL 2022, section 3.2.
    """
    behind = M - exit - 1
    return 1 / (behind + 1), behind / (behind + 1)


@dataclass(frozen=True)
class Surgery(ABC):
    """Takes a loss apart and puts its parts' gradients together. Subclass it as a dataclass.

    A phase that has one goes backward once for each part.

    Example:
        Labels and teachers apart, each of which moves a parameter by 1 at most:

        >>> import torch, multiexit as mx
        >>> class Clipped(mx.gradients.Surgery):
        ...     def split(self, factors_MM):
        ...         return [factors_MM.diag().diag(), factors_MM - factors_MM.diag().diag()]
        ...     def merge(self, parts, shared):
        ...         return [sum(g.clamp(-1, 1) for g in same) for same in zip(*parts)]
        >>> Clipped().merge([[torch.tensor([3.0, 0])], [torch.tensor([0.0, 0.5])]], [False])
        [tensor([1.0000, 0.5000])]
    """

    @abstractmethod
    def split(self, factors_MM: Tensor) -> list[Tensor]:
        """Cut the factors of the loss terms into parts that sum to them.

        Args:
            factors_MM: W∘A, float32 [M, M], row = student, column = teacher.

        Returns:
            The parts, each [M, M]: one backward pass each.
        """

    @abstractmethod
    def merge(self, parts: Sequence[Sequence[Tensor]], shared: Sequence[bool]) -> list[Tensor]:
        """Put the parts' gradients together.

        Args:
            parts: each part's gradients, a tensor per parameter, in its shape.
            shared: per parameter, whether it is a weight matrix of the trunk that an early exit
                and the last both use.

        Returns:
            The gradient to step along, a tensor per parameter, in its shape.
        """


@dataclass(frozen=True)
class Conflictless(Surgery):
    """The last exit and the early ones don't pull shared weights against each other.

    With g the gradient of the last exit's terms and e that of all others, each over all shared
    weight matrices as one vector,

        e ← e − min(0, ⟨e, g⟩ / ‖g‖²)·g,    step along g + e;

    whatever is not shared gets the plain sum.

    Reference: Geng et al., "RomeBERT: Robust Training of Multi-Exit BERT", 2021, section 3.3, and
    its code; Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020.

    Args:
        anchor: whose gradient stays: `"last"`, or `"early"`, as its code has it on small tasks.

    Raises:
        ValueError: another anchor.

    Example:
        The early exits' (−1, 1) loses what it has against the last exit's (1, 0):

        >>> import torch, multiexit as mx
        >>> last, early = [torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]
        >>> mx.gradients.Conflictless().merge([last, early], shared=[True])
        [tensor([1., 1.])]
    """

    anchor: Literal["last", "early"] = "last"

    def __post_init__(self) -> None:
        if self.anchor not in ("last", "early"):
            raise ValueError(f"anchor must be 'last' or 'early', got {self.anchor!r}")

    def split(self, factors_MM: Tensor) -> list[Tensor]:
        last_MM = torch.zeros_like(factors_MM)
        last_MM[-1] = factors_MM[-1]
        parts = [last_MM, factors_MM - last_MM]
        return parts if self.anchor == "last" else parts[::-1]

    def merge(self, parts: Sequence[Sequence[Tensor]], shared: Sequence[bool]) -> list[Tensor]:
        pairs = list(zip(*parts, strict=True))
        shared_pairs = [pair for pair, common in zip(pairs, shared, strict=True) if common]
        if not shared_pairs:
            return [g + e for g, e in pairs]
        dot = torch.stack([(g * e).sum() for g, e in shared_pairs]).sum()
        norm = torch.stack([g.square().sum() for g, _ in shared_pairs]).sum()
        projection = (dot / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=0)
        return [
            g + e - projection * g if common else g + e
            for (g, e), common in zip(pairs, shared, strict=True)
        ]


AGGREGATORS: dict[str, tuple[str, dict[str, float], bool]] = {
    "upgrad": ("UPGrad", {}, True),
    "pcgrad": ("PCGrad", {}, False),
    "cagrad": ("CAGrad", {"c": 0.5}, True),
}
"""By name: TorchJD's class, its settings, and whether it gives a mean rather than a sum."""

NEEDED = {"upgrad": "quadprog", "pcgrad": "torchjd", "cagrad": "cvxpy"}
"""The library that each can't do without, TorchJD aside."""


@dataclass(frozen=True)
class Aggregation(Surgery):
    """The exits' gradients by shared weights are put together by an aggregator of TorchJD.

    With J the matrix of the exits' gradients, a row for each exit's terms, over all shared weight
    matrices as one vector,

        step along A(J);    whatever is not shared gets the plain sum, 1ᵀJ.

    A is scaled so that A(J) = 1ᵀJ where no two exits pull against each other (`"upgrad"`,
    `"pcgrad"`); `"cagrad"` turns towards the worst exit even then, by a radius of c = 0.5. Each
    step goes backward once for each exit, and keeps as many gradients of Θ.

    Reference: `"upgrad"`, Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization",
    2024, whose library this is; `"pcgrad"`, Yu et al., "Gradient Surgery for Multi-Task Learning",
    NeurIPS 2020; `"cagrad"`, Liu et al., "Conflict-Averse Gradient Descent for Multi-task
    Learning", NeurIPS 2021.

    Args:
        method: `"upgrad"`, `"pcgrad"` or `"cagrad"`.

    Raises:
        ValueError: another method, or a library that isn't installed.

    Example:
        >>> import multiexit as mx
        >>> mx.gradients.Aggregation("mean")
        Traceback (most recent call last):
        ValueError: no aggregation 'mean'; there are cagrad, pcgrad, upgrad
    """

    method: str = "upgrad"

    def __post_init__(self) -> None:
        if self.method not in AGGREGATORS:
            raise unknown("aggregation", self.method, sorted(AGGREGATORS))
        lacking = [name for name in ("torchjd", NEEDED[self.method]) if find_spec(name) is None]
        if lacking:
            raise ValueError(
                f"aggregation {self.method!r} needs {lacking[0]}, which isn't installed: "
                "pip install 'torchjd[quadprog-projector,cagrad]'"
            )

    def split(self, factors_MM: Tensor) -> list[Tensor]:
        M = len(factors_MM)
        exits = torch.eye(M, dtype=factors_MM.dtype, device=factors_MM.device)
        return [exits[m].diag() @ factors_MM for m in range(M)]

    def merge(self, parts: Sequence[Sequence[Tensor]], shared: Sequence[bool]) -> list[Tensor]:
        summed = [torch.stack(same).sum(0) for same in zip(*parts, strict=True)]
        places = [index for index, common in enumerate(shared) if common]
        if not places:
            return summed
        J_MP = torch.stack([torch.cat([part[i].flatten() for i in places]) for part in parts])
        total = J_MP.sum()
        if not total.isfinite():  # fp16 overflowed: the step is left out
            return summed
        kind, settings, is_mean = AGGREGATORS[self.method]
        aggregator = getattr(import_module("torchjd.aggregation"), kind)(**settings)
        # What PCGrad draws is the same on all processes, which have the same J.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(total.double().view(torch.int64)) % 2**63)
            merged_P = aggregator(J_MP.float()).to(J_MP) * (len(parts) if is_mean else 1)
        pieces = merged_P.split([summed[i].numel() for i in places])
        for i, piece in zip(places, pieces, strict=True):
            summed[i] = piece.view_as(summed[i])
        return summed
