"""Backbones made again from their saved descriptions."""

from collections.abc import Mapping
from typing import Any

from multiexit.backbones import adapters, kinds
from multiexit.backbones.base import Backbone
from multiexit.backbones.classifier import linear_classifier


def rebuild(spec: dict[str, Any]) -> Backbone:
    """Make the architecture that a saved spec names, with fresh weights and no download.

    Nothing is fetched, and no file is opened: see `multiexit.backbones.specs`.

    Args:
        spec: a backbone's `spec`, as JSON holds it.

    Raises:
        ValueError: a kind that this version doesn't know, or anything in it that isn't plain and
            known.

    Example:
        >>> from multiexit.backbones import cifar_resnet, rebuild
        >>> spec = cifar_resnet(20).spec
        >>> spec["kind"], rebuild(spec).num_stages
        ('cifar_resnet', 9)
    """
    kinds.check(spec)
    plain = {key: value for key, value in spec.items() if key != "lora"}
    backbone: Backbone = kinds.KINDS[spec["kind"]].adapter().from_spec(plain)
    classifier = spec.get("classifier")
    if classifier is None or isinstance(classifier, Mapping):  # it was none of the kind's own
        backbone.set_classifier(
            linear_classifier(classifier, backbone.layouts[-1]) if classifier else None
        )
    if "lora" in spec:
        adapters.insert(backbone, spec["lora"])
    return backbone
