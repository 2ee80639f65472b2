"""Small random networks of timm and torchvision, one of each family, made when they are asked for.

A family of timm is a file of `timm.models`, one of torchvision a file that makes classifiers. Of
each the smallest network is taken, by its name, and made smaller where its arguments allow it.
What another version of the libraries lacks isn't here; what it has beside these is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from lively import perturb, settle
from torch import nn

CLASSES = 7
SIZE = 64

_IMAGE = {"img_size": SIZE}
_VIT = {**_IMAGE, "depth": 3, "embed_dim": 32, "num_heads": 4}
_ONES = (1, 1, 1, 1)

_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("cait convit deit eva tnt visformer vitamin xcit", {**_IMAGE, "depth": 3}),
    ("vision_transformer vision_transformer_hybrid", {**_IMAGE, "depth": 3}),
    ("vision_transformer_relpos", {**_IMAGE, "depth": 3}),
    ("beit naflexvit qwen3_vit", _VIT),
    ("deepseek_vit", {**_VIT, "img_size": 84}),
    ("gemma4_vit", {**_VIT, "head_dim": 8, "num_kv_heads": 4, "intermediate_size": 64}),
    ("vision_transformer_sam", {**_VIT, "neck_chans": 16, "global_attn_indexes": (1,)}),
    ("convnext cspnext davit edgenext efficientformer fasternet", {"depths": _ONES}),
    ("efficientformer_v2 inception_next lcnetv2 pvt_v2 starnet tiny_vit", {"depths": _ONES}),
    ("swin_transformer swin_transformer_v2", {**_IMAGE, "depths": _ONES}),
    ("swin_transformer_v2_cr twins", {**_IMAGE, "depths": _ONES}),
    ("fastvit res2net resnest resnet resnetv2 senet sknet tresnet", {"layers": _ONES}),
    ("sequencer swiftformer", {**_IMAGE, "layers": _ONES}),
    ("efficientvit_msra pit", {**_IMAGE, "depth": (1, 1, 1)}),
    ("shvit", {"depth": (1, 1, 1)}),
    ("coat", {**_IMAGE, "serial_depths": _ONES}),
    ("maxxvit mlp_mixer nest", _IMAGE),
    ("hieradet_sam2", {"embed_dim": 16, "num_heads": 1}),
    ("vgg", {"mlp_ratio": 0.01}),
]
SMALL = {family: arguments for families, arguments in _ARGUMENTS for family in families.split()}
"""Family of timm → arguments that make its network smaller."""

SIZES = {
    **dict.fromkeys(("inception_resnet_v2", "inception_v3", "inception_v4", "nasnet"), 96),
    **dict.fromkeys(("pnasnet", "pvt_v2"), 96),
    "hieradet_sam2": 128,
    **dict.fromkeys(("byoanet", "crossvit", "efficientformer", "efficientformer_v2"), None),
    **dict.fromkeys(("gcvit", "hiera", "levit", "mvitv2", "volo"), None),
    "torchvision/alexnet": 224,  # where its convolutions are most of the compute
    "torchvision/efficientnet": 128,
    "torchvision/inception": 96,
    **dict.fromkeys(("torchvision/maxvit", "torchvision/vision_transformer"), 224),
}
"""Family → height and width of its images where not 64; None is the network's own."""

_SLOW = """
beit byoanet coat convmixer csatv2 cspnet davit deepseek_vit densenet dpn edgenext efficientformer
efficientformer_v2 efficientvit_msra fastvit focalnet gcvit ghostnet hgnet hiera hieradet_sam2 hrnet
inception_resnet_v2 inception_v3 inception_v4 levit lowformer maxxvit mlp_mixer mobilenetv3
mobilenetv5 mobilevit mvitv2 naflexvit nasnet nest nextvit pnasnet pvt_v2 rdnet regnet repghost
repvit rexnet selecsls sequencer swin_transformer swin_transformer_v2 swin_transformer_v2_cr tnt
tresnet twins vgg volo xception xception_aligned xcit
"""
_SLOW_OF_TORCHVISION = """
convnext densenet efficientnet inception maxvit mnasnet regnet swin_transformer vgg
vision_transformer
"""
SLOW = {
    *(f"timm/{family}" for family in _SLOW.split()),
    *(f"torchvision/{family}" for family in _SLOW_OF_TORCHVISION.split()),
}
"""Entries that take about a second or more: `benchmarks/families.py` runs them too."""


@dataclass(frozen=True)
class Entry:
    """A network that can be made.

    Attributes:
        library: `"timm"` or `"torchvision"`.
        family: the library's file.
        name: the library's for the network.
        make: Makes it, in evaluation mode, always with the same weights.
        input_shape: of one image, for `mx.wrap`; None is the network's own.
    """

    library: str
    family: str
    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, int, int] | None


def _made(make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> nn.Module:
    """The network, seeded; the caller's random numbers go on as they would have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make().eval()
        perturb(network)
        settle(network, torch.randn(8, *shape))
    return network


_SMALLEST = (
    "test zepto atto femto pico nano xxs xxt xxtiny xs xt xtiny tiny t ti mini micro small s"
)
_LARGEST = "m medium base large l xl xlarge huge h giant g"


def _size(name: str) -> tuple[int, list[int], int]:
    """Where a name stands among others of its family, by its words and numbers."""
    words = [part.strip("0123456789") for part in name.split("_")]
    small, large = _SMALLEST.split(), _LARGEST.split()
    ranks = [small.index(word) - len(small) for word in words if word in small]
    ranks = ranks or [large.index(word) + 1 for word in words if word in large]
    numbers = [int(number) for number in re.findall("(?<!v)[0-9]+", name)]  # a version is no size
    return min(ranks, default=0), numbers, len(name)


def _of_timm(family: str) -> Entry:
    import timm

    name = min(timm.list_models(module=family), key=_size)
    config = timm.get_pretrained_cfg(name)
    own_shape = config.input_size if config else (3, 224, 224)
    arguments = SMALL.get(family, {})
    size = arguments.get("img_size") or SIZES.get(family, SIZE)
    shape = own_shape if size is None else (3, size, size)
    make = partial(timm.create_model, name, num_classes=CLASSES, **arguments)
    return Entry("timm", family, name, partial(_made, make, shape), shape)


def of_torchvision(name: str) -> Entry:
    """The classifier of this name."""
    from torchvision.models import get_model, get_model_builder

    family = get_model_builder(name).__module__.rpartition(".")[2]
    size = SIZES.get(f"torchvision/{family}", SIZE)
    make = partial(get_model, name, weights=None, num_classes=CLASSES)
    return Entry(
        "torchvision", family, name, partial(_made, make, (3, size, size)), (3, size, size)
    )


@cache
def zoo() -> dict[str, Entry]:
    """`library/family` → its entry. Not made when it is imported: timm takes seconds."""
    import timm

    entries = [_of_timm(family) for family in timm.list_modules()]
    smallest: dict[str, Entry] = {}
    for entry in map(of_torchvision, sorted(torchvision_names(), key=_size)):
        smallest.setdefault(entry.family, entry)
    return {f"{entry.library}/{entry.family}": entry for entry in (*entries, *smallest.values())}


def torchvision_names() -> list[str]:
    """The names of all classifiers of torchvision."""
    from torchvision import models

    return models.list_models(module=models)
