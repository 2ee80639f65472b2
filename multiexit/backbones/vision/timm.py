"""Models of timm: ViT and DeiT, ResNet, ConvNeXt by their parts, others as any network."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from multiexit.arguments import unknown
from multiexit.backbones.base import Backbone
from multiexit.backbones.classifier import NetworkHead
from multiexit.backbones.graphs import cuts
from multiexit.backbones.parts import part_of
from multiexit.backbones.same import without_init
from multiexit.backbones.sequential import SequentialBackbone, sizes
from multiexit.backbones.specs import TIMM, plain_values
from multiexit.backbones.vision.instances import stage_instance
from multiexit.backbones.vision.timm_families import (
    OTHERS,
    TimmFamily,
    family_of,
    image_size,
    in_channels,
    num_classes,
)


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
    layout: str | Sequence[str] | None = None,
) -> Backbone:
    """Stage a timm model: an exit after each block; the feature of a ViT has the final norm.

    The model's own head, whatever it looks like, is the backbone's classifier.

    Args:
        model: of timm.
        spec: by which it is made again; None is found from the model.
        input_shape: of one image, (C, height, width); None is the model's own.
        layout: of the features, for a model of no family where it can't be told.

    Raises:
        ValueError: a model that can't be staged, or one whose own forward does something else.
    """
    spec = _spec(model, input_shape) if spec is None else spec
    family = family_of(model)
    by_parts = None if family is None else partial(stage, model, spec, input_shape)
    last = None if family is None or family.unread(model) else model.forward_features
    example = _example(model, spec, input_shape)
    backbone = stage_instance(model, example, spec, layout, by_parts, last)
    if family is None and getattr(model, "num_classes", None) == 0:
        backbone.set_classifier(None)
    return backbone


def stage(model: Any, spec: dict[str, Any] | None, input_shape: Sequence[int] | None) -> Backbone:
    """Stage a timm model of a family as `from_instance` does, but compare nothing.

    Args:
        model, spec, input_shape: as for `from_instance`.
    """
    family = family_of(model)
    assert family is not None
    stem, blocks, options = family.trunk(model)
    return SequentialBackbone(
        stem,
        blocks,
        _example(model, spec, input_shape),
        spec=spec,
        classifier=_classifier(model, family),
        **options,
    )


def _example(model: Any, spec: dict[str, Any] | None, input_shape: Sequence[int] | None) -> Tensor:
    """One row, [1, C, height, width]: of the shape that is asked for, or the model's own."""
    if input_shape is not None:
        return torch.zeros(1, *sizes(input_shape))
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    usual, *size = config.get("input_size", (3, 224, 224))
    channels = in_channels(model) if spec is None else spec["kwargs"].get("in_chans", usual)
    return torch.zeros(1, channels, *(image_size(model) or size))


def from_name(
    name: str,
    input_shape: Sequence[int] | None = None,
    layout: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Backbone:
    """Make a timm model by its name, and stage it.

    Args:
        name: in timm.
        input_shape: of one image, (C, height, width); None is the model's own.
        layout: as for `from_instance`.
        kwargs: for `timm.create_model`.

    Raises:
        ValueError: an unknown name, arguments that it doesn't take.
    """
    kwargs = plain_values(kwargs)
    model = made(name, kwargs)
    shape = None if input_shape is None else sizes(input_shape)
    arguments = {key: value for key, value in kwargs.items() if key not in _WEIGHTS}
    spec = {"kind": "timm", "name": name, "input_shape": shape, "kwargs": arguments}
    return from_instance(model, spec, shape, layout)


def made(name: str, kwargs: dict[str, Any]) -> Any:
    """The network of a name.

    Args:
        name: in timm.
        kwargs: for `timm.create_model`.

    Raises:
        ValueError: an unknown name, arguments that it doesn't take.
    """
    if not set(name) & set(":/") and not timm.is_model(name):  # others are of hub or folder
        raise unknown("timm model", name, names(), "timm.list_models()")
    try:
        return timm.create_model(name, **kwargs)
    except (RuntimeError, TypeError, AssertionError, ValueError, OSError) as error:
        shown = kwargs or "its defaults"
        raise ValueError(f"no timm model {name!r} with {shown}: {error}") from error


def names() -> list[str]:
    """What timm can make by name."""
    return timm.list_models()


_WEIGHTS = ("pretrained", "checkpoint_path", "cache_dir")


def from_spec(spec: dict[str, Any]) -> Backbone:
    """Make the architecture of a saved spec, with random weights and without any download."""
    return staged(timm.create_model(spec["name"], pretrained=False, **spec["kwargs"]), spec)


def staged(model: Any, spec: dict[str, Any]) -> Backbone:
    """Stage a model as its spec says, but compare nothing."""
    shape = spec.get("input_shape")
    if family_of(model) is None:
        return cuts.stage(model, _example(model, spec, shape), spec.get("layout"), spec)
    return stage(model, spec, shape)


def _classifier(model: Any, family: TimmFamily) -> NetworkHead | None:
    """The model's own head, if it classifies."""
    last = model.head_dist if hasattr(model, "head_dist") else model.get_classifier()
    if not isinstance(last, nn.Module) or isinstance(last, nn.Identity):
        return None
    if hasattr(model, "head_dist"):
        return NetworkHead(_DistilledHead(model), num_classes(model), nn.Identity())
    pool = family.pool(model)
    pools = bool(pool if isinstance(pool, str) else getattr(pool, "pool_type", True))
    return NetworkHead(last, num_classes(model), family.reader(model)) if pools else None


# How an instance is made again: its architecture's name, and what differs from that


def _spec(model: Any, input_shape: Sequence[int] | None) -> dict[str, Any] | None:
    """A name, the arguments that timm keeps, and what can be read off an instance besides.

    Whether that is right is seen later. timm keeps arguments since 1.0.31.
    """
    family = family_of(model)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    readers = OTHERS if family is None else family.arguments
    name = config.get("architecture") or (family.default_name(model) if family else "")
    mine, kwargs = _arguments_of(model, readers), _kept_arguments(model, name)
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


def _kept_arguments(model: Any, name: str) -> dict[str, Any]:
    """The arguments that a model was made with, as far as they can be written down."""
    kept = {}
    for argument in plain_values(getattr(model, "_model_args", {})).items():
        with suppress(ValueError):
            TIMM("backbone", {"kind": "timm", "name": name, "kwargs": dict([argument])})
            kept |= dict([argument])
    return kept


def _arguments_of(model: Any, readers: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    arguments = {}
    for name, read in readers.items():
        try:
            value = read(model)
        except (AttributeError, IndexError, StopIteration, TypeError):  # what this doesn't have
            continue
        value = list(value) if isinstance(value, tuple) else value
        arguments[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return arguments
