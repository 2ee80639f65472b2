"""Networks that read one tensor, and what is said to anyone who gives them something else."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from multiexit.backbones.base import Carry

Start = Callable[..., Carry]


def one_tensor(start: Start) -> Start:
    """A `start` of one tensor that refuses anything else in a sentence."""
    _, reads = signature(start).parameters

    @wraps(start)
    def checked_start(self: Any, *args: Any, **inputs: Any) -> Carry:
        if unknown := [name for name in inputs if name != reads]:
            raise ValueError(
                f"this network takes {reads} alone, not {', '.join(unknown)}"
                + (
                    ": labels are for training"
                    if "labels" in unknown
                    else ": what else its own forward takes has its default"
                )
            )
        values = [*args, *inputs.values()]
        if len(values) != 1:
            raise ValueError(f"this network takes one input, {reads}; got {len(values)}")
        if not isinstance(values[0], Tensor):
            raise ValueError(
                f"{reads} must be a tensor, with a row per row [B, …]; got {in_place_of(values)}"
            )
        return start(self, values[0])

    return checked_start


def needed_inputs(module: nn.Module) -> list[str]:
    """The names of what a module's forward can't do without."""
    kinds = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def in_place_of(values: Sequence[Any]) -> str:
    """What was given in place of tensors, and how to make them of it."""
    got = ", ".join(type(value).__name__ for value in values) or "nothing"
    first: Any = next((value for value in values if value is not None), None)
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if any(isinstance(value, Mapping) for value in values):
        remedy = "pass a batch's entries by name, **batch"
    elif any(hasattr(value, "__array__") for value in values):
        remedy = "make tensors of arrays, torch.from_numpy(x)"
    elif isinstance(first, int | float):
        remedy = "make tensors of numbers, torch.tensor(x)"
    elif isinstance(first, str):
        remedy = "tokenise texts first"
    else:
        return got
    return f"{got}: {remedy}"
