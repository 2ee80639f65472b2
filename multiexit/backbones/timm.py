"""Models of timm whose trunk is a stem and blocks: ViT and DeiT, ResNet, ConvNeXt."""

from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from multiexit.backbones.classifier import Classifier
from multiexit.backbones.parts import part_of
from multiexit.backbones.same import without_init
from multiexit.backbones.sequential import SequentialBackbone, sizes
from multiexit.backbones.specs import plain_values
from multiexit.backbones.verify import check_answers

FAMILIES = (VisionTransformer, ResNet, ConvNeXt)


class _ViTStem(nn.Module):
    """Patches, class token and positions, as `VisionTransformer.forward_features` has them."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        left_out = ("blocks", "norm", "fc_norm", "attn_pool", "head_drop", "head", "head_dist")
        self.vit: Any = part_of(vit, without=left_out, parameters=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.vit._pos_embed(self.vit.patch_embed(x))
        return self.vit.norm_pre(self.vit.patch_drop(x))


class _HeadReader(nn.Module):
    """The part of a model's `forward_head` before the last layer."""

    def __init__(self, model: Any):
        super().__init__()
        self.before: nn.Module | None = None
        if isinstance(model, ConvNeXt):
            part: Any = model.norm_pre
            self.before = part  # of `forward_features`, but of its last width alone
            self.model: Any = part_of(model, only=("head",))
            self.model.head = part_of(model.head, without=("fc",))
        else:
            names = ("global_pool", "attn_pool", "fc_norm", "head_drop")
            self.model = part_of(model, only=names)

    def forward(self, feature: Tensor) -> Tensor:
        if self.before is not None:
            feature = self.before(feature)
        return self.model.forward_head(feature, pre_logits=True)


class _DistilledHead(nn.Module):
    """Both heads of a distilled DeiT, which are averaged."""

    def __init__(self, vit: Any):
        super().__init__()
        self.vit: Any = part_of(vit, only=("head_drop", "head", "head_dist"))
        self.vit.distilled_training = False

    def forward(self, feature_BTH: Tensor) -> Tensor:
        return self.vit.forward_head(feature_BTH)


def from_instance(
    model: Any,
    spec: dict[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
) -> SequentialBackbone:
    """Stage a timm model: an exit after each block; the feature of a ViT has the final norm.

    The model's own head, whatever it looks like, is the backbone's classifier.

    Args:
        model: of timm.
        spec: by which it is made again; None is found from the model.
        input_shape: of one image, (C, height, width); None is the model's own.

    Raises:
        ValueError: a model of another family, or one whose own forward does something else.
    """
    backbone = stage(model, spec, input_shape)
    if spec is None:
        backbone.spec = _spec(model, input_shape)
        backbone.set_classifier(backbone.classifier)
    headless = backbone.classifier is None and not _has_norm_pre(model)
    check_answers(backbone, model, model.forward_features if headless else None)
    return backbone


def _has_norm_pre(model: Any) -> bool:
    return isinstance(model, ConvNeXt) and _is_active(model.norm_pre)


def stage(
    model: Any, spec: dict[str, Any] | None, input_shape: Sequence[int] | None
) -> SequentialBackbone:
    """Stage a timm model as `from_instance` does, but compare nothing.

    Args:
        model, spec, input_shape: as for `from_instance`.

    Raises:
        ValueError: a model of another family.
    """
    if not isinstance(model, FAMILIES):
        raise ValueError(
            f"can't stage timm's {type(model).__name__}; of timm, VisionTransformer (ViT, DeiT), "
            "ResNet and ConvNeXt can be wrapped by themselves. For others name the parts: "
            "multiexit.wrap(model, stem=['stem'], stages=['stages.0', 'stages.1'])"
        )
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    _, *size = config.get("input_size", (3, 224, 224))
    if isinstance(model, VisionTransformer):
        size = model.patch_embed.img_size or size
    shape = (channels, *size) if input_shape is None else sizes(input_shape)
    options: dict[str, Any] = {"spec": spec, "classifier": _classifier(model)}
    if isinstance(model, VisionTransformer):
        stem, stages = _ViTStem(model), list(model.blocks)
        pool = "first" if model.global_pool == "token" else "mean"
        options |= {"norm": model.norm, "pool": pool, "layout": "tokens"}
    elif isinstance(model, ResNet):
        stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
        groups: list[Any] = [getattr(model, str(i["module"])) for i in model.feature_info[1:]]
        stages = [block for group in groups for block in group]
        options |= {"layout": "image"}
    else:
        stem, stages = model.stem, _convnext_blocks(model)
        options |= {"layout": "image"}
    return SequentialBackbone(stem, stages, torch.zeros(1, *shape), **options)


def from_name(
    name: str, input_shape: Sequence[int] | None = None, **kwargs: Any
) -> SequentialBackbone:
    """Make a timm model by its name, and stage it.

    Args:
        name: in timm.
        input_shape: of one image, (C, height, width); None is the model's own.
        kwargs: for `timm.create_model`.

    Raises:
        ValueError: an unknown name, arguments that it doesn't take.
    """
    kwargs = plain_values(kwargs)
    try:
        model = timm.create_model(name, **kwargs)
    except (RuntimeError, TypeError, AssertionError, ValueError, OSError) as error:
        shown = kwargs or "its defaults"
        raise ValueError(f"no timm model {name!r} with {shown}: {error}") from error
    shape = None if input_shape is None else sizes(input_shape)
    arguments = {key: value for key, value in kwargs.items() if key not in _WEIGHTS}
    spec = {"kind": "timm", "name": name, "input_shape": shape, "kwargs": arguments}
    return from_instance(model, spec, shape)


_WEIGHTS = ("pretrained", "checkpoint_path", "cache_dir")


def from_spec(spec: dict[str, Any]) -> SequentialBackbone:
    """Make the architecture of a saved spec, with random weights and without any download."""
    model = timm.create_model(spec["name"], pretrained=False, **spec["kwargs"])
    return stage(model, spec, spec.get("input_shape"))


def _classifier(model: Any) -> Classifier | None:
    """The model's own head, if it classifies."""
    last = model.head_dist if hasattr(model, "head_dist") else model.get_classifier()
    if not isinstance(last, nn.Module) or isinstance(last, nn.Identity):
        return None
    if hasattr(model, "head_dist"):
        return Classifier(_DistilledHead(model), _num_classes(model), nn.Identity())
    return Classifier(last, _num_classes(model), _HeadReader(model)) if _pools(model) else None


def _num_classes(model: Any) -> int:
    """K, of the head that there is now."""
    last = model.head if isinstance(model, VisionTransformer) else model.get_classifier()
    if isinstance(last, nn.Identity):
        return 0
    return int(getattr(last, "out_features", model.num_classes))


def _pools(model: Any) -> bool:
    if isinstance(model, VisionTransformer):
        return bool(model.global_pool)
    pool = model.head.global_pool if isinstance(model, ConvNeXt) else model.global_pool
    return bool(getattr(pool, "pool_type", True))


def _convnext_blocks(model: Any) -> list[nn.Module]:
    """A stage's downsampling belongs to its first block."""
    stages = []
    for stage in model.stages:
        first, *rest = stage.blocks
        stages += [nn.Sequential(stage.downsample, first), *rest]
    return stages


# How an instance is made again: its architecture's name, and what differs from that


def _spec(model: Any, input_shape: Sequence[int] | None) -> dict[str, Any] | None:
    """A name, and what can be read off an instance; whether that is right is seen later."""
    family, readers = next((f, r) for f, r in READERS.items() if isinstance(model, f))
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") or _DEFAULT_NAME[family](model)
    mine, kwargs = _arguments_of(model, readers), {}
    for _ in range(2):  # an argument may change what another one is by default
        try:
            with without_init():
                default_model = timm.create_model(name, pretrained=False, **kwargs)
        except Exception:  # a name that timm doesn't know, or what it can't make
            return None
        theirs = _arguments_of(default_model, readers)
        differing = {key: value for key, value in mine.items() if value != theirs.get(key)}
        if not differing:
            break
        kwargs |= differing
    shape = None if input_shape is None else sizes(input_shape)
    return {"kind": "timm", "name": name, "input_shape": shape, "kwargs": kwargs}


def _arguments_of(model: Any, readers: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    arguments = {}
    for name, read in readers.items():
        try:
            value = read(model)
        except (AttributeError, IndexError, TypeError):  # what this instance doesn't have
            continue
        value = list(value) if isinstance(value, tuple) else value
        arguments[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return arguments


def _is_active(module: Any) -> bool:
    return not isinstance(module, nn.Identity)


_VIT: dict[str, Callable[[Any], Any]] = {
    "img_size": lambda m: m.patch_embed.img_size,
    "patch_size": lambda m: m.patch_embed.patch_size,
    "in_chans": lambda m: m.patch_embed.proj.in_channels,
    "num_classes": _num_classes,
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
    "num_classes": _num_classes,
    "global_pool": lambda m: m.global_pool.pool_type,
    "output_stride": lambda m: m.feature_info[-1]["reduction"],
    "layers": lambda m: [len(getattr(m, info["module"])) for info in m.feature_info[1:]],
    "drop_rate": lambda m: m.drop_rate,
    "drop_path_rate": lambda m: getattr(m.layer4[-1].drop_path, "drop_prob", 0.0),
}
_CONVNEXT: dict[str, Callable[[Any], Any]] = {
    "in_chans": lambda m: m.in_chans,
    "num_classes": _num_classes,
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
READERS: dict[type, dict[str, Callable[[Any], Any]]] = {
    VisionTransformer: _VIT,
    ResNet: _RESNET,
    ConvNeXt: _CONVNEXT,
}
"""By family, how each argument of `timm.create_model` is read off an instance."""

_DEFAULT_NAME: dict[type, Callable[[Any], str]] = {  # for instances that their class made
    VisionTransformer: lambda m: "vit_base_patch16_224",
    ResNet: lambda m: "resnet50" if hasattr(m.layer1[0], "conv3") else "resnet18",
    ConvNeXt: lambda m: "convnext_tiny",
}
