"""Rows that stop by policies of their own, in one batch.

Letters: B batch rows, C classes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from multiexit.policies.base import ROW, ExitPolicy, State
from multiexit.policies.base import answer as checked_answer
from multiexit.policies.base import step as checked_step
from multiexit.policies.registry import POLICIES, field_types, policy_name, to_json

KIND = f"{ROW}kind"

Numbers = dict[str, int | float]
"""Fields that are numbers, whole ones as int."""


def numbers_of(policy: ExitPolicy) -> Numbers:
    """The policy's numbers; None, tuples, true and false are none.

    >>> import multiexit as mx
    >>> numbers_of(mx.PatientConfident(0.2, patience=3))
    {'threshold': 0.2, 'patience': 3}
    """
    numbers: Numbers = {}
    for field, field_type in field_types(type(policy)).items():
        value = getattr(policy, field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[field] = value if field_type is int else float(value)
    return numbers


def row_numbers(policy: ExitPolicy) -> Numbers:
    """The numbers in which policies of one kind may differ: those of the library's own policies.

    What another class would do with a number for each row can't be known, so that other numbers
    make another kind.
    """
    return numbers_of(policy) if type(policy) in POLICIES.values() else {}


def with_numbers(policy: ExitPolicy, numbers: Mapping[str, Tensor]) -> ExitPolicy:
    """The policy with tensors in place of numbers."""
    changed = copy.copy(policy)
    for field, number in numbers.items():
        object.__setattr__(changed, field, number)
    return changed


def kinds_of(policies: Sequence[ExitPolicy]) -> tuple[ExitPolicy, ...]:
    """One policy of each kind among these, in their order."""
    return tuple({_kind(policy): policy for policy in reversed(policies)}.values())[::-1]


@dataclass(frozen=True)
class PerRow(ExitPolicy):
    """Each row stops by its own policy: of one of these kinds, with its own numbers.

    What is each row's own lies in the state, so that rows of different batches can be merged:
    `row_state` makes it, before the first exit.

    Args:
        kinds: policies, whose numbers are in the place of each row's.

    Example:
        >>> import torch
        >>> from multiexit.policies import FixedExit, MaxProb
        >>> own = [MaxProb(0.9), MaxProb(0.7), FixedExit(0)]
        >>> policy = PerRow(kinds_of(own))
        >>> logits_BC = torch.tensor([[1.5, 0], [1.5, 0], [0, 0]])  # max p is 0.82, 0.82 and 0.5
        >>> state = {**policy.row_state(own, "cpu"), **policy.init(logits_BC)}
        >>> policy.step(state, logits_BC)[1]
        tensor([False,  True,  True])
    """

    kinds: tuple[ExitPolicy, ...]

    def row_state(self, policies: Sequence[ExitPolicy], device: torch.device | str) -> State:
        """What each row's policy adds to its state.

        Args:
            policies: a row's each, B in all.
            device: of the state.

        Raises:
            ValueError: a policy of another kind.
        """
        kinds = [_kind(kind) for kind in self.kinds]
        kind_B: list[int] = []
        for policy in policies:
            if (own := _kind(policy)) not in kinds:
                forms = ", ".join(map(_form, self.kinds))
                raise ValueError(
                    f"the policy {policy_name(policy)} is of none of the kinds {forms}"
                )
            kind_B.append(kinds.index(own))
        state = {KIND: torch.tensor(kind_B)} if len(kinds) > 1 else {}
        for k, kind in enumerate(self.kinds):
            for name, default in row_numbers(kind).items():
                number_B = [
                    getattr(policy, name) if own == k else default
                    for policy, own in zip(policies, kind_B, strict=True)
                ]
                dtype = torch.long if isinstance(default, int) else torch.float64
                state[f"{ROW}{k}.{name}"] = torch.tensor(number_B, dtype=dtype)
        return {name: value.to(device) for name, value in state.items()}

    def init(self, logits_BC: Tensor) -> State:
        return {
            f"{k}.{name}": value
            for k, kind in enumerate(self.kinds)
            for name, value in kind.init(logits_BC).items()
        }

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        after = {name: value for name, value in state.items() if name.startswith(ROW)}
        stop_B = logits_BC.new_zeros(len(logits_BC), dtype=torch.bool)
        for k in range(len(self.kinds)):
            policy, own = self._own(state, k, logits_BC.dtype)
            own, stops_B = checked_step(policy, own, logits_BC)
            stop_B = stop_B | stops_B & self._are(state, k)
            after |= {f"{k}.{name}": value for name, value in own.items()}
        return after, stop_B

    def answer(self, state: State, logits_BC: Tensor) -> Tensor:
        answer_BC = logits_BC
        for k in range(len(self.kinds)):
            policy, own = self._own(state, k, logits_BC.dtype)
            own_BC = checked_answer(policy, own, logits_BC)
            are_B = self._are(state, k)
            if isinstance(are_B, bool):
                return own_BC
            if own_BC is not logits_BC:
                answer_BC = torch.where(are_B[:, None], own_BC, answer_BC)
        return answer_BC

    def _own(self, state: State, k: int, dtype: torch.dtype) -> tuple[ExitPolicy, State]:
        """The policies of one kind with their rows' numbers, and their state.

        Fractions are as fine as the logits, as a number of Python's is beside them.
        """
        start, numbers = f"{k}.", f"{ROW}{k}."
        own = {name.removeprefix(start): x for name, x in state.items() if name.startswith(start)}
        if "certainty" in state:
            own["certainty"] = state["certainty"]
        turned = {
            name.removeprefix(numbers): x.to(dtype) if x.is_floating_point() else x
            for name, x in state.items()
            if name.startswith(numbers)
        }
        return with_numbers(self.kinds[k], turned), own

    def _are(self, state: State, k: int) -> Tensor | bool:
        """Which rows are of a kind."""
        return state[KIND] == k if KIND in state else True


def _form(policy: ExitPolicy) -> str:
    """A policy's kind as it is typed, with words in the place of numbers."""
    return policy_name({**to_json(policy), **{name: name.upper() for name in row_numbers(policy)}})


def _kind(policy: ExitPolicy) -> tuple[object, ...]:
    """All of a policy but its numbers, to be compared."""
    numbers = row_numbers(policy)
    others = [(f.name, getattr(policy, f.name)) for f in fields(policy) if f.name not in numbers]
    return (type(policy), *numbers, repr(others))
