"""One head per exit, by name or by a user's function."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from multiexit.backbones.base import Backbone
from multiexit.heads import chained
from multiexit.heads.base import ChainedHead, Factory, Head, Shape, VectorHead, width_of
from multiexit.heads.plain import AttentionHead, LinearHead, MixedPoolHead, PoolerHead


class _Plain(Head):
    """A user's module, which takes the feature alone."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.module(feature)


def build(
    head: str | Factory, pool: str, backbone: Backbone, stages: Sequence[int], num_classes: int
) -> nn.ModuleList:
    """One head per exit.

    Args:
        head: `"linear"`, `"pooler"` (a pooler shared by all exits), `"own-pooler"`, `"attention"`
            (FastBERT), `"mixed-pool"` (Shallow-Deep), or a function `(shape, K) -> nn.Module`.
            A name may have one of `multiexit.heads.CHAINED` behind a plus: `"pooler+lte"`;
            nothing before the plus is the backbone's own.
        pool: `"first"` or `"mean"`.
        backbone: gives the features' shapes and pretrained poolers and classifiers to start from.
        stages: the stage of each exit.
        num_classes: K; 1 for regression.

    Raises:
        ValueError: an unknown head or pool, or one that the features don't suit.
    """
    shapes = [backbone.feature_shapes[stage] for stage in stages]
    layouts = [backbone.layouts[stage] for stage in stages]
    if pool not in ("first", "mean"):
        raise ValueError(f"no pooling {pool!r}; there are 'first' and 'mean'")
    if isinstance(head, nn.Module):
        raise ValueError(
            "head is a module; pass a function (feature shape, classes) -> nn.Module, which makes "
            "one for each exit"
        )
    if callable(head):
        made = [head(shape, num_classes) for shape in shapes]
        return nn.ModuleList(
            module if isinstance(module, Head | ChainedHead) else _Plain(module) for module in made
        )
    name, plus, link = head.partition("+")
    heads = _named(name or backbone.head, pool, backbone, shapes, layouts, num_classes)
    if isinstance(heads[-1], LinearHead | PoolerHead) and stages[-1] == backbone.num_stages - 1:
        _start_from(heads[-1].linear, backbone.classifier)
    return nn.ModuleList(chained.chain(link, heads) if plus else heads)


def _named(
    name: str,
    pool: str,
    backbone: Backbone,
    shapes: list[Shape],
    layouts: list[str],
    num_classes: int,
) -> Sequence[VectorHead]:
    both = list(zip(shapes, layouts, strict=True))
    match name:
        case "linear":
            return [LinearHead(shape, num_classes, pool, layout) for shape, layout in both]
        case "pooler" | "own-pooler":
            widths = [width_of(shape, layout) for shape, layout in both]
            poolers = _poolers(widths, backbone.pooler, shared=name == "pooler")
            return [
                PoolerHead(pooler, num_classes, pool, layout)
                for pooler, layout in zip(poolers, layouts, strict=True)
            ]
        case "attention":
            what = "the attention head reads tokens [B, T, H] (images: head='linear')"
            _need(both, ("tokens",), what)
            return [AttentionHead(shape, num_classes) for shape in shapes]
        case "mixed-pool":
            what = "mixed pooling reads images [B, C, height, width]"
            _need(both, ("image", "channels-last-image"), what)
            return [MixedPoolHead(shape, num_classes, layout) for shape, layout in both]
    raise ValueError(
        f"no head {name!r}; there are 'linear', 'pooler', 'own-pooler', 'attention', 'mixed-pool', "
        "or pass a function (feature shape, classes) -> nn.Module"
    )


def _poolers(widths: list[int], pretrained: nn.Linear | None, shared: bool) -> list[nn.Linear]:
    if shared and len(set(widths)) > 1:
        raise ValueError(
            f"a shared pooler needs features of one width; these have {sorted(set(widths))}: "
            "use head='own-pooler' or head='linear'"
        )

    def pooler(width: int) -> nn.Linear:
        made = nn.Linear(width, width)
        _start_from(made, pretrained)
        return made

    first = pooler(widths[0])
    return [first if shared or i == 0 else pooler(width) for i, width in enumerate(widths)]


def _start_from(linear: nn.Linear, pretrained: nn.Linear | None) -> None:
    if pretrained is not None and pretrained.weight.shape == linear.weight.shape:
        linear.load_state_dict(copy.deepcopy(pretrained.state_dict()))


def _need(features: list[tuple[Shape, str]], layouts: tuple[str, ...], what: str) -> None:
    for shape, layout in features:
        if layout not in layouts:
            raise ValueError(
                f"{what}; this backbone's features have shape (B, {shape}), layout {layout!r}"
            )
