"""One head per exit, by name or by a user's function."""

import os
from collections.abc import Sequence

from torch import Tensor, nn

from multiexit.backbones.base import Backbone
from multiexit.model.heads import chained
from multiexit.model.heads.base import ChainedHead, Factory, Head, Shape, VectorHead, width_of
from multiexit.model.heads.own import OwnHead
from multiexit.model.heads.plain import AttentionHead, LinearHead, MixedPoolHead, PoolerHead
from multiexit.names import unknown


class _FeatureHead(Head):
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

    An exit after the last stage is the network's own head, if the backbone came with one of as many
    classes: it answers as the network does, whatever the name of the other heads.

    Args:
        head: `"linear"`, `"pooler"` (a pooler shared by all exits), `"own-pooler"`, `"attention"`
            (FastBERT), `"mixed-pool"` (Shallow-Deep), or a function `(shape, K) -> nn.Module`.
            A name may have one of `multiexit.heads.CHAINED` behind a plus: `"pooler+lte"`;
            nothing before the plus is the backbone's own.
        pool: `"first"` or `"mean"`.
        backbone: gives the features' shapes, a pretrained pooler to start from, and its own head.
        stages: the stage of each exit.
        num_classes: K; 1 for regression.

    Raises:
        ValueError: an unknown head or pool, or one that the features don't suit.

    Example:
        >>> import multiexit as mx
        >>> heads = mx.heads.build("linear", "mean", mx.cifar_resnet(20), [2, 8], num_classes=10)
        >>> [head.linear.in_features for head in heads]
        [16, 64]
    """
    shapes = [backbone.feature_shapes[stage] for stage in stages]
    layouts = [backbone.layouts[stage] for stage in stages]
    if pool not in ("first", "mean"):
        raise unknown("pooling", pool, ("first", "mean"))
    if isinstance(head, nn.Module):
        raise ValueError(
            "head is a module; pass a function (feature shape, classes) -> nn.Module, which makes "
            "one for each exit"
        )
    if callable(head):
        modules = [head(shape, num_classes) for shape in shapes]
        return nn.ModuleList(
            module if isinstance(module, Head | ChainedHead) else _FeatureHead(module)
            for module in modules
        )
    name, plus, link = head.partition("+")
    network_head = own_head(backbone, stages, num_classes)
    early = len(stages) - (network_head is not None)
    pooler = backbone.pooler
    owns_pooler = network_head is not None and any(
        part is pooler for part in network_head.modules()
    )
    heads: list[VectorHead] = _plain_heads(
        name or backbone.head,
        pool,
        pooler,
        owns_pooler,
        shapes[:early],
        layouts[:early],
        num_classes,
    )
    heads += [] if network_head is None else [network_head]
    return nn.ModuleList(chained.chain(link, heads) if plus else heads)


def own_head(backbone: Backbone, stages: Sequence[int], num_classes: int) -> OwnHead | None:
    """The network's own head, if the last exit can be that.

    Args:
        backbone: which may have a classifier.
        stages: the stage of each exit.
        num_classes: K.

    Returns:
        The head, or None: where there is no classifier, or one of other classes, or no exit
        behind the last stage.

    Example:
        >>> import torch, multiexit as mx
        >>> backbone = mx.cifar_resnet(20)
        >>> backbone.set_classifier(torch.nn.Linear(64, 10))
        >>> [type(mx.heads.own_head(backbone, [2, 8], classes)).__name__ for classes in (10, 7)]
        ['OwnHead', 'NoneType']
    """
    classifier = backbone.classifier
    if (
        classifier is None
        or classifier.num_classes != num_classes
        or stages[-1] != backbone.num_stages - 1
    ):
        return None
    return OwnHead(classifier)


def _plain_heads(
    name: str,
    pool: str,
    pooler: nn.Linear | None,
    owns_pooler: bool,
    shapes: list[Shape],
    layouts: list[str],
    num_classes: int,
) -> list[VectorHead]:
    """Heads with random last layers.

    Args:
        pooler: the pretrained one to start from.
        owns_pooler: whether the network's own head has it, so that it is shared with that.
        name, pool, shapes, layouts, num_classes: as in `build`.
    """
    features = list(zip(shapes, layouts, strict=True))
    _check_memory(sum(width_of(shape, layout) for shape, layout in features), num_classes)
    match name:
        case "linear":
            return [LinearHead(shape, num_classes, pool, layout) for shape, layout in features]
        case "pooler" | "own-pooler":
            widths = [width_of(shape, layout) for shape, layout in features]
            shared = name == "pooler"
            own = pooler if shared and owns_pooler else None
            poolers = [own for _ in widths] if own else _poolers(widths, pooler, shared)
            return [
                PoolerHead(pooler, num_classes, pool, layout)
                for pooler, layout in zip(poolers, layouts, strict=True)
            ]
        case "attention":
            requirement = "the attention head reads tokens [B, T, H] (images: head='linear')"
            _check_layouts(features, ("tokens",), requirement)
            return [AttentionHead(shape, num_classes) for shape in shapes]
        case "mixed-pool":
            requirement = "mixed pooling reads images [B, C, height, width]"
            _check_layouts(features, ("image", "channels-last-image"), requirement)
            return [MixedPoolHead(shape, num_classes, layout) for shape, layout in features]
    raise ValueError(
        f"{unknown('head', name, ('linear', 'pooler', 'own-pooler', 'attention', 'mixed-pool'))}; "
        "or pass a function (feature shape, classes) -> nn.Module"
    )


def _poolers(widths: list[int], pretrained: nn.Linear | None, shared: bool) -> list[nn.Linear]:
    if shared and len(set(widths)) > 1:
        raise ValueError(
            f"a shared pooler needs features of one width; these have {sorted(set(widths))}: "
            "use head='own-pooler' or head='linear'"
        )

    def new_pooler(width: int) -> nn.Linear:
        pooler = nn.Linear(width, width)
        if pretrained is not None and pretrained.weight.shape == pooler.weight.shape:
            pooler.load_state_dict(pretrained.state_dict())
        return pooler

    poolers: list[nn.Linear] = []
    for width in widths:
        poolers.append(poolers[0] if shared and poolers else new_pooler(width))
    return poolers


def _check_layouts(features: list[tuple[Shape, str]], layouts: tuple[str, ...], what: str) -> None:
    for shape, layout in features:
        if layout not in layouts:
            raise ValueError(
                f"{what}; this backbone's features have shape (B, {shape}), layout {layout!r}"
            )


def _check_memory(widths: int, num_classes: int) -> None:
    """Refuse classes whose weights alone this machine can't hold."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * widths * num_classes > memory:
        raise ValueError(
            f"num_classes is {num_classes:,}: the exits alone would take "
            f"{4 * widths * num_classes / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB"
        )
