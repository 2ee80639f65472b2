"""Models of torchvision that classify images: ResNet and ViT by parts, others as any network."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import ResNet, VisionTransformer, get_model
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth

from multiexit.arguments import unknown
from multiexit.backbones.base import Backbone
from multiexit.backbones.classifier import FirstToken, NetworkHead
from multiexit.backbones.graphs import cuts
from multiexit.backbones.same import without_init
from multiexit.backbones.sequential import SequentialBackbone, sizes
from multiexit.backbones.specs import plain_values
from multiexit.backbones.vision.instances import blocks_of, stage_instance

BLOCKS = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}


class _ViTStem(nn.Module):
    """Patches, class token and positions, as `VisionTransformer.forward` has them."""

    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.conv_proj = vit.conv_proj
        self.class_token = vit.class_token
        self.pos_embedding = vit.encoder.pos_embedding
        self.dropout = vit.encoder.dropout

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        return self.dropout(tokens + self.pos_embedding)


def from_instance(
    model: nn.Module,
    spec: dict[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    layout: str | Sequence[str] | None = None,
) -> Backbone:
    """Stage a torchvision model, as `from_instance` of `vision/timm.py` does one of timm."""
    spec = _spec(model, input_shape) if spec is None else spec
    by_parts = partial(stage, model, spec, input_shape) if isinstance(model, FAMILIES) else None
    return stage_instance(model, _example(model, input_shape), spec, layout, by_parts)


FAMILIES = (ResNet, VisionTransformer)


def _example(model: Any, input_shape: Sequence[int] | None) -> Tensor:
    """One row, [1, C, height, width]: of the shape that is asked for, or the model's own."""
    if input_shape is not None:
        return torch.zeros(1, *sizes(input_shape))
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    size = getattr(model, "image_size", 224)
    return torch.zeros(1, channels, size, size)


def stage(model: Any, spec: dict[str, Any] | None, input_shape: Sequence[int] | None) -> Backbone:
    """Stage a ResNet or ViT as `from_instance` does, but compare nothing.

    Args:
        model, spec, input_shape: as for `from_instance`.
    """
    example = _example(model, input_shape)
    if isinstance(model, ResNet):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        groups = (model.layer1, model.layer2, model.layer3, model.layer4)
        read = nn.Sequential(model.avgpool, nn.Flatten(1))
        classifier = _classifier(model.fc, read)
        return SequentialBackbone(
            stem, blocks_of(groups), example, spec=spec, classifier=classifier, layout="image"
        )
    heads = {"head": model.heads}
    if type(model.heads) is nn.Sequential and len(model.heads):
        heads = dict(model.heads.named_children())
    _, last = heads.popitem()
    return SequentialBackbone(
        _ViTStem(model),
        list(model.encoder.layers),
        example,
        model.encoder.ln,
        "first",
        spec,
        _classifier(last, FirstToken(**heads)),
        "tokens",
    )


def from_name(
    name: str,
    input_shape: Sequence[int] | None = None,
    layout: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Backbone:
    """Make a torchvision model by its name, and stage it.

    Args:
        name: in torchvision.
        input_shape: of one image, (C, height, width); None is the model's own.
        layout: as for `from_instance`.
        kwargs: for `torchvision.models.get_model`.

    Raises:
        ValueError: an unknown name, arguments that it doesn't take.
    """
    kwargs = plain_values(kwargs)
    check_name(name)
    try:
        model = get_model(name, **kwargs)
    except (ValueError, TypeError, NotImplementedError, KeyError, OSError) as error:
        shown = kwargs or "its defaults"
        raise ValueError(f"no torchvision model {name!r} with {shown}: {error}") from error
    shape = None if input_shape is None else sizes(input_shape)
    arguments = {k: v for k, v in kwargs.items() if k not in ("weights", "pretrained", "progress")}
    if not isinstance(model, FAMILIES):
        arguments |= _settings(model)
    spec = {"kind": "torchvision", "name": name, "input_shape": shape, "kwargs": arguments}
    return from_instance(model, spec, shape, layout)


def check_name(name: str) -> None:
    """Refuse a name that torchvision has no classifier of, by a ValueError."""
    if name.lower() not in (known := names()):
        where = "torchvision.models.list_models(module=torchvision.models)"
        raise unknown("torchvision classifier", name, known, where)


def names() -> list[str]:
    """What torchvision can make by name that classifies images."""
    return models.list_models(module=models)


def from_spec(spec: dict[str, Any]) -> Backbone:
    """Make the architecture of a saved spec, with random weights and without any download."""
    name, kwargs = spec["name"], dict(spec["kwargs"])
    if name == "ResNet":
        model = ResNet(block=BLOCKS[kwargs.pop("block")], **kwargs)
    elif name == "VisionTransformer":
        model = VisionTransformer(**kwargs)
    else:
        model = _made(name, kwargs)
    shape = spec.get("input_shape")
    if not isinstance(model, FAMILIES):
        return cuts.stage(model, _example(model, shape), spec.get("layout"), spec)
    return stage(model, spec, shape)


def _made(name: str, kwargs: dict[str, Any]) -> Any:
    """A network by its name, without weights; on the meta device too, whatever it works out."""
    try:
        return get_model(name, weights=None, **kwargs)
    except (RuntimeError, NotImplementedError):
        device = torch.get_default_device()
        if device.type != "meta":
            raise
        with without_init(), torch.device("cpu"):  # RegNet works out its widths by tensors
            return get_model(name, weights=None, **kwargs).to(device)


def _classifier(last: nn.Module, read: nn.Module) -> NetworkHead | None:
    """The model's own head, if it classifies; how many classes is seen when it runs."""
    if isinstance(last, nn.Identity):
        return None
    return NetworkHead(last, int(getattr(last, "out_features", 0)), read)


def _spec(model: Any, input_shape: Sequence[int] | None) -> dict[str, Any] | None:
    """A class and its arguments, or a name, by an instance; if they are right is seen later."""
    shape = None if input_shape is None else sizes(input_shape)
    spec = {"kind": "torchvision", "input_shape": shape}
    if not isinstance(model, FAMILIES):
        kwargs = _settings(model)
        for name in _names(model):
            other = _without_weights(name, kwargs)
            if other is not None and _shapes(other) == _shapes(model):
                return {**spec, "name": name, "kwargs": kwargs | _rates(model, other, name, kwargs)}
        return None
    try:
        kwargs = _resnet(model) if isinstance(model, ResNet) else _vit(model)
    except (AttributeError, IndexError, TypeError):  # of parts that were replaced
        return None
    name = "ResNet" if isinstance(model, ResNet) else "VisionTransformer"
    return {**spec, "name": name, "kwargs": kwargs}


def _names(model: nn.Module) -> list[str]:
    """The names of the models that the file of a model's class makes."""
    file = sys.modules[type(model).__module__]
    return [name for name in models.list_models(module=models) if hasattr(file, name)]


def _without_weights(name: str, kwargs: dict[str, Any]) -> nn.Module | None:
    try:
        with without_init():
            return get_model(name, weights=None, **kwargs)
    except Exception:  # whatever the library says to what it can't make
        return None


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(key, tensor.shape) for key, tensor in model.state_dict().items()]


def _rates(
    model: nn.Module, usual: nn.Module, name: str, kwargs: dict[str, Any]
) -> dict[str, float]:
    """Rates that aren't the usual ones: of dropout, and of a depth that grows by the block."""
    rates = {}
    for argument, kind in {"dropout": nn.Dropout, "stochastic_depth_prob": StochasticDepth}.items():
        mine, theirs = _last_rate(model, kind), _last_rate(usual, kind)
        if mine != theirs:
            most = _without_weights(name, {**kwargs, argument: 1.0})
            share = 0.0 if most is None else _last_rate(most, kind)
            rates |= {argument: float(f"{mine / share:.6g}")} if share else {}
    return rates


def _last_rate(model: nn.Module, kind: type[Any]) -> float:
    return [0.0, *(m.p for m in model.modules() if isinstance(m, kind))][-1]


def _settings(model: nn.Module) -> dict[str, Any]:
    """The settings that arguments, or weights loaded when it was made, have set."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    last = layers[-1]
    kwargs: dict[str, Any] = {
        "num_classes": last.out_features if isinstance(last, nn.Linear) else last.out_channels
    }
    for name in ("transform_input", "aux_logits"):
        if hasattr(model, name):
            kwargs[name] = getattr(model, name)
    return kwargs


def _resnet(model: Any) -> dict[str, Any]:
    groups = (model.layer1, model.layer2, model.layer3, model.layer4)
    return {
        "block": type(model.layer1[0]).__name__,
        "layers": [len(group) for group in groups],
        "num_classes": getattr(model.fc, "out_features", 1000),
        "groups": model.groups,
        "width_per_group": model.base_width,
        "replace_stride_with_dilation": [
            (group[0].conv2 if hasattr(group[0], "conv3") else group[0].conv1).stride == (1, 1)
            for group in groups[1:]
        ],
    }


def _vit(model: Any) -> dict[str, Any]:
    names = ("image_size", "patch_size", "hidden_dim", "mlp_dim", "dropout", "attention_dropout")
    layers = model.encoder.layers
    return {
        **{name: getattr(model, name) for name in names},
        "representation_size": model.representation_size,
        "num_layers": len(layers),
        "num_heads": layers[0].num_heads,
        "num_classes": getattr(model.heads[-1], "out_features", 1000),
    }
