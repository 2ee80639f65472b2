"""The schema of a backbone's saved description: known names with plain values.

One table per kind. The adapters write descriptions by them (`kinds.describable`), and `rebuild`
reads them by the same ones (`kinds.check`), so a description can name an architecture and nothing
else: no file, no address, no code. An argument that isn't listed can be used, but such a backbone
has no description: who loads the model passes `backbone=`.
"""

import re
from collections.abc import Mapping
from typing import Any

from multiexit.backbones.classifier import TOKEN_PROBLEM
from multiexit.backbones.layouts import LAYOUTS
from multiexit.files.schema import (
    Check,
    either,
    flag,
    listed,
    number,
    one_of,
    optional,
    plain,
    table,
    text,
    whole,
    wrong,
)

LARGEST = 10_000_000
"""The largest size, count or token number in an architecture."""

MOST_INPUTS = 2**26
"""Numbers in one input row, as a colour image of 4,700 × 4,700 has."""

SIZE = whole(0, LARGEST)
SIZES = either(SIZE, listed(SIZE, 0, 1000))
DEPTH = whole(1, 1000)
DEPTHS = listed(DEPTH, 1, 16)
RATE = number(0, 1)
NUMBER = number()

TIMM_ARGUMENTS: dict[str, Check] = {
    **dict.fromkeys(("img_size", "patch_size", "window_size", "kernel_sizes"), SIZES),
    **dict.fromkeys(("dims", "channels"), SIZES),
    **dict.fromkeys(("in_chans", "num_classes", "embed_dim", "num_heads", "reg_tokens"), SIZE),
    **dict.fromkeys(("output_stride", "cardinality", "base_width", "stem_width"), SIZE),
    **dict.fromkeys(("block_reduce_first", "down_kernel_size", "head_hidden_size"), SIZE),
    "depth": DEPTH,
    "depths": DEPTHS,
    "layers": DEPTHS,
    **dict.fromkeys(("drop_rate", "drop_path_rate", "drop_block_rate", "pos_drop_rate"), RATE),
    **dict.fromkeys(("patch_drop_rate", "proj_drop_rate", "attn_drop_rate"), RATE),
    **dict.fromkeys(("mlp_ratio", "init_values", "ls_init_value"), NUMBER),
    **dict.fromkeys(("head_init_scale", "norm_eps"), NUMBER),
    **dict.fromkeys(("qkv_bias", "qk_norm", "proj_bias", "class_token", "no_embed_class"), flag),
    **dict.fromkeys(("scale_attn_norm", "scale_mlp_norm", "pre_norm", "final_norm"), flag),
    **dict.fromkeys(("fc_norm", "pool_include_prefix", "dynamic_img_size"), flag),
    **dict.fromkeys(("dynamic_img_pad", "fix_init", "replace_stem_pool", "avg_down"), flag),
    **dict.fromkeys(("zero_init_last", "head_norm_first", "conv_mlp", "conv_bias"), flag),
    "use_grn": flag,
    **dict.fromkeys(("global_pool", "pos_embed", "weight_init", "stem_type"), text),
    **dict.fromkeys(("act_layer", "norm_layer", "embed_norm_layer", "aa_layer"), text),
    "attn_layer": text,
}
"""Arguments of `timm.create_model` that shape a network; each may be null too."""

TORCHVISION_ARGUMENTS: dict[str, Check] = {
    **dict.fromkeys(("num_classes", "groups", "width_per_group"), SIZE),
    **dict.fromkeys(("image_size", "representation_size"), SIZE),
    **dict.fromkeys(("dropout", "attention_dropout"), RATE),
    **dict.fromkeys(("patch_size", "num_heads", "hidden_dim", "mlp_dim"), SIZE),
    "num_layers": DEPTH,
    "block": one_of("BasicBlock", "Bottleneck"),
    "layers": listed(DEPTH, 4, 4),
    "zero_init_residual": flag,
    "replace_stride_with_dilation": listed(flag, 3, 3),
    **dict.fromkeys(("transform_input", "aux_logits", "init_weights", "memory_efficient"), flag),
    **dict.fromkeys(("stochastic_depth_prob", "drop_rate"), RATE),
    **dict.fromkeys(("input_size", "growth_rate", "bn_size"), SIZE),
    **dict.fromkeys(("width_mult", "layer_scale"), NUMBER),
}
"""The same of `torchvision.models.get_model`, and of the classes `ResNet`, `VisionTransformer`."""

_CLASSIFIERS = (
    *("alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inception", "maxvit"),
    *("mnasnet", "mobilenet", "regnet", "resnet", "resnext", "shufflenet", "squeezenet"),
    *("swin_", "vgg", "vit_", "wide_resnet"),
)
"""What names of torchvision's classifiers of images begin with."""

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
"""The implementations of attention; other names would be fetched from the hub."""


def _matching(pattern: str, right: str) -> Check:
    def check(key: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > 200 or not re.fullmatch(pattern, value):
            raise wrong(key, value, right)

    return check


def _input_shape(key: str, value: Any) -> None:
    listed(whole(1, LARGEST), 1, 5)(key, value)
    total = 1
    for size in value:
        total *= size
    if total > MOST_INPUTS:
        raise wrong(key, value, f"an input row of at most {MOST_INPUTS} numbers")


def _kwargs(checks: Mapping[str, Check]) -> Check:
    return table({}, {name: optional(check) for name, check in checks.items()})


def _classifier(key: str, value: Any) -> None:
    """True, or of tokens the problem's name: the network makes its own head again; or the sizes of
    a plain linear layer."""
    sizes = {"inputs": SIZE, "classes": SIZE, "bias": flag, "pool": one_of("first", "last", "mean")}
    (table(sizes) if isinstance(value, Mapping) else one_of(True, TOKEN_PROBLEM))(key, value)


def _layout(key: str, value: Any) -> None:
    name = one_of(*LAYOUTS)
    (listed(name, 1, 1000) if isinstance(value, list) else name)(key, value)


def _lora_layers(key: str, value: Any) -> None:
    table({}, rest=table({"r": whole(1, LARGEST), "lora_alpha": NUMBER}))(key, value)
    if not value:
        raise wrong(key, value, "a table with a layer's name as key at least")


LORA = table(
    {
        "name": _matching(r"[A-Za-z]\w*", "the name of an adapter"),
        "layers": _lora_layers,
        "lora_dropout": RATE,
        **dict.fromkeys(("use_rslora", "use_dora", "lora_bias"), flag),
    }
)
"""LoRA adapters: by a layer's name its rank and alpha; see `multiexit.backbones.adapters`."""

STAGED: dict[str, Check] = {
    "cuts": listed(
        _matching(r"[A-Za-z_]\w*", "the name of a node of the network's graph"), 1, 1000
    ),
    "layout": _layout,
}
"""How a network of no family is staged: see `multiexit.backbones.graphs.cuts`."""

_NAMES = listed(_matching(r"[\w.-]+", "the name of a module or step"), 0, 10_000)

RECORDED: dict[str, Check] = {
    "chain": table(
        {
            "layers": _NAMES,
            "ends": listed(whole(0, 9999), 1, 10_000),
            "late": _NAMES,
            "shapes": listed(listed(optional(SIZE), 1, 4), 1, 10_000),
            "layouts": listed(one_of(*LAYOUTS), 1, 10_000),
        },
        {"turned": one_of([0, 1], [1, 2])},
    ),
    "pool": one_of("first", "last", "mean"),
    "norm": optional(_matching(r"[\w.]+", "the name of a module")),
    "tail": _NAMES,
    "input_shape": optional(_input_shape),
}
"""How a network was taken apart by its own forward, and on what it was tried."""

TRANSFORMERS = table(
    {"kind": text, "config": table({"model_type": text}, rest=plain)},
    {
        "attention": optional(one_of(*ATTENTION)),
        "classifier": _classifier,
        "lora": LORA,
        "model": _matching(r"[A-Z]\w+", "the name of a model of transformers"),
        **RECORDED,
        "order": listed(whole(0, 9999), 1, 10_000),
        "heads": listed(listed(whole(0, 9999), 1, 10_000), 1, 10_000),
    },
)
CIFAR_RESNET = table(
    {"kind": text, "depth": whole(1, 1000)},
    {
        "in_channels": whole(1, 10_000),
        "size": whole(1, 4096),
        "classifier": _classifier,
        "lora": LORA,
    },
)
TIMM = table(
    {
        "kind": text,
        "name": _matching(r"\w+(\.\w+)?", "the plain name of a timm model"),
        "kwargs": _kwargs(TIMM_ARGUMENTS),
    },
    {
        "input_shape": optional(_input_shape),
        "classifier": _classifier,
        "lora": LORA,
        **STAGED,
    },
)
TORCHVISION = table(
    {
        "kind": text,
        "name": _matching(
            rf"({'|'.join(_CLASSIFIERS)})\w*|ResNet|VisionTransformer",
            "the name of a classifier of images of torchvision",
        ),
        "kwargs": _kwargs(TORCHVISION_ARGUMENTS),
    },
    {
        "input_shape": optional(_input_shape),
        "classifier": _classifier,
        "lora": LORA,
        **STAGED,
    },
)


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with plain numbers and lists in place of numpy's and of tuples."""
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain_values(value)
    if isinstance(value, tuple | list):
        return [_plain_value(inner) for inner in value]
    kind = type(value)
    if kind.__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value
