"""Graphs whose matrix products are of 8-bit integers, by onnxruntime's dynamic quantisation."""

import logging
from pathlib import Path

from torch import nn

KINDS = ["MatMul", "Gemm"]


def check(backbone: nn.Module) -> None:
    """Refuse a backbone without matrix products.

    Raises:
        ValueError: it has no linear layer.
    """
    if not any(isinstance(module, nn.Linear) for module in backbone.modules()):
        raise ValueError(
            "int8 is for matrix products, as BERT and its relatives, ViT and ConvNeXt have them; "
            "this backbone has none, and convolutions stay in float: export it without int8"
        )


def quantise(path: Path) -> None:
    """Rewrite a graph: weights in int8, each output channel by its own scale; activations in
    uint8, each tensor by its own range as it comes."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes of weights that are about to be transposed
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preparation that these graphs have had
    try:
        quantize_dynamic(
            model, path, op_types_to_quantize=KINDS, per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        logger.setLevel(level)
