"""What an exit head is: from a stage's feature to logits.

Letters: B batch rows, T tokens, H width, C channels (of a feature) or classes (of logits),
K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int | None, ...]
Factory = Callable[[Shape, int], nn.Module]
"""A head of the user's own: `(feature shape without the batch, K) -> module`."""

Memory = dict[str, Tensor]
"""What heads leave for the heads behind them: batch-first tensors by name, at first none.
`"certainty"` [B] is how sure an exit is of being right, for policies that go by that."""


class Head(nn.Module, ABC):
    """A head that is told which tokens are real: `forward(feature, valid_BT) -> logits_BK`."""

    @abstractmethod
    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Logits [B, K] of a stage's feature."""


class ChainedHead(nn.Module, ABC):
    """A head that reads what earlier heads left, and leaves something itself."""

    @abstractmethod
    def forward(
        self, feature: Tensor, valid_BT: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Logits [B, K] of a stage's feature, and the memory for the next head."""


def ask(
    head: nn.Module, feature: Tensor, valid_BT: Tensor | None, memory: Memory
) -> tuple[Tensor, Memory]:
    """A head's logits, chained or not, and the memory after it."""
    if isinstance(head, ChainedHead):
        return head(feature, valid_BT, memory)
    return head(feature, valid_BT), memory


class VectorHead(Head):
    """A head that is one linear layer on a vector made from the feature: `linear(vector(f))`."""

    linear: nn.Linear

    @abstractmethod
    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """What the last layer reads, [B, D]."""

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.linear(self.vector(feature, valid_BT))


def pool_feature(feature: Tensor, pool: str, valid_BT: Tensor | None = None) -> Tensor:
    """Pool a feature to a vector per row.

    Tokens [B, T, H]: the first one, or the mean over those that `valid_BT` marks as real.
    Images [B, C, H, W]: the mean over positions. Vectors [B, D]: as they are.
    """
    if feature.ndim == 2:
        return feature
    if feature.ndim == 4:
        # Not .mean: its backward writes out a whole feature map, that of a sum does not.
        positions = feature.shape[2] * feature.shape[3]
        wide = torch.promote_types(feature.dtype, torch.float32)
        return (feature.sum((2, 3), dtype=wide) / positions).to(feature.dtype)
    if pool == "first":
        return feature[:, 0]
    if valid_BT is None:
        return feature.mean(1)
    weight_BT1 = valid_BT.to(feature.dtype).unsqueeze(-1)
    return (feature * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def width_of(shape: Shape) -> int:
    """Channels of an image, width of a token or vector."""
    width = shape[0] if len(shape) == 3 else shape[-1]
    if width is None:
        raise ValueError(f"a feature of shape {shape} has no fixed width")
    return width
