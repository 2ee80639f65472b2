"""Families of timm's models: a row for each, which is all that a new one takes.

Letters: B batch rows, T tokens, H width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from multiexit.backbones.parts import part_of
from multiexit.backbones.vision.instances import blocks_of


class _ViTStem(nn.Module):
    """Patches, class token and positions, as `VisionTransformer.forward_features` has them."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        left_out = ("blocks", "norm", "fc_norm", "attn_pool", "head_drop", "head", "head_dist")
        self.vit: Any = part_of(vit, without=left_out, parameters=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.vit._pos_embed(self.vit.patch_embed(x))
        return self.vit.norm_pre(self.vit.patch_drop(x))


class HeadReader(nn.Module):
    """The part of a model's `forward_head` before the last layer.

    Args:
        model: with the parts that this takes, alone.
        before: of `forward_features`, what the stages leave out; None is nothing.
    """

    def __init__(self, model: nn.Module, before: nn.Module | None = None):
        super().__init__()
        self.before = before
        self.model: Any = model

    def forward(self, feature: Tensor) -> Tensor:
        if self.before is not None:
            feature = self.before(feature)
        return self.model.forward_head(feature, pre_logits=True)


class Trunk(NamedTuple):
    """A model cut for `SequentialBackbone`.

    Args:
        stem, blocks: what runs before the stages, and the stages.
        options: how `SequentialBackbone` is to take them.
    """

    stem: nn.Module
    blocks: list[nn.Module]
    options: dict[str, Any]


def _reader(model: Any) -> HeadReader:
    names = ("global_pool", "attn_pool", "fc_norm", "head_drop")
    return HeadReader(part_of(model, only=names))


class TimmFamily(NamedTuple):
    """The ways in which the models of one class are cut and read.

    Args:
        trunk: cuts one.
        arguments: by name, how an argument of `timm.create_model` is read off one; what
            `multiexit.backbones.specs` doesn't list can't be saved.
        default_name: of the architecture, for one that its class made.
        last: the last layer of the head that it has now.
        pool: what pools before that: a module of timm, or a name; nothing in one without a head.
        reader: what its head does before the last layer.
        unread: whether `forward_features` runs what the stages leave out.
        shortened: of a model, a number of stages and a pooling, the arguments by which its class
            ends behind these stages and has a head of that pooling and one layer; None where it
            has no such arguments.
    """

    trunk: Callable[[Any], Trunk]
    arguments: dict[str, Callable[[Any], Any]]
    default_name: Callable[[Any], str]
    last: Callable[[Any], Any] = lambda model: model.get_classifier()
    pool: Callable[[Any], Any] = lambda model: model.global_pool
    reader: Callable[[Any], HeadReader] = _reader
    unread: Callable[[Any], bool] = lambda model: False
    shortened: Callable[[Any, int, str], dict[str, Any]] | None = None


def num_classes(model: Any) -> int:
    """K, of the head that there is now."""
    family = family_of(model)
    last = model.get_classifier() if family is None else family.last(model)
    if isinstance(last, nn.Identity):
        return 0
    return int(getattr(last, "out_features", model.num_classes))


def in_channels(model: Any) -> int:
    """The number of channels that the first convolution takes."""
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def image_size(model: Any) -> Any:
    """Height and width of an image, for a model that takes one size; None for others."""
    size = next((m.img_size for m in model.modules() if getattr(m, "img_size", None)), None)
    return (size, size) if isinstance(size, int) else size


def _is_active(module: Any) -> bool:
    return not isinstance(module, nn.Identity)


def _vit_trunk(model: Any) -> Trunk:
    pool = "first" if model.global_pool == "token" else "mean"
    options = {"norm": model.norm, "pool": pool, "layout": "tokens"}
    return Trunk(_ViTStem(model), list(model.blocks), options)


def _resnet_trunk(model: Any) -> Trunk:
    stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
    groups: list[Any] = [getattr(model, str(i["module"])) for i in model.feature_info[1:]]
    return Trunk(stem, blocks_of(groups), {"layout": "image"})


def _convnext_trunk(model: Any) -> Trunk:
    return Trunk(model.stem, _convnext_blocks(model), {"layout": "image"})


def _convnext_blocks(model: Any) -> list[nn.Module]:
    """A stage's downsampling belongs to its first block."""
    stages = []
    for stage in model.stages:
        first, *rest = stage.blocks
        stages += [nn.Sequential(stage.downsample, first), *rest]
    return stages


def _convnext_reader(model: Any) -> HeadReader:
    part = part_of(model, only=("head",))
    part.head = part_of(model.head, without=("fc",))
    return HeadReader(part, model.norm_pre)  # which is of the last stage's width alone


def _shortened_vit(model: Any, count: int, pool: str) -> dict[str, Any]:
    arguments = {"depth": count, "final_norm": _is_active(model.norm), "fc_norm": False}
    if pool == "mean":  # over all tokens
        return {**arguments, "global_pool": "avg", "pool_include_prefix": True}
    return {**arguments, "global_pool": "token"}


def _expansion(model: Any, info: dict[str, Any]) -> int:
    """How many times as wide as its `channels` say a ResNet's group of blocks ends."""
    return type(getattr(model, info["module"])[0]).expansion


def _shortened_resnet(model: Any, count: int, pool: str) -> dict[str, Any]:
    """Groups behind the cut have no blocks, and the width of the last one that has."""
    layers, channels, width = [], [], 0
    for info in model.feature_info[1:]:
        layers.append(min(len(getattr(model, info["module"])), count - sum(layers)))
        width = info["num_chs"] if layers[-1] else width
        channels.append(width // _expansion(model, info))
    return {"layers": layers, "channels": channels, "global_pool": "avg"}


_VIT: dict[str, Callable[[Any], Any]] = {
    "img_size": lambda m: m.patch_embed.img_size,
    "patch_size": lambda m: m.patch_embed.patch_size,
    "in_chans": lambda m: m.patch_embed.proj.in_channels,
    "num_classes": num_classes,
    "global_pool": lambda m: m.global_pool,
    "embed_dim": lambda m: m.embed_dim,
    "depth": lambda m: len(m.blocks),
    "num_heads": lambda m: m.blocks[0].attn.num_heads,
    "mlp_ratio": lambda m: m.blocks[0].mlp.fc1.out_features / m.embed_dim,
    "qkv_bias": lambda m: m.blocks[0].attn.qkv.bias is not None,
    "qk_norm": lambda m: _is_active(m.blocks[0].attn.q_norm),
    "scale_attn_norm": lambda m: _is_active(m.blocks[0].attn.norm),
    "scale_mlp_norm": lambda m: _is_active(m.blocks[0].mlp.norm),
    "proj_bias": lambda m: m.blocks[0].attn.proj.bias is not None,
    "init_values": lambda m: m.blocks[0].ls1.init_values if _is_active(m.blocks[0].ls1) else None,
    "class_token": lambda m: m.has_class_token,
    "pos_embed": lambda m: "none" if m.pos_embed is None else "learn",
    "no_embed_class": lambda m: m.no_embed_class,
    "reg_tokens": lambda m: m.num_reg_tokens,
    "pre_norm": lambda m: _is_active(m.norm_pre),
    "final_norm": lambda m: _is_active(m.norm) or _is_active(m.fc_norm),
    "fc_norm": lambda m: _is_active(m.fc_norm),
    "pool_include_prefix": lambda m: m.pool_include_prefix,
    "dynamic_img_size": lambda m: m.dynamic_img_size,
    "dynamic_img_pad": lambda m: m.patch_embed.dynamic_img_pad,
    "drop_rate": lambda m: m.head_drop.p,
    "pos_drop_rate": lambda m: m.pos_drop.p,
    "patch_drop_rate": lambda m: getattr(m.patch_drop, "prob", 0.0),
    "proj_drop_rate": lambda m: m.blocks[0].attn.proj_drop.p,
    "attn_drop_rate": lambda m: m.blocks[0].attn.attn_drop.p,
    "drop_path_rate": lambda m: getattr(m.blocks[-1].drop_path1, "drop_prob", 0.0),
}
_RESNET: dict[str, Callable[[Any], Any]] = {
    "in_chans": lambda m: m.in_chans,
    "num_classes": num_classes,
    "global_pool": lambda m: m.global_pool.pool_type,
    "output_stride": lambda m: m.feature_info[-1]["reduction"],
    "layers": lambda m: [len(getattr(m, info["module"])) for info in m.feature_info[1:]],
    "channels": lambda m: [i["num_chs"] // _expansion(m, i) for i in m.feature_info[1:]],
    "drop_rate": lambda m: m.drop_rate,
    "drop_path_rate": lambda m: getattr(m.layer4[-1].drop_path, "drop_prob", 0.0),
}
_CONVNEXT: dict[str, Callable[[Any], Any]] = {
    "in_chans": lambda m: m.in_chans,
    "num_classes": num_classes,
    "global_pool": lambda m: m.head.global_pool.pool_type,
    "output_stride": lambda m: m.feature_info[-1]["reduction"],
    "depths": lambda m: [len(stage.blocks) for stage in m.stages],
    "dims": lambda m: [info["num_chs"] for info in m.feature_info],
    "kernel_sizes": lambda m: [stage.blocks[0].conv_dw.kernel_size[0] for stage in m.stages],
    "ls_init_value": lambda m: None if m.stages[0].blocks[0].gamma is None else 1e-6,
    "patch_size": lambda m: m.stem[0].kernel_size[0] if len(m.stem) == 2 else 4,
    "head_hidden_size": lambda m: m.head.hidden_size,
    "head_norm_first": lambda m: _is_active(m.norm_pre),
    "conv_mlp": lambda m: m.stages[0].blocks[0].use_conv_mlp,
    "conv_bias": lambda m: m.stem[0].bias is not None,
    "use_grn": lambda m: (
        hasattr(m.stages[0].blocks[0].mlp, "grn") and _is_active(m.stages[0].blocks[0].mlp.grn)
    ),
    "drop_rate": lambda m: m.drop_rate,
    "drop_path_rate": lambda m: getattr(m.stages[-1].blocks[-1].drop_path, "drop_prob", 0.0),
}

OTHERS: dict[str, Callable[[Any], Any]] = {
    "in_chans": in_channels,
    "num_classes": num_classes,
    "img_size": image_size,
    "drop_rate": lambda m: m.drop_rate,
}
"""Arguments of models of no family, as `TimmFamily.arguments`."""

FAMILIES: dict[type[nn.Module], TimmFamily] = {
    VisionTransformer: TimmFamily(
        _vit_trunk,
        _VIT,
        lambda m: "vit_base_patch16_224",
        last=lambda m: m.head,
        shortened=_shortened_vit,
    ),
    ResNet: TimmFamily(
        _resnet_trunk,
        _RESNET,
        lambda m: "resnet50" if hasattr(m.layer1[0], "conv3") else "resnet18",
        shortened=_shortened_resnet,
    ),
    ConvNeXt: TimmFamily(
        _convnext_trunk,
        _CONVNEXT,
        lambda m: "convnext_tiny",
        pool=lambda m: m.head.global_pool,
        reader=_convnext_reader,
        unread=lambda m: _is_active(m.norm_pre),
    ),
}
"""By class; one derived from it counts too."""


def family_of(model: Any) -> TimmFamily | None:
    """The family of a model, if it is of one."""
    for kind, family in FAMILIES.items():
        if isinstance(model, kind):
            return family
    return None
