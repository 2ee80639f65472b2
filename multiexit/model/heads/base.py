"""What an exit head is: from a stage's feature to logits.

Letters: B batch rows, T tokens, H width, C channels (of a feature) or classes (of logits),
K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from multiexit.backbones.layouts import Shape as Shape
from multiexit.backbones.layouts import width_of as width_of
from multiexit.backbones.pooling import pool_feature as pool_feature

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
    """A head that is a last layer on a vector made from the feature: `linear(vector(f))`."""

    linear: nn.Module

    @abstractmethod
    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """What the last layer reads, [B, D]."""

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.linear(self.vector(feature, valid_BT))
