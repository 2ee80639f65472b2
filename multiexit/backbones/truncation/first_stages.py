"""A backbone that ends earlier, without the stages behind."""

from typing import Any

from torch import nn

from multiexit.backbones.base import Backbone
from multiexit.backbones.layers.shell import Recorder
from multiexit.backbones.parts import part_of


def first_stages(backbone: Backbone, count: int) -> Backbone:
    """A backbone of another one's first stages: it shares them, and lacks the others.

    It has no description, and no head or pooler to start from.

    Args:
        backbone: which stays as it is.
        count: how many stages it has.

    Example:
        >>> import multiexit as mx
        >>> from multiexit.backbones.truncation.first_stages import first_stages
        >>> backbone = mx.cifar_resnet(20)
        >>> short = first_stages(backbone, 3)
        >>> short.num_stages, short.stage_module(2) is backbone.stage_module(2)
        (3, True)
    """
    modules = {id(module) for module in backbone.modules()}
    kept, later = set[int](), set[int]()
    for index in range(backbone.num_stages):
        stage = backbone.stage_module(index)
        parts = [stage] if id(stage) in modules else list(stage.children())  # a slice of a list
        (kept if index < count else later).update(map(id, parts))
    short = part_of(_without(backbone, later - kept), parameters=True)
    short._layouts = backbone.layouts[:count]
    short.feature_shapes = backbone.feature_shapes[:count]
    short.spec, short._pretrained = None, {"pooler": None, "classifier": None}
    return short


def _without(module: nn.Module, parts: set[int]) -> Any:
    """The module itself where it has none of these parts, else a shallow copy without them."""
    if isinstance(module, Recorder) and id(module._layer[0]) in parts:
        recorder = part_of(module)
        recorder._layer = (part_of(module._layer[0], only=()),)  # whose settings a network reads
        return recorder
    children = {
        name: child and (nn.Identity() if id(child) in parts else _without(child, parts))
        for name, child in module._modules.items()
    }
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    short = part_of(module, parameters=True)
    short._modules = children
    return short
