"""A policy's numbers as inputs of a graph, so that they can be turned where it runs.

Letters: B batch rows, C classes.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from multiexit import policies
from multiexit.policies import ExitPolicy
from multiexit.policies.numbers import Known, Number
from multiexit.serving.onnx.tracing import ANY, trace

Knobs = dict[str, int | float]
"""Fields that are numbers, whole ones as int."""


def policy_numbers(policy: ExitPolicy) -> Knobs:
    """The policy's numbers; None, tuples, true and false are none."""
    numbers: Knobs = {}
    for field, field_type in policies.field_types(type(policy)).items():
        value = getattr(policy, field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[field] = value if field_type is int else float(value)
    return numbers


def traceable(policy: ExitPolicy, numbers: Knobs, num_classes: int) -> Knobs:
    """Those that can be inputs of a graph: not what the policy's code decides by in Python.

    Args:
        policy: whose numbers they are.
        numbers: from `policy_numbers`.
        num_classes: of a decision of the model's rows (`multiexit.problems`).
    """
    if _traceable(policy, numbers, num_classes):
        return numbers
    return {
        field: number
        for field, number in numbers.items()
        if _traceable(policy, {field: number}, num_classes)
    }


def ranges(policy: ExitPolicy, names: Iterable[str], known: Known) -> dict[str, list[float]]:
    """The lowest and highest value of each number, where the policy's type says it.

    Args:
        policy: whose numbers they are.
        names: of its fields.
        known: about the model.

    Returns:
        By name, [lowest, highest], both included.
    """
    rules = {f.name: f.metadata.get(Number) for f in fields(policy)}
    limits = {name: rule.limits(known) for name in names if (rule := rules[name]) is not None}
    return {name: list(pair) for name, pair in limits.items() if pair is not None}


def with_numbers(policy: ExitPolicy, numbers: Mapping[str, Tensor]) -> ExitPolicy:
    """The policy with tensors in place of numbers."""
    changed = copy.copy(policy)
    for field, number in numbers.items():
        object.__setattr__(changed, field, number)
    return changed


def as_tensors(numbers: Knobs) -> list[Tensor]:
    """Each as a tensor without dimensions, int64 or float32."""
    types = {int: torch.int64, float: torch.float32}
    return [torch.tensor(number, dtype=types[type(number)]) for number in numbers.values()]


def input_name(field: str) -> str:
    """The name of a field's input."""
    return f"policy.{field}"


class _Decision(nn.Module):
    """A policy alone, on one exit's logits and certainty."""

    def __init__(self, policy: ExitPolicy, fields: Sequence[str]):
        super().__init__()
        self.policy, self.fields = policy, list(fields)

    def forward(self, *tensors: Tensor) -> Any:
        logits_BC, certainty_B, *numbers = tensors
        policy = with_numbers(self.policy, dict(zip(self.fields, numbers, strict=True)))
        state = policy.init(logits_BC)
        state, stop_B = policies.step(policy, state, logits_BC, certainty_B)
        return stop_B, policy.answer(state, logits_BC)


def _traceable(policy: ExitPolicy, numbers: Knobs, num_classes: int) -> bool:
    if not numbers:
        return True
    generator = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(3, num_classes, generator=generator)
    certainty_B = torch.rand(3, generator=generator)
    examples = [logits_BC, certainty_B, *as_tensors(numbers)]
    try:
        trace(_Decision(policy, list(numbers)), examples, [{0: ANY}] * 2 + [{}] * len(numbers))
    except Exception:  # a user's code may fail in any way on tensors in place of numbers
        return False
    return True
