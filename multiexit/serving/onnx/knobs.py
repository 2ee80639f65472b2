"""A policy's numbers as inputs of a graph, one for each row, so that they can be turned.

Letters: B batch rows, C classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from multiexit import policies
from multiexit.policies import ExitPolicy, PerRow
from multiexit.policies.base import ROW, State
from multiexit.policies.numbers import Known, Number
from multiexit.policies.per_row import Numbers, with_numbers
from multiexit.serving.onnx.tracing import ANY, trace


def turnable(policy: ExitPolicy, numbers: Numbers, num_classes: int) -> Numbers:
    """Those that may differ between the rows of a batch: each row decides as it would alone.

    Args:
        policy: whose numbers they are.
        numbers: from `multiexit.policies.numbers_of`.
        num_classes: of a decision of the model's rows (`multiexit.problems`).
    """
    return {
        field: number
        for field, number in numbers.items()
        if _decides_by_row(policy, field, number, num_classes)
    }


def traceable(policy: ExitPolicy, numbers: Numbers, num_classes: int) -> Numbers:
    """Those that can be inputs of a graph: not what the policy's code decides by in Python.

    Args:
        policy: whose numbers they are.
        numbers: from `turnable`.
        num_classes: as there.
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


def as_tensors(numbers: Numbers, rows: int) -> list[Tensor]:
    """Each for every row [B], int64 or float32."""
    types = {int: torch.int64, float: torch.float32}
    return [torch.full((rows,), number, dtype=types[type(number)]) for number in numbers.values()]


def row_state(fields: Iterable[str], numbers: Iterable[Tensor]) -> State:
    """What `PerRow` of one policy reads: its fields' numbers [B]."""
    return {f"{ROW}0.{field}": number_B for field, number_B in zip(fields, numbers, strict=True)}


def input_name(field: str) -> str:
    """The name of a field's input."""
    return f"policy.{field}"


class _Decision(nn.Module):
    """A policy alone, on one exit's logits and certainty."""

    def __init__(self, policy: ExitPolicy, fields: Sequence[str]):
        super().__init__()
        self.policy, self.fields = PerRow((policy,)), list(fields)

    def forward(self, *tensors: Tensor) -> Any:
        logits_BC, certainty_B, *numbers = tensors
        state = {**row_state(self.fields, numbers), **self.policy.init(logits_BC)}
        state, stop_B = policies.step(self.policy, state, logits_BC, certainty_B)
        return stop_B, self.policy.answer(state, logits_BC)


def _examples(num_classes: int, rows: int) -> list[Tensor]:
    """Logits [B, C] and certainties [B]."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, num_classes, generator=generator),
        torch.rand(rows, generator=generator),
    ]


def _traceable(policy: ExitPolicy, numbers: Numbers, num_classes: int) -> bool:
    if not numbers:
        return True
    examples = [*_examples(num_classes, 3), *as_tensors(numbers, 3)]
    try:
        trace(_Decision(policy, list(numbers)), examples, [{0: ANY}] * len(examples))
    except Exception:  # a user's code may fail in any way on tensors in place of numbers
        return False
    return True


def _decides_by_row(policy: ExitPolicy, field: str, number: float, num_classes: int) -> bool:
    """Whether a number for each row does for each what it does for one alone."""
    rows = 5 if num_classes != 5 else 7  # where B isn't C, mixed dimensions fail
    logits_BC, certainty_B = _examples(num_classes, rows)
    (number_B,) = as_tensors({field: number}, rows)
    spread_B = torch.arange(rows) - rows // 2
    number_B = number_B + (spread_B if isinstance(number, int) else 0.1 * spread_B)
    try:
        together = _Decision(policy, [field])(logits_BC, certainty_B, number_B)
        for row in range(rows):
            one = slice(row, row + 1)
            alone = _alone(
                with_numbers(policy, {field: number_B[row]}), logits_BC[one], certainty_B[one]
            )
            if not all(torch.equal(a[one], b) for a, b in zip(together, alone, strict=True)):
                return False
    except Exception:  # a user's code may fail in any way on tensors in place of numbers
        return False
    return True


def _alone(policy: ExitPolicy, logits_BC: Tensor, certainty_B: Tensor) -> tuple[Tensor, Tensor]:
    state, stop_B = policies.step(policy, policy.init(logits_BC), logits_BC, certainty_B)
    return stop_B, policy.answer(state, logits_BC)
