"""Models of torchvision whose trunk is a stem and blocks: ResNet and ViT."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, VisionTransformer, get_model

from multiexit.backbones.sequential import SequentialBackbone


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


def from_torchvision(
    model: nn.Module,
    spec: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> SequentialBackbone:
    """Stage a torchvision model: an exit after each block; the feature of a ViT has the final norm.

    Raises:
        ValueError: a model of another family.
    """
    if isinstance(model, ResNet):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        groups = (model.layer1, model.layer2, model.layer3, model.layer4)
        blocks = [block for group in groups for block in group]
        example = torch.zeros(1, *(input_shape or (model.conv1.in_channels, 224, 224)))
        return SequentialBackbone(stem, blocks, example, spec=spec, classifier=_linear(model.fc))
    if isinstance(model, VisionTransformer):
        size = model.image_size
        example = torch.zeros(1, *(input_shape or (3, size, size)))
        encoder = model.encoder
        layers = list(encoder.layers)
        classifier = _linear(model.heads[-1])
        return SequentialBackbone(
            _ViTStem(model), layers, example, encoder.ln, "first", spec, classifier
        )
    raise ValueError(
        f"can't stage torchvision's {type(model).__name__}; of torchvision, ResNet and "
        "VisionTransformer can be wrapped by themselves. For others name the parts: "
        "multiexit.wrap(model, stem=['conv1'], stages=['layer1', 'layer2'])"
    )


def from_name(
    name: str, input_shape: tuple[int, ...] | None = None, **kwargs: Any
) -> SequentialBackbone:
    """Make a torchvision model by its name; `kwargs` go to `torchvision.models.get_model`."""
    plain = {key: value for key, value in kwargs.items() if key != "weights"}
    spec = {"kind": "torchvision", "name": name, "input_shape": input_shape, "kwargs": plain}
    try:
        model = get_model(name, **kwargs)
    except ValueError as error:
        raise ValueError(f"no torchvision model {name!r}: {error}") from error
    return from_torchvision(model, spec, input_shape)


def _linear(module: nn.Module) -> nn.Linear | None:
    return module if isinstance(module, nn.Linear) else None
