"""Models of timm whose trunk is a stem and blocks: ViT and DeiT, ResNet, ConvNeXt."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from multiexit.arguments import unknown
from multiexit.backbones.classifier import Classifier
from multiexit.backbones.parts import part_of
from multiexit.backbones.same import without_init
from multiexit.backbones.sequential import SequentialBackbone, sizes
from multiexit.backbones.specs import plain_values
from multiexit.backbones.timm_families import Family, family_of, num_classes
from multiexit.backbones.verify import check_answers


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
    headless = backbone.classifier is None and not family_of(model).unread(model)
    check_answers(backbone, model, model.forward_features if headless else None)
    return backbone


def stage(
    model: Any, spec: dict[str, Any] | None, input_shape: Sequence[int] | None
) -> SequentialBackbone:
    """Stage a timm model as `from_instance` does, but compare nothing.

    Args:
        model, spec, input_shape: as for `from_instance`.

    Raises:
        ValueError: a model of another family.
    """
    family = family_of(model)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    _, *size = config.get("input_size", (3, 224, 224))
    size = family.size(model) or size
    shape = (channels, *size) if input_shape is None else sizes(input_shape)
    stem, blocks, options = family.trunk(model)
    return SequentialBackbone(
        stem,
        blocks,
        torch.zeros(1, *shape),
        spec=spec,
        classifier=_classifier(model, family),
        **options,
    )


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
    if not set(name) & set(":/") and not timm.is_model(name):  # others are of hub or folder
        raise unknown("timm model", name, timm.list_models(), "timm.list_models()")
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


def _classifier(model: Any, family: Family) -> Classifier | None:
    """The model's own head, if it classifies."""
    last = model.head_dist if hasattr(model, "head_dist") else model.get_classifier()
    if not isinstance(last, nn.Module) or isinstance(last, nn.Identity):
        return None
    if hasattr(model, "head_dist"):
        return Classifier(_DistilledHead(model), num_classes(model), nn.Identity())
    pool = family.pool(model)
    pools = bool(pool if isinstance(pool, str) else getattr(pool, "pool_type", True))
    return Classifier(last, num_classes(model), family.reader(model)) if pools else None


# How an instance is made again: its architecture's name, and what differs from that


def _spec(model: Any, input_shape: Sequence[int] | None) -> dict[str, Any] | None:
    """A name, and what can be read off an instance; whether that is right is seen later."""
    family = family_of(model)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture") or family.default_name(model)
    mine, kwargs = _arguments_of(model, family), {}
    for _ in range(2):  # an argument may change what another one is by default
        try:
            with without_init():
                default_model = timm.create_model(name, pretrained=False, **kwargs)
        except Exception:  # a name that timm doesn't know, or what it can't make
            return None
        theirs = _arguments_of(default_model, family)
        differing = {key: value for key, value in mine.items() if value != theirs.get(key)}
        if not differing:
            break
        kwargs |= differing
    shape = None if input_shape is None else sizes(input_shape)
    return {"kind": "timm", "name": name, "input_shape": shape, "kwargs": kwargs}


def _arguments_of(model: Any, family: Family) -> dict[str, Any]:
    arguments = {}
    for name, read in family.arguments.items():
        try:
            value = read(model)
        except (AttributeError, IndexError, TypeError):  # what this instance doesn't have
            continue
        value = list(value) if isinstance(value, tuple) else value
        arguments[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return arguments
