"""Models of timm whose trunk is a stem and blocks: ViT and DeiT, ResNet, ConvNeXt."""

import copy
from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from multiexit.backbones.sequential import SequentialBackbone


class _ViTStem(nn.Module):
    """Patches, class token and positions, as `VisionTransformer.forward_features` has them."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        # A shallow copy that shares the parameters and lacks what comes after the positions.
        bare = copy.copy(vit)
        later = {"blocks", "norm", "fc_norm", "attn_pool", "head_drop", "head", "head_dist"}
        bare._modules = {k: v for k, v in vit._modules.items() if k not in later}
        bare._parameters = dict(vit._parameters)
        self.vit = bare

    def forward(self, x: Tensor) -> Tensor:
        x = self.vit._pos_embed(self.vit.patch_embed(x))
        return self.vit.norm_pre(self.vit.patch_drop(x))


def from_timm(
    model: nn.Module,
    spec: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> SequentialBackbone:
    """Stage a timm model: an exit after each block; the feature of a ViT has the final norm.

    Raises:
        ValueError: a model of another family.
    """
    if not isinstance(model, VisionTransformer | ResNet | ConvNeXt):
        raise ValueError(
            f"can't stage timm's {type(model).__name__}; of timm, VisionTransformer (ViT, DeiT), "
            "ResNet and ConvNeXt can be wrapped by themselves. For others name the parts: "
            "multiexit.wrap(model, stem=['stem'], stages=['stages.0', 'stages.1'])"
        )
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    spec = spec or _spec(model, config.get("architecture"), input_shape)
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    _, *size = config.get("input_size", (3, 224, 224))
    if isinstance(model, VisionTransformer):
        size = model.patch_embed.img_size or size
    example = torch.zeros(1, *(input_shape or (channels, *size)))
    classifier = model.get_classifier()  # type: ignore[operator]
    classifier = classifier if isinstance(classifier, nn.Linear) else None
    if isinstance(model, VisionTransformer):
        pool = "first" if model.global_pool == "token" else "mean"
        if pool == "mean":  # its classifier stands on other tokens and another norm
            classifier = None
        return SequentialBackbone(
            _ViTStem(model), list(model.blocks), example, model.norm, pool, spec, classifier
        )
    if isinstance(model, ResNet):
        stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
        groups = (model.layer1, model.layer2, model.layer3, model.layer4)
        blocks = [block for group in groups for block in group]  # type: ignore[union-attr]
        return SequentialBackbone(stem, blocks, example, spec=spec, classifier=classifier)
    return SequentialBackbone(model.stem, _convnext_blocks(model), example, spec=spec)


def from_name(
    name: str, input_shape: tuple[int, ...] | None = None, **kwargs: Any
) -> SequentialBackbone:
    """Make a timm model by its name; `kwargs` go to `timm.create_model`."""
    try:
        model = timm.create_model(name, **kwargs)
    except RuntimeError as error:  # what timm raises for an unknown name
        raise ValueError(f"no timm model {name!r}: {error}") from error
    plain = {key: value for key, value in kwargs.items() if key != "pretrained"}
    spec = {"kind": "timm", "name": name, "input_shape": input_shape, "kwargs": plain}
    return from_timm(model, spec, input_shape)


def _spec(
    model: Any, name: str | None, input_shape: tuple[int, ...] | None
) -> dict[str, Any] | None:
    """How to make an instance again: by its architecture's name, if that gives the same modules."""
    if name is None:
        return None
    kwargs = {"num_classes": model.num_classes}
    with torch.device("meta"):
        again = timm.create_model(name, **kwargs)
    if repr(again) != repr(model):
        return None
    return {"kind": "timm", "name": name, "input_shape": input_shape, "kwargs": kwargs}


def _convnext_blocks(model: Any) -> list[nn.Module]:
    """A stage's downsampling belongs to its first block."""
    stages = []
    for stage in model.stages:
        first, *rest = stage.blocks
        stages += [nn.Sequential(stage.downsample, first), *rest]
    return stages
