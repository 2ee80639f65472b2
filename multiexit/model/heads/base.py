"""The kinds of exit heads, from a stage's feature to logits.

Letters: B batch rows, T tokens, D a vector's width, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from multiexit.backbones.layouts import Shape as Shape
from multiexit.backbones.layouts import width_of as width_of
from multiexit.backbones.pooling import pool_feature as pool_feature

Factory = Callable[[Shape, int], nn.Module]
"""A head of the user's own: `(feature shape without the batch, K) -> module`."""

Memory = dict[str, Tensor]
"""Left by heads for the heads behind them: batch-first tensors by name, at first none.
`"certainty"` [B] is how sure an exit is of being right, for policies that go by that."""


class Head(nn.Module, ABC):
    """A head that is told which tokens are real: `forward(feature, valid_BT) -> logits_BK`.

    Example:
        A head that reads the last real token:

        >>> import torch, multiexit as mx
        >>> class LastToken(mx.heads.Head):
        ...     def __init__(self, shape, num_classes):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(shape[-1], num_classes)
        ...     def forward(self, feature, valid_BT):
        ...         return self.linear(feature[torch.arange(len(feature)), valid_BT.sum(1) - 1])
        >>> LastToken((None, 8), 3)(torch.rand(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 3])
    """

    @abstractmethod
    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Make logits of a stage's feature.

        Args:
            feature: [B, …], in the layout of the stage.
            valid_BT: which tokens are real, bool [B, T]; None where there are no tokens.

        Returns:
            Logits [B, K].
        """


class ChainedHead(nn.Module, ABC):
    """A head that reads what earlier heads left, and leaves something itself.

    Example:
        A head that adds its logits to those before:

        >>> import torch, multiexit as mx
        >>> class Summed(mx.heads.ChainedHead):
        ...     def __init__(self, shape, num_classes):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(shape[-1], num_classes)
        ...     def forward(self, feature, valid_BT, memory):
        ...         logits_BK = self.linear(feature) + memory.get("logits", 0)
        ...         return logits_BK, {**memory, "logits": logits_BK}
        >>> mx.heads.ask(Summed((8,), 3), torch.rand(2, 8), None, {})[1]["logits"].shape
        torch.Size([2, 3])
    """

    reads_earlier: ClassVar[bool] = True
    """Whether it reads what earlier heads left, so that these can't be taken out."""

    @abstractmethod
    def forward(
        self, feature: Tensor, valid_BT: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Make logits of a stage's feature, and leave something for the next head.

        Args:
            feature: [B, …], in the layout of the stage.
            valid_BT: which tokens are real, bool [B, T]; None where there are no tokens.
            memory: what the heads before left.

        Returns:
            Logits [B, K], and the memory for the next head.
        """


def ask(
    head: nn.Module, feature: Tensor, valid_BT: Tensor | None, memory: Memory
) -> tuple[Tensor, Memory]:
    """Ask a head, chained or not.

    Args:
        head: a `Head` or a `ChainedHead`.
        feature: of its stage, [B, …].
        valid_BT: which tokens are real, bool [B, T]; None where there are no tokens.
        memory: what the heads before left.

    Returns:
        Its logits [B, K], and the memory for the next head.

    Example:
        >>> import torch, multiexit as mx
        >>> head = mx.heads.LinearHead((8,), num_classes=3, pool="mean")
        >>> logits_BK, memory = mx.heads.ask(head, torch.rand(2, 8), None, {})
        >>> logits_BK.shape, memory
        (torch.Size([2, 3]), {})
    """
    if isinstance(head, ChainedHead):
        return head(feature, valid_BT, memory)
    return head(feature, valid_BT), memory


class VectorHead(Head):
    """A head that is a last layer on a vector made from the feature: `linear(vector(f))`.

    In training the last layers of all exits run as one product, and `CHAINED` can chain such heads.

    Example:
        A head on the largest value of each channel:

        >>> import torch, multiexit as mx
        >>> class Loudest(mx.heads.VectorHead):
        ...     def __init__(self, shape, num_classes):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(shape[0], num_classes)
        ...     def vector(self, feature, valid_BT=None):
        ...         return feature.amax((2, 3))
        >>> Loudest((8, 4, 4), 3)(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 3])
    """

    linear: nn.Module

    @abstractmethod
    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Make the vector [B, D] that the last layer reads, or one for each token, [B, T, D].

        Args:
            feature: [B, …], in the layout of the stage.
            valid_BT: which tokens are real, bool [B, T]; None where there are no tokens.
        """

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.linear(self.vector(feature, valid_BT))


class Features(NamedTuple):
    """The features of the exits, one of each in order, and what else heads are made from by name.

    Args:
        shapes, layouts: of each exit's feature, see `multiexit.backbones.layouts`.
        num_classes: K; 1 for regression.
        pool: `"first"`, `"last"` or `"mean"`.
        pooler: a pretrained one to start from, or None.
        owns_pooler: whether the network's own head, behind these, has it.

    Example:
        >>> import multiexit as mx
        >>> shapes, layouts = [(None, 8), (16, 4, 4)], ["tokens", "image"]
        >>> mx.heads.Features(shapes, layouts, num_classes=3, pool="mean").widths
        [8, 16]
    """

    shapes: list[Shape]
    layouts: list[str]
    num_classes: int
    pool: str
    pooler: nn.Linear | None = None
    owns_pooler: bool = False

    @property
    def widths(self) -> list[int]:
        """Each feature's width."""
        return list(map(width_of, self.shapes, self.layouts))

    def check_layouts(self, layouts: tuple[str, ...], requirement: str) -> None:
        """Refuse features of other layouts.

        Args:
            layouts: that will do.
            requirement: who needs them, for the message.

        Raises:
            ValueError: with the feature's shape and layout.
        """
        for shape, layout in zip(self.shapes, self.layouts, strict=True):
            if layout not in layouts:
                raise ValueError(
                    f"{requirement}; this backbone's features have shape (B, {shape}), layout "
                    f"{layout!r}"
                )
