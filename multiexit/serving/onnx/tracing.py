"""A module's computation as an ONNX program."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.files.unreadable import one_line
from multiexit.runtime import evaluating, layers_by_operations

ANY = torch.export.Dim.DYNAMIC
"""A dimension of any size."""


def trace(
    module: nn.Module,
    examples: Sequence[Tensor],
    shapes: Sequence[dict[int, Any]],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> torch.onnx.ONNXProgram:
    """Trace what a module with `forward(*tensors)` computes.

    Args:
        module: is put into evaluation mode for the while.
        examples: the tensors.
        shapes: of each, which dimensions are `ANY`.
        inputs, outputs: their names in the graph.

    Raises:
        Exception: of many kinds, where the module's code can't be traced.
    """
    with (
        warnings.catch_warnings(action="ignore"),
        torch.no_grad(),
        evaluating(module),
        layers_by_operations(),  # ONNX has no operator for a whole layer
        unlogged("torch._guards"),
    ):
        # Strict: else `len` of a tensor fixes the size of the batch.
        program = torch.export.export(
            module, tuple(examples), dynamic_shapes=(tuple(shapes),), strict=True
        )
        onnx_program = torch.onnx.export(
            program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False
        )
    assert onnx_program is not None
    return onnx_program


COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal, in the exporter's messages


def reason(error: Exception) -> str:
    """Why `trace` failed, in one sentence without its full stop."""
    text = str(error)
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text):
        if "grouped_mm" in found[1]:
            return (
                f"ONNX has no operator for {found[1]}, by which this network runs its experts: "
                "model.set_experts_implementation('batched_mm') before wrapping, which gathers a "
                "copy of each token's experts, can be exported"
            )
        return f"ONNX has no operator for {found[1]}"
    if "Constraints violated" in text or "ConstraintViolation" in type(error).__name__:
        return (
            "its code counts in Python what must stay free, such as the number of tokens in a loop "
            "over them"
        )
    where = re.findall(r'File "[^"]*?([^/"]+)", line (\d+), in (\w+)', text)
    place = f" ({where[-1][2]}, {where[-1][0]}:{where[-1][1]})" if where else ""
    if re.search("data-dependent|Data-dependent|DataDependent", text):
        return f"its code{place} decides in Python by the values of tensors"
    return COLOURS.sub("", one_line(error)) + place


@contextmanager
def unlogged(name: str | None) -> Iterator[None]:
    """Inside, this logger is silent; None is the root."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
