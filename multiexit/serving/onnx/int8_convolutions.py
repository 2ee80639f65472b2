"""Graphs whose convolutions are of 8-bit integers, for CPUs.

A feature map x and a convolution's weights W are rounded to

    q = round(x / s) + z,    Q = round(W / t)

with a scale s and a zero z for the whole map, from the smallest and largest value that it had on
calibration rows, and a scale t for each output channel. Values outside of that range are cut off.
Additions, activations and poolings of maps between convolutions are of integers too, so that maps
needn't become float in between; all else stays in float: heads, the policy, and what is carried
from graph to graph. onnxruntime's `quantize_static` writes the graphs, with pairs of QuantizeLinear
and DequantizeLinear, which backends turn into kernels of integers.

On CPUs that add two neighbouring products in 16 bits (see `int8`) Q has 7 bits, |Q| ≤ 64:
2 · 255 · 64 = 32640 fits.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from multiexit.serving.onnx.int8 import TARGETS
from multiexit.serving.onnx.tracing import unlogged
from multiexit_runner import Runner
from multiexit_runner.folder import seal

ROWS = 256
"""Rows that are enough to see how large feature maps become."""

BETWEEN = ("Add", "Clip", "Concat", "MaxPool", "Relu")
"""Operations on maps between convolutions that are of integers too."""


def quantise(folder: Path, batches: Iterable[Mapping[str, Tensor]], target: str) -> None:
    """Rewrite an export's graphs, one after another, and seal the folder again.

    Args:
        folder: of the export in float.
        batches: inputs by name, of which the first 256 rows are run through all graphs.
        target: one of `TARGETS`.

    Raises:
        ValueError: a graph that can't be quantised.
    """
    runner = Runner(folder, check=False)
    maps = [
        runner.first(arrays, runner.numbers(len(next(iter(arrays.values())))), np.arange(0)).arrays
        for arrays in _first_rows(batches)
    ]
    for exit, segment in enumerate(runner.settings["segments"]):
        said = [runner.segment(exit, arrays) for arrays in maps]
        for broken in (each.broken for each in said):
            for row, what in broken.items():
                raise ValueError(what.format(row=f"row {row} of a batch that calibrates int8"))
        seen = [{name: arrays[name] for name in segment["inputs"]} for arrays in maps]
        _rewrite(folder / segment["file"], seen, TARGETS[target].wide)
        maps = [each.arrays for each in said]
    seal(folder)


def _first_rows(batches: Iterable[Mapping[str, Tensor]]) -> Iterable[dict[str, np.ndarray]]:
    left = ROWS
    for batch in batches:
        arrays = {name: tensor.numpy()[:left] for name, tensor in batch.items()}
        left -= len(next(iter(arrays.values())))
        yield arrays
        if not left:
            return


def _rewrite(path: Path, batches: Sequence[dict[str, np.ndarray]], wide: bool) -> None:
    """Quantise a graph by what its feature maps are on these inputs."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> Any:
            return next(self.batches, None)

    model = onnx.load(path)
    nodes = _on_maps(model.graph)
    if not nodes:
        return
    try:
        with unlogged(None):  # it advises what the exporter has done already
            quantize_static(
                model,
                path,
                Reader(),
                per_channel=True,
                reduce_range=not wide,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["Conv", *BETWEEN],
                nodes_to_quantize=nodes,
            )
    except Exception as error:  # onnxruntime's are of many kinds
        raise ValueError(f"{path.name} can't be quantised: {error}") from error
    model = onnx.load(path)
    _keep_nan(model.graph)
    onnx.save(model, path)


def _on_maps(graph: Any) -> list[str]:
    """Names of the convolutions, and of the operations between them, none where there is none."""
    shapes = [*graph.value_info, *graph.input, *graph.output]
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in shapes}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    ranks = {rank.get(node.output[0]) for node in convolutions} - {None}
    between = [
        node for node in graph.node if node.op_type in BETWEEN and rank.get(node.output[0]) in ranks
    ]
    return [node.name for node in (*convolutions, *between)]


def _keep_nan(graph: Any) -> None:
    """Let NaN and infinity in a row's maps make its logits NaN: integers would hide them."""
    from onnx import TensorProto, helper, numpy_helper

    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    maps = [name for name in rank if rank[name] > 2 and kinds[name] == TensorProto.FLOAT]
    (logits,) = [value for value in graph.output if value.name == "logits"]
    dimensions = len(logits.type.tensor_type.shape.dim)
    constants = {
        "int8.nothing": np.float32(0),
        "int8.rows": np.array([-1] + [1] * (dimensions - 1)),
    }
    added, zeros = [], []
    for name in maps:
        constants[f"{name}.int8.axes"] = np.arange(1, rank[name])
        total, nothing, zero = (f"{name}.int8.{what}" for what in ("sum", "nothing", "zero"))
        added += [
            helper.make_node("ReduceSum", [name, f"{name}.int8.axes"], [total], keepdims=0),
            helper.make_node("Mul", [total, "int8.nothing"], [nothing]),
            helper.make_node("Reshape", [nothing, "int8.rows"], [zero]),
        ]
        zeros.append(zero)
    added.append(helper.make_node("Sum", ["int8.logits", *zeros], ["logits"]))
    place, writer = next((i, n) for i, n in enumerate(graph.node) if "logits" in n.output)
    writer.output[list(writer.output).index("logits")] = "int8.logits"
    for offset, node in enumerate(added, place + 1):  # before whoever else reads the logits
        graph.node.insert(offset, node)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
