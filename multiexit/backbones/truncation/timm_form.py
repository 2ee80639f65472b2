"""The first stages of a timm network, as a network of its own class that ends there."""

from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from multiexit.backbones import same
from multiexit.backbones.base import Backbone
from multiexit.backbones.running import random_rows
from multiexit.backbones.truncation.first_stages import first_stages
from multiexit.backbones.truncation.head_steps import Step, steps
from multiexit.backbones.truncation.library_form import LibraryForm, share
from multiexit.backbones.vision.timm import staged
from multiexit.backbones.vision.timm_families import family_of
from multiexit.files.unreadable import one_line


def timm_form(
    backbone: Backbone, count: int, num_classes: int, labels: Sequence[Any] | None, pool: str | None
) -> LibraryForm:
    """Make the network of timm's own class that has a backbone's first stages.

    Its weights share their memory with the backbone's, and its mode is evaluation. By its
    `pretrained_cfg` timm's own `save_for_hf` writes what it is.

    Args:
        backbone: of a network of timm.
        count: how many stages it has.
        num_classes: K.
        labels: the classes' names, or None.
        pool: how its head pools before its only layer; None is the network's own head.

    Raises:
        ValueError: a backbone without a description, a class that has no arguments by which it
            ends there.
    """
    spec = backbone.spec or {}
    if spec.get("kind") != "timm":
        raise ValueError("its backbone has no description as a network of timm")
    arguments = {**spec["kwargs"], "num_classes": num_classes}
    network = _made(spec["name"], arguments)
    kind = type(network).__name__
    if pool is not None or count < backbone.num_stages:
        family = family_of(network)
        if family is None or family.shortened is None:
            raise ValueError(
                f"no arguments let {kind} end there with a head that pools and has one layer; "
                "its own head, after the last stage, can be cut out"
            )
        if pool is None:
            raise ValueError(f"the head of {kind} pools and has one layer, the exit's hasn't")
        if not isinstance(network.get_classifier(), nn.Module):
            raise ValueError(f"the head of {kind} has more layers than one, the exit's has one")
        arguments |= family.shortened(network, count, pool)
        network = _made(spec["name"], arguments)
    p = next(backbone.parameters())
    network.to(p.device, p.dtype).eval()
    _describe(network, arguments, labels)
    parts: Any = staged(network, spec)
    share(network, parts, first_stages(backbone, count).state_dict())
    head: list[Step] = [pool or "", network.get_classifier()]
    if pool is None:
        if parts.classifier is None:
            raise ValueError(f"the head of {kind} can't be told from its forward")
        head = steps(parts.classifier.read, parts.classifier.linear)
    (example,) = backbone.example_inputs().values()
    rows = {"x": random_rows(example, backbone, 2)}
    return LibraryForm(network, head, rows, lambda rows: network(rows["x"]))


def _made(name: str, arguments: dict[str, Any]) -> Any:
    try:
        with same.without_init():
            return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # whatever a class says to settings that it doesn't take
        raise ValueError(f"timm can't make {name!r} with {arguments}: {one_line(error)}") from error


def _describe(network: nn.Module, arguments: dict[str, Any], labels: Sequence[Any] | None) -> None:
    """Let a network say of itself what `timm.models.save_for_hf` writes."""
    config = dict(getattr(network, "pretrained_cfg", None) or {})
    config["num_classes"] = arguments["num_classes"]
    config["label_names"] = None if labels is None else [str(label) for label in labels]
    network.pretrained_cfg = config  # type: ignore[assignment]
    network._model_args = arguments  # type: ignore[assignment]
