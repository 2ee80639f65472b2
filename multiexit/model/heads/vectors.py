"""Heads of a model whose outputs are vectors: the model gives what they say length 1.

Letters: B batch rows, D width of a pooled feature.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multiexit.backbones.layouts import Shape, default_layout, width_of
from multiexit.backbones.pooling import pool_feature
from multiexit.model.heads.base import VectorHead
from multiexit.model.heads.plain import LinearHead


class PooledHead(VectorHead):
    """`pool(f)`, without weights: a sentence encoder's own answer, [B, …] → [B, D].

    Args:
        shape, layout: of the feature, see `multiexit.backbones.layouts`.
        num_classes: D.
        pool: `"first"`, `"last"` or `"mean"`.

    Raises:
        ValueError: a feature of another width than D.

    Example:
        >>> import torch, multiexit as mx
        >>> head = mx.heads.PooledHead((None, 8), 8, pool="mean")
        >>> head(torch.rand(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 8])
    """

    def __init__(self, shape: Shape, num_classes: int, pool: str, layout: str | None = None):
        super().__init__()
        self.pool = pool
        self.layout = layout or default_layout(shape)
        self.linear = nn.Identity()
        if (width := width_of(shape, self.layout)) != num_classes:
            raise ValueError(
                f"the network's pooled vector has {width} entries, and num_classes={num_classes}: "
                "leave num_classes out; where a layer of the network's own makes the vector, wrap "
                "it with that as its classifier"
            )

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return pool_feature(feature, self.pool, valid_BT, self.layout)


@torch.no_grad()
def start_as_pooled(heads: Sequence[nn.Module]) -> None:
    """Let linear heads begin as the identity, where widths agree: their vector is the pooled one.

    Args:
        heads: changed in place.
    """
    for head in heads:
        linear = head.linear if isinstance(head, LinearHead) else None
        if isinstance(linear, nn.Linear) and linear.in_features == linear.out_features:
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
