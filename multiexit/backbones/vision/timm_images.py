"""How images are read for networks of timm, as `multiexit.backbones.vision.own_images` has it."""

import math
from typing import Any

from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from multiexit.backbones.same import without_init
from multiexit.backbones.vision import timm
from multiexit.backbones.vision.own_images import OwnImages


def from_name(name: str, pretrained: bool) -> OwnImages | None:
    """What the configuration of a name says.

    Args:
        name: in timm.
        pretrained: is not asked: a network says it with and without its weights.

    Raises:
        ValueError: an unknown name.
    """
    del pretrained
    with without_init():
        return from_instance(timm.made(name, {}), f"timm:{name}")


def from_instance(model: Any, what: str | None = None) -> OwnImages | None:
    """What the configuration of a network says.

    Args:
        model: of timm.
        what: its name.
    """
    if not getattr(model, "pretrained_cfg", None):
        return None
    config = resolve_data_config({}, model=model)
    height, width = (math.floor(side / config["crop_pct"]) for side in config["input_size"][1:])
    resize = [height, width] if config["crop_mode"] == "squash" or height != width else height
    read: Any = create_transform(**config, is_training=False)
    return OwnImages(
        what or type(model).__name__,
        read,
        config["mean"],
        config["std"],
        config["interpolation"],
        [resize],
    )
