"""The one interface that every backbone has: a start, and stages that each give a feature.

Letters: B batch rows, T tokens, H width, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from multiexit.backbones import layouts as layouts_
from multiexit.backbones.classifier import NetworkHead, classifier_spec
from multiexit.runtime import evaluating

Carry = dict[str, Any]
"""Handed from one stage to the next. Every tensor in it has the batch as its first dimension, so
that finished rows can be dropped. `None` entries are kept as they are. The key `"valid_BT"` is
reserved for text: True where a token is real, False where it is padding; heads pool with it. So is
`"first_B"`: by how many places a backbone turned each row, so that its padding comes last."""

Tree = TypeVar("Tree")


def select(tree: Tree, keep: Tensor) -> Tree:
    """Keep some rows of every batch-first tensor in a (nested) dict.

    Args:
        tree: a dict whose values are batch-first tensors, dicts of these, or anything else, which
            is passed through.
        keep: bool mask [B] or row indices.

    Returns:
        The same structure with `v[keep]` in place of each tensor `v`.

    Example:
        >>> import torch
        >>> from multiexit.backbones import select
        >>> carry = {"x": torch.tensor([[1], [2], [3]]), "mask": None}
        >>> select(carry, torch.tensor([True, False, True]))
        {'x': tensor([[1],
                [3]]), 'mask': None}
    """
    if keep.dtype == torch.bool:
        keep = keep.nonzero().squeeze(1)
    if isinstance(tree, Tensor):
        return _select_rows(tree, keep)  # type: ignore[return-value]
    if isinstance(tree, Mapping):
        return type(tree)({key: select(value, keep) for key, value in tree.items()})  # type: ignore[call-arg]
    return tree


def _select_rows(tensor: Tensor, keep: Tensor) -> Tensor:
    """`tensor[keep]`, three times as fast, and channels that come last still do."""
    last = torch.channels_last
    if tensor.ndim != 4 or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return tensor.index_select(0, keep)
    return tensor.permute(0, 2, 3, 1).index_select(0, keep).permute(0, 3, 1, 2)


def copied(tree: Tree) -> Tree:
    """The same (nested) dict, with copies of its tensors, through which gradients go."""
    if isinstance(tree, Tensor):
        return tree.clone()  # type: ignore[return-value]
    if isinstance(tree, Mapping):
        return type(tree)({key: copied(value) for key, value in tree.items()})  # type: ignore[call-arg]
    return tree


class Backbone(nn.Module, ABC):
    """A network cut into stages: `x_0 = start(inputs)`, `x_{i+1}, f_i = stage(x_i, i)`.

    A subclass implements the four abstract methods and calls `super().__init__` with the facts
    below. Nothing else is needed to put exits on it; `docs/extend.md` has one written out.

    Args:
        feature_shapes: per stage, the feature's shape without the batch: `(D,)` for vectors,
            `(None, H)` for tokens (any length), `(C, height, width)` for images.
        layouts: what the dimensions of the features are, one name of
            `multiexit.backbones.layouts.LAYOUTS` for all stages or one for each. None is what the
            three shapes above stand for; any other shape needs its layout named.
        head: the exit head that suits it when the user names none (see `multiexit.heads`).
        pool: how such a head pools a feature: `"first"` or `"mean"` for tokens, `"mean"` else.
        spec: a JSON-able description from which `multiexit.backbones.rebuild` makes the same
            architecture again, or None where only the user can.
        pooler: a pretrained `Linear(H, H)` that heads may start from (BERT's pooler).
        classifier: the network's own head: an exit after the last stage is that, if it is to tell
            as many classes apart. Of a plain `nn.Linear(H, K)`, which reads the pooled feature, the
            spec tells the sizes; any other `NetworkHead` is one that the spec's kind makes again.

    Attributes:
        undescribed: why there is no spec, where `wrap` knows it; else nothing.
        same_path: whether a stage runs the same modules at every step. A class that draws what
            runs sets it False, so that it is not compiled anew at each step.

    Raises:
        ValueError: a shape whose layout can't be told, or layouts that don't fit the shapes.

    Example:
        >>> import torch, multiexit as mx
        >>> backbone = mx.cifar_resnet(20)
        >>> carry = backbone.start(torch.rand(2, 3, 32, 32))
        >>> carry, feature = backbone.stage(carry, 0)
        >>> backbone.num_stages, feature.shape, backbone.feature_shapes[0]
        (9, torch.Size([2, 16, 32, 32]), (16, 32, 32))
    """

    same_path = True

    runs_only: bool = False
    """Whether it is a copy for running only, see `multiexit.for_inference`."""

    def __init__(
        self,
        feature_shapes: list[tuple[int | None, ...]],
        head: str = "linear",
        pool: str = "mean",
        spec: dict[str, Any] | None = None,
        pooler: nn.Linear | None = None,
        classifier: NetworkHead | nn.Linear | None = None,
        layouts: str | Sequence[str] | None = None,
    ):
        super().__init__()
        self.feature_shapes = feature_shapes
        self._layouts = layouts
        layouts_.resolve(layouts, feature_shapes)
        self.head = head
        self.pool = pool
        self.spec = spec
        self.undescribed = ""
        self._overwritten: frozenset[int] | None = None
        # Kept out of the module tree: heads take them over, the backbone never runs them.
        self._pretrained: dict[str, Any] = {"pooler": pooler}
        self.set_classifier(classifier)

    @property
    def num_stages(self) -> int:
        """The number of stages, so of exits that there can be."""
        return len(self.feature_shapes)

    @property
    def layouts(self) -> list[str]:
        """The layout of each stage's feature, a name of `multiexit.backbones.layouts.LAYOUTS`."""
        return layouts_.resolve(self._layouts, self.feature_shapes)

    @property
    def pooler(self) -> nn.Linear | None:
        """The pretrained pooler's linear layer, if the network came with one."""
        return self._pretrained["pooler"]

    @property
    def classifier(self) -> NetworkHead | None:
        """The network's own head, if it came with one."""
        return self._pretrained["classifier"]

    def set_pooler(self, pooler: nn.Linear | None) -> None:
        """Let heads start from another pooler, or none."""
        self._pretrained["pooler"] = pooler

    def set_classifier(self, classifier: NetworkHead | nn.Linear | None) -> None:
        """Give the network another head of its own, or none."""
        if isinstance(classifier, nn.Linear):
            layout = self.layouts[-1]
            classifier = NetworkHead(classifier, classifier.out_features, self.pool, layout=layout)
        self._pretrained["classifier"] = classifier
        if self.spec is None:
            return
        self.spec = {key: value for key, value in self.spec.items() if key != "classifier"}
        if classifier is not None:
            self.spec["classifier"] = classifier_spec(classifier)

    @abstractmethod
    def start(self, *args: Any, **inputs: Any) -> Carry:
        """Run everything before the first stage: embeddings and masks, or the convolutional stem.

        Args:
            args, inputs: what the network takes, by place and by name, with a row per row.

        Returns:
            The carry for the first stage.
        """

    @abstractmethod
    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        """Run a stage.

        Args:
            carry: what `start` or the stage before gave.
            index: of the stage, counted from 0.

        Returns:
            The carry for the next stage, and this stage's feature [B, …], in its shape of
            `feature_shapes`.
        """

    @abstractmethod
    def stage_module(self, index: int) -> nn.Module:
        """The module that stage `index` runs (the same one for stages that share weights)."""

    @abstractmethod
    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        """Valid inputs of `batch` rows, by name, for counting cost and checking shapes."""

    def limits(self) -> tuple[dict[str, int], int | None]:
        """Give the limits of the inputs; there are none unless a class overrides this.

        Returns:
            Of inputs that are indices, by name, how many things they count; and the most tokens
            that a row may have, or None.
        """
        return {}, None

    @property
    def overwritten(self) -> frozenset[int]:
        """Stages whose feature a later one works on in place, as seen when they last were run.

        Whoever keeps such a feature hands copies of the carry on. Dropout in place works in
        training alone, so that with one all stages count.
        """
        if self._overwritten is None:
            self.find_overwritten()
        return self._overwritten or frozenset()

    def find_overwritten(self) -> None:
        """Find `overwritten` anew, by a run of the example."""
        with evaluating(self), torch.inference_mode(False), torch.no_grad():
            self.last_feature(**self.example_inputs())

    def last_feature(self, *args: Any, **inputs: Any) -> Tensor:
        """The last stage's feature, [B, …]; what is `overwritten` on the way is noted.

        In inference mode, where that can't be seen, it isn't.

        Args:
            args, inputs: as for `features`.
        """
        carry, feature, seen = self.start(*args, **inputs), None, []
        for index in range(self.num_stages):
            carry, feature = self.stage(carry, index)
            seen.append((feature, None if feature.is_inference() else feature._version))
        assert feature is not None
        if feature.is_inference():
            return feature
        changed = {index for index, (kept, was) in enumerate(seen) if kept._version != was}
        if any(isinstance(part, _DropoutNd) and part.inplace for part in self.modules()):
            changed = set(range(self.num_stages))
        self._overwritten = frozenset(changed)
        return feature

    def features(self, *args: Any, **inputs: Any) -> list[Tensor]:
        """The list of intermediate features, one per stage.

        Args:
            args, inputs: what the wrapped network takes (`input_ids=…, attention_mask=…`, or one
                image tensor).

        Returns:
            `num_stages` tensors, [B, T, H], [B, C, height, width], [B, D], … (see `layouts`).
        """
        carry = self.start(*args, **inputs)
        features = []
        for index in range(self.num_stages):
            carry, feature = self.stage(carry, index)
            features.append(feature)
            if index in self.overwritten:
                carry = copied(carry)
        return features
