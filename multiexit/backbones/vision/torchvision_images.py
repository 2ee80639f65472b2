"""How images are read for networks of torchvision, by the transforms of their weights."""

from typing import Any

from torchvision.models import get_model_weights

from multiexit.backbones.vision import torchvision
from multiexit.backbones.vision.own_images import OwnImages


def from_name(name: str, pretrained: bool) -> OwnImages | None:
    """What a name's usual weights say; without weights, nothing.

    Args:
        name: in torchvision.
        pretrained: whether it comes with its weights.

    Raises:
        ValueError: an unknown name.
    """
    torchvision.check_name(name)
    if not pretrained:
        return None
    weights: Any = get_model_weights(name)
    transforms = weights.DEFAULT.transforms()
    size = list(transforms.resize_size)
    return OwnImages(
        f"torchvision:{name}",
        transforms,
        transforms.mean,
        transforms.std,
        transforms.interpolation.value,
        size if len(size) == 1 else [size],
    )


def from_instance(model: Any) -> None:
    """Nothing: an instance doesn't know its weights."""
