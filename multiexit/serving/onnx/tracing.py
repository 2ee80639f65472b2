"""A module's computation as an ONNX program."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.runtime import evaluating

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
    with warnings.catch_warnings(), torch.no_grad(), evaluating(module):
        warnings.simplefilter("ignore")
        # Strict: else `len` of a tensor fixes the size of the batch.
        program = torch.export.export(
            module, tuple(examples), dynamic_shapes=(tuple(shapes),), strict=True
        )
        onnx_program = torch.onnx.export(
            program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False
        )
    assert onnx_program is not None
    return onnx_program
