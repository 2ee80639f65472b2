"""The head that a network came with, as a part of its own.

Letters: B batch rows, T tokens, H width, D of the vector that the last layer reads, K classes.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.backbones.pooling import pool_feature

TOKEN_PROBLEM = "token-classification"


class NetworkHead(nn.Module):
    """A network's own head on its last feature: `linear(read(feature))`, [B, …] → [B, K].

    Modules are shared with the network, not copied. Whatever lies between the last stage and the
    last layer belongs to `read`: pooling, norms, dropout, hidden layers.

    Args:
        linear: the last layer, D → K; an `nn.Linear` in most networks, or any module.
        num_classes: K.
        read: a module from the feature to the vector [B, D]; or how the feature is pooled,
            `"first"` or `"mean"`.
        labels: the classes' names, where the network knows them.
        layout: of the feature, for a pooling (`multiexit.backbones.layouts`).
        problem: what its outputs say of a row, a key of `multiexit.problems.PROBLEMS`; of
            `"token-classification"` they are [B, T, K]. None is not known: then it serves any
            problem of whole rows, and is itself classification, or with one output regression.

    Example:
        >>> import torch, multiexit as mx
        >>> own = mx.NetworkHead(torch.nn.Linear(8, 2), 2, read="mean", labels=["no", "yes"])
        >>> own(torch.rand(5, 8, 4, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        linear: nn.Module,
        num_classes: int,
        read: nn.Module | str,
        labels: Sequence[str] | None = None,
        layout: str | None = None,
        problem: str | None = None,
    ):
        super().__init__()
        self.linear = linear
        self.num_classes = num_classes
        self.problem = problem
        self.read = Pool(read, layout) if isinstance(read, str) else read
        self.labels = None if labels is None else list(labels)

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.linear(self.vector(feature, valid_BT))

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Make the vector [B, D] that the last layer reads."""
        return vector(self.read, feature, valid_BT)

    def serves(self, problem: str | None, num_classes: int) -> bool:
        """Whether it can be an exit of a model with so many outputs, for such a problem.

        Args:
            problem: a key of `multiexit.problems.PROBLEMS`, or None for its own.
            num_classes: of the model.
        """
        if self.num_classes != num_classes:
            return False
        known = self.problem is not None or problem == TOKEN_PROBLEM
        return problem in (None, self.problem) if known else True

    def check_labels(self, labels: Sequence[Any] | None) -> None:
        """Refuse the network's own names in another order than its own, by a ValueError."""
        own_names, names = _folded(self.labels), _folded(labels)
        if own_names != names and sorted(own_names) == sorted(names):
            raise ValueError(
                f"the labels {list(labels or [])} are the network's own in another order than its "
                f"head has them, {self.labels}: give them in that order, or none"
            )

    def ordered(self, labels: Sequence[str]) -> "NetworkHead | None":
        """A copy with the classes in the order of these names, if the network has the same ones.

        Capitals, spaces and hyphens don't count.
        """
        own_names, names = _folded(self.labels), _folded(labels)
        if sorted(own_names) != sorted(names) or not isinstance(self.linear, nn.Linear):
            return None
        index = torch.tensor(
            [own_names.index(name) for name in names], device=self.linear.weight.device
        )
        linear = copy.deepcopy(self.linear)
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(p[index])
        return NetworkHead(linear, self.num_classes, self.read, labels, problem=self.problem)


def _folded(labels: Sequence[Any] | None) -> list[str]:
    return [label.casefold().replace("-", "_").replace(" ", "_") for label in labels or ()]


def vector(read: nn.Module, feature: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Make the vector [B, D] that a network's last layer reads."""
    return read(feature, valid_BT) if getattr(read, "takes_valid", False) else read(feature)


class Pool(nn.Module):
    """A feature's mean, or one of its tokens: `multiexit.backbones.pooling.pool_feature`."""

    takes_valid = True

    def __init__(self, pool: str, layout: str | None = None):
        super().__init__()
        self.pool = pool
        self.layout = layout

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return pool_feature(feature, self.pool, valid_BT, self.layout)


class FirstToken(nn.Module):
    """`layers(feature[:, 0])`, [B, T, H] → [B, D], as BERT and its relatives read a sentence."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential()
        for name, layer in layers.items():
            self.layers.add_module(name, layer)

    def forward(self, feature: Tensor) -> Tensor:
        return self.layers(feature[:, 0])


class HeadChain(nn.Sequential):
    """Modules one after another; a pooled [B, C, 1, …] is flattened before a linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        x = input
        for layer in self:
            if isinstance(layer, nn.Linear):
                x = flat(x)
            x = layer(x)
        return x


class Flat(nn.Module):
    """`flat` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return flat(x)


def flat(x: Tensor) -> Tensor:
    """[B, C] of what was pooled to one position, [B, C, 1, …]; anything else as it is."""
    return x.flatten(1) if x.ndim > 2 and x[0].numel() == x.shape[1] else x


def classifier_spec(classifier: NetworkHead) -> bool | str | dict[str, Any]:
    """Describe a classifier for its backbone's spec.

    Returns:
        The sizes of a plain linear layer; or True, where the kind of backbone makes it again; of
        one that answers tokens its problem's name.
    """
    linear, read = classifier.linear, classifier.read
    if classifier.problem == TOKEN_PROBLEM:
        return TOKEN_PROBLEM
    if not isinstance(read, Pool) or type(linear) is not nn.Linear:
        return True
    return {
        "inputs": linear.in_features,
        "classes": linear.out_features,
        "bias": linear.bias is not None,
        "pool": read.pool,
    }


def linear_classifier(sizes: Mapping[str, Any], layout: str) -> NetworkHead:
    """The classifier, with random weights, of such sizes."""
    linear = nn.Linear(sizes["inputs"], sizes["classes"], sizes["bias"])
    return NetworkHead(linear, sizes["classes"], sizes["pool"], layout=layout)


def user_classifier(
    head: Any, module: Any, feature_shape: tuple[int | None, ...], layout: str, pool: str
) -> NetworkHead:
    """The head that a user passes: a `NetworkHead`, a module, or names of the network's parts.

    Args:
        head: a module reads the pooled feature if it is an `nn.Linear`, else the feature itself;
            the first of a list of names or modules, which run one after another, reads the feature.
        module: the network, in which names are looked up.
        feature_shape, layout: of the last stage; the shape without the batch.
        pool: the backbone's pooling.

    Raises:
        ValueError: nothing of these, or what doesn't give [B, K] from the last feature.
    """
    if isinstance(head, NetworkHead):
        return head
    if isinstance(head, list | tuple):
        layers = [_module_of(part, module) for part in head]
        if not layers:
            raise ValueError("classifier is an empty list; name the parts of the head")
        *before, head = layers
        read: nn.Module | str = HeadChain(*before, Flat())
    else:
        head = _module_of(head, module)
        read = pool if isinstance(head, nn.Linear) else nn.Identity()
    classifier = NetworkHead(head, 0, read, layout=layout)
    classifier.num_classes = _num_outputs(classifier, feature_shape)
    return classifier


def _module_of(part: Any, network: nn.Module) -> nn.Module:
    """A module, or the one of that name in the network."""
    if isinstance(part, nn.Module):
        return part
    if not isinstance(part, str):
        raise ValueError(
            "classifier is a module, the name of one in the network, a list of these that run one "
            f"after another, or a NetworkHead; got {part!r}"
        )
    try:
        return network.get_submodule(part)
    except AttributeError as error:
        names = [name for name, _ in network.named_children()]
        raise ValueError(
            f"classifier: {type(network).__name__} has no module {part!r}; there are {names}"
        ) from error


def _num_outputs(classifier: NetworkHead, feature_shape: tuple[int | None, ...]) -> int:
    """K, found by a run on zeros."""
    p = next(classifier.parameters(), torch.zeros(0))
    sizes = [8 if size is None else size for size in feature_shape]
    modes = [(m, m.training) for m in classifier.modules()]
    try:
        classifier.eval()
        with torch.no_grad():
            logits_BK = classifier(torch.zeros(2, *sizes, device=p.device, dtype=p.dtype))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"classifier doesn't run on the last stage's feature {tuple(feature_shape)}: {error}. "
            "Where the network's forward flattens, put that in: ['avgpool', nn.Flatten(), 'fc']"
        ) from error
    finally:
        for m, training in modes:
            m.training = training
    if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2 or len(logits_BK) != 2:
        shape = tuple(getattr(logits_BK, "shape", ()))
        raise ValueError(f"classifier must give logits [B, K] from a feature; it gives {shape}")
    return logits_BK.shape[1]
