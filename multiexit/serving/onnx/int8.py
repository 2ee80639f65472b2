"""Graphs whose matrix products are of 8-bit integers, for CPUs.

A product of activations x and weights W [K, N] becomes

    y = s · (q @ Q) · t,    q = round(x / s),    Q = round(W / t)

with a scale t for each of the N outputs, and a scale s = max |x| / 127 for each vector of K
activations as it comes, that is for each token of each row. What a row gets depends on that row
alone, so it is the same in any batch.

CPUs with AVX2 or AVX-512 but without VNNI add two neighbouring products in 16 bits and cut what
goes beyond. Activations reach them as q + 128, at most 255; so unless the target is known to add
in 32 bits, t is so large that no two neighbours of Q of one sign add up to more than 128:
255 · 128 = 32640 fits.

Letters: K inputs of a product, N its outputs.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

FEWEST = 0.1
"""Outputs per input from which on a product is of integers: to scale the activations of a narrower
one, such as a head's last, takes longer than the product itself."""

MICROSOFT = "com.microsoft"
"""The domain of an operator that onnxruntime and OpenVINO both have: a product of integers that is
scaled in one pass."""


class Target(NamedTuple):
    """CPUs that graphs are for.

    Args:
        machines: which, in words.
        wide: whether they add products in 32 bits, so that weights can use all 8 bits.
    """

    machines: str
    wide: bool


TARGETS = {
    "auto": Target("any CPU", False),
    "avx2": Target("x86 CPUs with AVX2; as auto, right on any CPU", False),
    "avx512": Target("x86 CPUs with AVX-512; as auto, right on any CPU", False),
    "vnni": Target("x86 CPUs with VNNI (AVX-512 VNNI or AVX-VNNI) alone", True),
    "arm64": Target("64-bit ARM CPUs alone", True),
}
"""By the names that sentence-transformers and Optimum use."""


def has_products(backbone: nn.Module) -> bool:
    """Whether these are what int8 is for; else it is for convolutions."""
    return any(isinstance(module, nn.Linear) for module in backbone.modules())


def check(backbone: nn.Module, target: str, rows: bool) -> None:
    """Refuse an unknown target, or a backbone without anything to quantise.

    Args:
        backbone: of the model.
        target: one of `TARGETS`.
        rows: whether there are any, by which convolutions are calibrated.

    Raises:
        ValueError: there is no such target, neither a linear layer nor a convolution, or there are
            convolutions alone and no rows.
    """
    if not isinstance(target, str) or target not in TARGETS:
        raise ValueError(f"no int8 target {target!r}; there are {', '.join(TARGETS)}")
    if has_products(backbone):
        return
    if not any(
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in backbone.modules()
    ):
        raise ValueError(
            "int8 is for linear layers and convolutions, and this backbone has neither: export it "
            "without int8"
        )
    if not rows:
        raise ValueError(
            "int8 of convolutions needs rows, to see how large feature maps become: give rows= "
            "(on the command line --data or --task), some of those that the model was trained on"
        )


def scales(weight_KN: np.ndarray, wide: bool) -> np.ndarray:
    """The scale t of each output, float32 [N]: weights are round(W / t), in -127..127.

    Args:
        weight_KN: float32.
        wide: whether products are added in 32 bits; if not, no two neighbours of one sign, rows
            2i and 2i + 1, add up to more than 128.
    """
    largest_N = np.abs(weight_KN).max(0)
    if not wide:
        pairs = np.pad(weight_KN, [(0, len(weight_KN) % 2), (0, 0)])
        pairs = pairs.reshape(-1, 2, weight_KN.shape[1])
        up, down = pairs.clip(min=0).sum(1), (-pairs).clip(min=0).sum(1)
        largest_N = np.maximum(up, down).max(0)  # rounding adds at most 1 to 127
    return np.maximum(largest_N / 127, np.finfo(np.float32).tiny).astype(np.float32)


def quantise(path: Path, target: str) -> None:
    """Rewrite a graph's products of activations and constant weights."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    del graph.value_info[:]  # shapes of weights that are about to be transposed
    constants = {value.name: value for value in graph.initializer}
    added: dict[str, np.ndarray] = {}
    nodes: list[Any] = []
    quantised: dict[str, tuple[str, str]] = {}  # of activations: what is multiplied, and its scale

    def constant(name: str, value: Any, dtype: Any) -> str:
        added[name] = np.asarray(value, dtype)
        return name

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def add_quantised(x: str) -> tuple[str, str]:
        last, least = (
            constant("int8.last", [-1], np.int64),
            constant("int8.least", 1e-30, np.float32),
        )
        nothing, step = (
            constant("int8.0", 0, np.float32),
            constant("int8.1/127", 1 / 127, np.float32),
        )
        up = add("ReduceMax", [x, last], f"{x}.max", keepdims=1)
        down = add("Neg", [add("ReduceMin", [x, last], f"{x}.min", keepdims=1)], f"{x}.down")
        largest = add("Max", [up, down, least], f"{x}.top")
        # A maximum passes over NaN; a sum doesn't, and NaN must stay NaN.
        total = add("ReduceSum", [x, last], f"{x}.sum", keepdims=1)
        sound = add("Add", [largest, add("Mul", [total, nothing], f"{x}.zero")], f"{x}.largest")
        scale = add("Mul", [sound, step], f"{x}.scale")
        steps = add("Div", [x, scale], f"{x}.steps")
        one, middle = constant("int8.one", 1, np.float32), constant("int8.middle", 128, np.uint8)
        return add("QuantizeLinear", [steps, one, middle], f"{x}.int8"), scale

    for node in graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if not _is_product(node, attributes, constants):
            nodes.append(node)
            continue
        x, weight, *bias = node.input
        (y,) = node.output
        weight_KN = numpy_helper.to_array(constants[weight]).astype(np.float32)
        if attributes.get("transB"):
            weight_KN = weight_KN.T
        scale_N = scales(weight_KN, TARGETS[target].wide)
        Q = constant(f"{weight}.int8", np.rint(weight_KN / scale_N), np.int8)
        if x not in quantised:
            quantised[x] = add_quantised(x)
        q, s = quantised[x]
        zero = constant("int8.zero", 0, np.int8)
        t = constant(f"{weight}.scale", scale_N, np.float32)
        factors = [q, Q, "int8.one", t, "int8.middle", zero]
        steps = add("MatMulIntegerToFloat", factors, f"{y}.steps", domain=MICROSOFT)
        product = add("Mul", [steps, s], f"{y}.product" if bias else y)
        if bias:
            add("Add", [product, *bias], y)

    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    used = [value for name, value in constants.items() if name in read]
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(used)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in added.items())
    onnx.save(model, path)


def _is_product(node: Any, attributes: dict[str, Any], constants: dict[str, Any]) -> bool:
    """Whether a node is a product, with or without bias, of activations and a constant [K, N]."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        return False
    plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
    dims = constants[node.input[1]].dims
    if len(dims) != 2 or not plain or attributes.get("transA"):
        return False
    K, N = reversed(dims) if attributes.get("transB") else dims
    return N >= FEWEST * K
