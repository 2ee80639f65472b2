"""One head per exit, by name or by a user's function."""

import os
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from multiexit.arguments import unknown
from multiexit.backbones.base import Backbone
from multiexit.model.heads import chained, plain, vectors
from multiexit.model.heads.base import ChainedHead, Factory, Features, Head, VectorHead
from multiexit.model.heads.own import OwnHead
from multiexit.model.heads.rows import check_rows
from multiexit.model.heads.tokens import token_heads
from multiexit.problems import are_vectors, resolve

HEADS: dict[str, Callable[[Features], Sequence[VectorHead]]] = {
    "linear": plain.linear,
    "pooler": plain.one_pooler,
    "own-pooler": plain.own_poolers,
    "attention": plain.attention,
    "mixed-pool": plain.mixed_pool,
}
"""By name, what makes the heads of all exits, with random last layers."""


class _FeatureHead(Head):
    """A user's module, which takes the feature alone."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.module(feature)


def usual(backbone: Backbone, problem: str) -> str:
    """The name of the head that suits a backbone and a problem.

    Example:
        >>> import multiexit as mx
        >>> mx.heads.usual(mx.cifar_resnet(20), "classification")
        'linear'
    """
    linear = problem == "token-classification" or are_vectors(problem)
    return "linear" if linear else backbone.head


def build(
    head: str | Factory,
    pool: str,
    backbone: Backbone,
    stages: Sequence[int],
    num_classes: int,
    problem: str | None = None,
) -> nn.ModuleList:
    """One head per exit.

    An exit after the last stage is the network's own head, if the backbone came with one of as many
    classes: it answers as the network does, whatever the name of the other heads. Where outputs are
    vectors it is otherwise the pooled feature itself, and linear heads begin as that.

    Args:
        head: a name of `multiexit.heads.HEADS`, or a function `(shape, K) -> nn.Module`. A name
            may have one of `multiexit.heads.CHAINED` behind a plus: `"pooler+lte"`; nothing before
            the plus is the backbone's own.
        pool: `"first"`, `"last"` or `"mean"`.
        backbone: gives the features' shapes, a pretrained pooler to start from, and its own head.
        stages: the stage of each exit.
        num_classes: K; 1 for regression.
        problem: the model's; None is classification, or with one output regression. Where it is
            `"token-classification"`, heads give logits for each token, and aren't chained;
            those that give vectors aren't either.

    Raises:
        ValueError: an unknown head or pool, or one that the features or the problem don't suit; a
            function's head that mixes the rows of a batch.

    Example:
        >>> import multiexit as mx
        >>> heads = mx.heads.build("linear", "mean", mx.cifar_resnet(20), [2, 8], num_classes=10)
        >>> [head.linear.in_features for head in heads]
        [16, 64]
    """
    if pool not in ("first", "last", "mean"):
        raise unknown("pooling", pool, ("first", "last", "mean"))
    if isinstance(head, nn.Module):
        raise ValueError(
            "head is a module; pass a function (feature shape, classes) -> nn.Module, which makes "
            "one for each exit"
        )
    if callable(head):
        modules = [head(backbone.feature_shapes[stage], num_classes) for stage in stages]
        own = nn.ModuleList(
            module if isinstance(module, Head | ChainedHead) else _FeatureHead(module)
            for module in modules
        )
        check_rows([*own], [backbone.feature_shapes[stage] for stage in stages])
        return own
    name, plus, link = head.partition("+")
    answers_tokens, gives_vectors = problem == "token-classification", are_vectors(problem)
    if plus and answers_tokens:
        raise ValueError(
            f"heads chained by '+{link}' make one answer of a row, and token-classification has "
            "one for each token: use head='linear'"
        )
    if plus and gives_vectors:
        raise ValueError(f"head {head!r} chains logits of classes; for vectors leave '+{link}' out")
    network_head: VectorHead | None = own_head(backbone, stages, num_classes, problem)
    last = backbone.num_stages - 1
    if gives_vectors and network_head is None and stages[-1] == last:
        shape, layout = backbone.feature_shapes[last], backbone.layouts[last]
        network_head = vectors.PooledHead(shape, num_classes, pool, layout)
    early = stages if network_head is None else stages[:-1]
    shared = set() if network_head is None else set(network_head.modules())
    features = Features(
        [backbone.feature_shapes[stage] for stage in early],
        [backbone.layouts[stage] for stage in early],
        num_classes,
        pool,
        backbone.pooler,
        backbone.pooler in shared,
    )
    if answers_tokens:
        heads: list[VectorHead] = [*token_heads(name, features)]
    else:
        heads = _by_name(name or backbone.head, features)
    if gives_vectors:
        vectors.start_as_pooled(heads)
    heads += [] if network_head is None else [network_head]
    return nn.ModuleList(chained.chain(link, heads, problem) if plus else heads)


def own_head(
    backbone: Backbone, stages: Sequence[int], num_classes: int, problem: str | None = None
) -> OwnHead | None:
    """The network's own head, if the last exit can be that.

    Args:
        backbone: which may have a classifier.
        stages: the stage of each exit.
        num_classes: K.
        problem: the model's; None is classification, or with one output regression.

    Returns:
        The head, or None: where there is no classifier, or one of other classes or for another
        problem, or no exit behind the last stage.

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
        or not classifier.serves(resolve(problem, num_classes), num_classes)
        or stages[-1] != backbone.num_stages - 1
    ):
        return None
    return OwnHead(classifier)


def hides_head(backbone: Backbone, stages: Sequence[int], num_classes: int) -> bool:
    """Whether the last stage may be the network's own head: it gives a number for each class.

    Args:
        backbone: which may have a classifier; then its stages aren't that.
        stages: the stage of each exit.
        num_classes: K.
    """
    ends = stages[-1] == backbone.num_stages - 1
    return ends and backbone.classifier is None and backbone.feature_shapes[-1] == (num_classes,)


def _by_name(name: str, features: Features) -> list[VectorHead]:
    _check_memory(sum(features.widths), features.num_classes)
    if name not in HEADS:
        raise ValueError(
            f"{unknown('head', name, HEADS)}; or pass a function (feature shape, classes) -> "
            "nn.Module"
        )
    return list(HEADS[name](features))


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
