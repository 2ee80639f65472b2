"""The base of exit policies.

A policy sees the exits one after another and says which rows stop. Its state is a dict of
batch-first tensors, so rows that stopped can be dropped from it like from everything else.

Letters: M exits, B batch rows, C classes. Exits are counted from 0. H is entropy in nats.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from multiexit.policies.certificate import Certificate
from multiexit.policies.numbers import Number, plain

State = dict[str, Tensor]

ROW = "row."
"""Begins the names of a state's entries that are of a row, however many decisions it holds."""


@dataclass(frozen=True)
class ExitPolicy(ABC):
    """Decides, exit after exit, which rows stop. Subclass it as a frozen dataclass.

    Whoever runs the policy ends everyone at the last exit; the policy need not know which it is.
    A row's decision may depend on that row alone, so that it is the same in any batch. A number of
    numpy or torch becomes Python's own, and fields made by `multiexit.policies.number` are checked.

    Raises:
        ValueError: a number that its field may not be.

    Example:
        Stop where the largest logit is large:

        >>> from dataclasses import dataclass, fields
        >>> import torch, multiexit as mx
        >>> @dataclass(frozen=True)
        ... class Loud(mx.ExitPolicy):
        ...     least: float
        ...     def init(self, logits_BC): return {}
        ...     def step(self, state, logits_BC): return state, logits_BC.amax(1) >= self.least
        >>> mx.simulate(Loud(2.0), torch.tensor([[[3.0, 0], [1, 0]], [[3, 0], [3, 0]]]))
        tensor([0, 1])
    """

    certificate: ClassVar[Certificate | None] = None
    """Its certificate, if it has one. It is no field: other numbers make a policy that has none."""
    reads: ClassVar[tuple[str, ...]] = ("decisions",)
    """What outputs it can go by: `"decisions"`, logits of classes or numbers; `"vectors"`, those of
    an embedding. Any other model is refused."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, rule = plain(getattr(self, f.name)), f.metadata.get(Number)
            object.__setattr__(self, f.name, value)
            if rule is not None and value is not f.default:
                rule.check(f.name, value)

    @abstractmethod
    def init(self, logits_BC: Tensor) -> State:
        """Make the state before the first exit, to fit the first exit's logits [B, C].

        Raises:
            ValueError: logits that the policy can't go by, such as those of regression.
        """

    @abstractmethod
    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        """Look at one exit, the first included.

        Args:
            state: batch-first tensors, as `init` or the last `step` gave them. Where the heads
                learn to exit, `state["certainty"]` [B] is how sure this exit is, in 0..1.
            logits_BC: this exit's logits [B, C].

        Returns:
            The new state, and stop_B, bool [B].
        """

    def answer(self, state: State, logits_BC: Tensor) -> Tensor:
        """Give the logits [B, C] that rows leaving here take along: this exit's, unless overridden.

        Asked after `step`; but at the last exit there is none, and `state` has seen only the exits
        before it. So an answer of all exits so far takes in `logits_BC` where `step` didn't yet.
        """
        return logits_BC

    def with_exits(self, exits: Sequence[int]) -> Self | None:
        """Make the same policy for a model that keeps these of its exits alone.

        Args:
            exits: indices of the exits that stay, rising.

        Returns:
            The policy itself, unless overridden; None where it would mean another one, as with a
            number per exit.
        """
        return None if per_exit(self) else self

    def with_certificate(self, certificate: Certificate | None) -> Self:
        """Make the same policy with this certificate, saved and loaded with it, or with none."""
        certified = copy.copy(self)
        object.__setattr__(certified, "certificate", certificate)
        return certified


def step(
    policy: ExitPolicy,
    state: State,
    logits_BC: Tensor,
    certainty_B: Tensor | None = None,
    asked_BT: Tensor | None = None,
) -> tuple[State, Tensor]:
    """Run `policy.step`, and check its answer.

    Args:
        policy: any `ExitPolicy`.
        state: as its `init` or the last step gave it.
        logits_BC: this exit's logits [B, C].
        certainty_B: how sure this exit is, in 0..1, of heads that learn to exit.
        asked_BT: which tokens are asked for, where a row is a decision per token.

    Returns:
        The new state, and stop_B, bool [B].

    Raises:
        ValueError: no pair, a stop that is no bool tensor [B], or a state that isn't batch-first.
    """
    if certainty_B is not None:
        state = {**state, "certainty": certainty_B.float()}
    if asked_BT is not None:
        state = {**state, "asked": asked_BT}
    answer = policy.step(state, logits_BC.clone())  # it may work in place
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(
            f"{type(policy).__name__}.step must return (state, stop), got {type(answer).__name__}"
        )
    state, stop_B = answer
    B = len(logits_BC)
    if not isinstance(stop_B, Tensor) or stop_B.dtype != torch.bool or stop_B.shape != (B,):
        raise ValueError(
            f"{type(policy).__name__}.step must return (state, stop) with stop a torch.bool tensor "
            f"of shape ({B},); got {_shown(stop_B)}"
        )
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (B,):
            raise ValueError(
                f"{type(policy).__name__}.step: state[{name!r}] must be a tensor with {B} rows, as "
                f"the logits have; got {_shown(value)}"
            )
    return state, stop_B


def answer(policy: ExitPolicy, state: State, logits_BC: Tensor) -> Tensor:
    """Run `policy.answer`, and check what it gives.

    Args:
        policy: any `ExitPolicy`.
        state: as its last step gave it.
        logits_BC: this exit's logits [B, C].

    Raises:
        ValueError: no logits of the same shape and type.
    """
    answer_BC = policy.answer(state, logits_BC)
    like = isinstance(answer_BC, Tensor) and answer_BC.dtype == logits_BC.dtype
    if not like or answer_BC.shape != logits_BC.shape:
        raise ValueError(
            f"{type(policy).__name__}.answer must return logits like those it is given, "
            f"{_shown(logits_BC)}; got {_shown(answer_BC)}"
        )
    return answer_BC


def _shown(value: Any) -> str:
    """A tensor's type and shape, the type of anything else."""
    return (
        f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    )


def need_classes(
    num_classes: int,
    what: str,
    instead: str = "Patience(patience, tolerance=…) or FixedExit",
) -> None:
    """Refuse regression, whose one output has no confidence.

    Args:
        num_classes: C, 1 for regression.
        what: needs classes, for the message.
        instead: what does for regression.

    Raises:
        ValueError: C is 1; with both.

    Example:
        >>> from multiexit.policies.base import need_classes
        >>> need_classes(1, "PKD", instead="Theseus")
        Traceback (most recent call last):
        ValueError: PKD needs at least 2 classes, got 1; for regression use Theseus
    """
    if num_classes < 2:
        raise ValueError(
            f"{what} needs at least 2 classes, got {num_classes}; for regression use {instead}"
        )


def per_exit(policy: ExitPolicy) -> bool:
    """Whether a policy has a number for each exit, in a tuple."""
    return any(isinstance(getattr(policy, field.name), tuple) for field in fields(policy))
