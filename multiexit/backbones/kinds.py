"""Sources of backbones by name, by class and by description: a row for each library."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from multiexit.backbones import specs
from multiexit.files.schema import Check, plain, table, text


class Kind(NamedTuple):
    """A library of networks, or an architecture of our own.

    Args:
        spec: checks a saved description.
        adapter: imports the module that makes such backbones, when one is asked for. It has
            `from_spec(spec)`; where there is a prefix, `from_name(name, **kwargs)` and `names()`;
            where there is a library, `from_instance(module, …)`.
        prefix: what its names begin with; None where they begin with nothing of their own.
        example: what a name goes on with, for messages.
        library: whose classes `from_instance` takes, as their modules' names begin.
        images: imports the module that says how its images are read, by `from_name(name,
            pretrained)` and `from_instance(module)`, see `multiexit.backbones.vision.own_images`.
        whole: an attribute that the library's networks have, and their parts have not.
    """

    spec: Check
    adapter: Callable[[], Any]
    prefix: str | None = None
    example: str = "NAME"
    library: str | None = None
    whole: str | None = None
    images: Callable[[], Any] | None = None


def _transformers() -> Any:
    from multiexit.backbones.transformers import transformer

    return transformer


def _transformers_images() -> Any:
    from multiexit.backbones.transformers import processors

    return processors


def _cifar_resnet() -> Any:
    from multiexit.backbones.vision import resnet

    return resnet


def _timm() -> Any:
    from multiexit.backbones.vision import timm

    return timm


def _torchvision() -> Any:
    from multiexit.backbones.vision import torchvision

    return torchvision


def _timm_images() -> Any:
    from multiexit.backbones.vision import timm_images

    return timm_images


def _torchvision_images() -> Any:
    from multiexit.backbones.vision import torchvision_images

    return torchvision_images


KINDS: dict[str, Kind] = {
    "transformers": Kind(
        specs.TRANSFORMERS,
        _transformers,
        library="transformers",
        whole="base_model",
        images=_transformers_images,
    ),
    "cifar_resnet": Kind(specs.CIFAR_RESNET, _cifar_resnet, "cifar-resnet-", "56"),
    "timm": Kind(specs.TIMM, _timm, "timm:", library="timm", images=_timm_images),
    "torchvision": Kind(
        specs.TORCHVISION,
        _torchvision,
        "torchvision:",
        library="torchvision",
        images=_torchvision_images,
    ),
}
"""By the `kind` that a saved description has. Any name without a prefix is one of the hub."""


def like(name: str) -> list[str]:
    """The names, with their prefixes, that differ from a name by no more than signs and capitals.

    >>> like("CIFAR ResNet 56")
    ['cifar-resnet-56']
    """
    found = []
    for kind in KINDS.values():
        try:
            known = [kind.prefix + known for known in kind.adapter().names()] if kind.prefix else []
        except ImportError:  # a library that isn't installed
            continue
        found += [k for k in known if _letters(name) in (_letters(k), _letters(k, kind.prefix))]
    return found


def _letters(name: str, prefix: str | None = None) -> str:
    """Letters and digits alone, small, without what comes before them."""
    return re.sub(r"\W|_", "", name.removeprefix(prefix or "")).lower()


def check(spec: Any, key: str = "backbone") -> None:
    """Refuse a description that says anything but an architecture.

    Raises:
        ValueError: with the key, its value, and what would be right.
    """
    table({"kind": text}, rest=plain)(key, spec)
    kind = spec["kind"]
    if kind not in KINDS:
        raise ValueError(f"no backbone of kind {kind[:80]!r} in this version of multiexit")
    KINDS[kind].spec(key, spec)


def describable(spec: Any) -> bool:
    """Whether a description can be saved: whether `check` would take it when it is read."""
    try:
        check(spec)
    except ValueError:
        return False
    return True
