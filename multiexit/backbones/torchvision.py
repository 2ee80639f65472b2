"""Models of torchvision whose trunk is a stem and blocks: ResNet and ViT."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer, get_model, list_models
from torchvision.models.resnet import BasicBlock, Bottleneck

from multiexit.arguments import unknown
from multiexit.backbones.classifier import Classifier, FirstToken
from multiexit.backbones.sequential import SequentialBackbone, sizes
from multiexit.backbones.specs import plain_values
from multiexit.backbones.verify import check_answers

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
) -> SequentialBackbone:
    """Stage a torchvision model: an exit after each block; the feature of a ViT has the final norm.

    The model's own head, whatever it looks like, is the backbone's classifier.

    Args:
        model: of torchvision.
        spec: by which it is made again; None is found from the model.
        input_shape: of one image, (C, height, width); None is the model's own.

    Raises:
        ValueError: a model of another family, or one whose own forward does something else.
    """
    backbone = stage(model, spec, input_shape)
    if spec is None:
        backbone.spec = _spec(model, input_shape)
        backbone.set_classifier(backbone.classifier)
    check_answers(backbone, model)
    return backbone


def stage(
    model: Any, spec: dict[str, Any] | None, input_shape: Sequence[int] | None
) -> SequentialBackbone:
    """Stage a torchvision model as `from_instance` does, but compare nothing.

    Args:
        model, spec, input_shape: as for `from_instance`.

    Raises:
        ValueError: a model of another family.
    """
    if isinstance(model, ResNet):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        groups: tuple[Any, ...] = (model.layer1, model.layer2, model.layer3, model.layer4)
        blocks = [block for group in groups for block in group]
        shape = (model.conv1.in_channels, 224, 224) if input_shape is None else sizes(input_shape)
        read = nn.Sequential(model.avgpool, nn.Flatten(1))
        classifier = _classifier(model.fc, read)
        example = torch.zeros(1, *shape)
        return SequentialBackbone(
            stem, blocks, example, spec=spec, classifier=classifier, layout="image"
        )
    if isinstance(model, VisionTransformer):
        size = model.image_size
        shape = (3, size, size) if input_shape is None else sizes(input_shape)
        heads = {"head": model.heads}
        if type(model.heads) is nn.Sequential and len(model.heads):
            heads = dict(model.heads.named_children())
        _, last = heads.popitem()
        return SequentialBackbone(
            _ViTStem(model),
            list(model.encoder.layers),
            torch.zeros(1, *shape),
            model.encoder.ln,
            "first",
            spec,
            _classifier(last, FirstToken(**heads)),
            "tokens",
        )
    raise ValueError(
        f"can't stage torchvision's {type(model).__name__}; of torchvision, ResNet and "
        "VisionTransformer can be wrapped by themselves. For others name the parts: "
        "multiexit.wrap(model, stem=['conv1'], stages=['layer1', 'layer2'])"
    )


def from_name(
    name: str, input_shape: Sequence[int] | None = None, **kwargs: Any
) -> SequentialBackbone:
    """Make a torchvision model by its name, and stage it.

    Args:
        name: in torchvision.
        input_shape: of one image, (C, height, width); None is the model's own.
        kwargs: for `torchvision.models.get_model`.

    Raises:
        ValueError: an unknown name, arguments that it doesn't take.
    """
    kwargs = plain_values(kwargs)
    if name.lower() not in list_models():
        raise unknown("torchvision model", name, list_models(), "torchvision.models.list_models()")
    try:
        model = get_model(name, **kwargs)
    except (ValueError, TypeError, NotImplementedError, KeyError, OSError) as error:
        shown = kwargs or "its defaults"
        raise ValueError(f"no torchvision model {name!r} with {shown}: {error}") from error
    shape = None if input_shape is None else sizes(input_shape)
    arguments = {k: v for k, v in kwargs.items() if k not in ("weights", "pretrained", "progress")}
    spec = {"kind": "torchvision", "name": name, "input_shape": shape, "kwargs": arguments}
    return from_instance(model, spec, shape)


def from_spec(spec: dict[str, Any]) -> SequentialBackbone:
    """Make the architecture of a saved spec, with random weights and without any download."""
    name, kwargs = spec["name"], dict(spec["kwargs"])
    if name == "ResNet":
        model = ResNet(block=BLOCKS[kwargs.pop("block")], **kwargs)
    elif name == "VisionTransformer":
        model = VisionTransformer(**kwargs)
    else:
        model = get_model(name, weights=None, **kwargs)
    return stage(model, spec, spec.get("input_shape"))


def _classifier(last: nn.Module, read: nn.Module) -> Classifier | None:
    """The model's own head, if it classifies; how many classes is seen when it runs."""
    if isinstance(last, nn.Identity):
        return None
    return Classifier(last, int(getattr(last, "out_features", 0)), read)


def _spec(model: Any, input_shape: Sequence[int] | None) -> dict[str, Any] | None:
    """A class and its arguments, read off an instance; if they are right is seen later."""
    try:
        kwargs = _resnet(model) if isinstance(model, ResNet) else _vit(model)
    except (AttributeError, IndexError, TypeError):  # of parts that were replaced
        return None
    shape = None if input_shape is None else sizes(input_shape)
    name = "ResNet" if isinstance(model, ResNet) else "VisionTransformer"
    return {"kind": "torchvision", "name": name, "input_shape": shape, "kwargs": kwargs}


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
