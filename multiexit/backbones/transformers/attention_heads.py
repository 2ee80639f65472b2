"""An encoder's attention heads: found, and some of them taken out for good.

Letters: H width, A heads, d width of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from multiexit.backbones.transformers.families import FAMILIES, Family, part

Heads = Sequence[Sequence[int]]
"""The heads of each attention module, in the order of `attentions`."""


class Encoder(Protocol):
    """The part of a BERT-like backbone that is used here."""

    config: Any
    layers: nn.ModuleList


class Attention(NamedTuple):
    """The linear layers of a self-attention.

    Args:
        inward: queries, keys and values, each H → A·d.
        outward: A·d → H.
    """

    inward: tuple[nn.Linear, nn.Linear, nn.Linear]
    outward: nn.Linear

    def heads(self, width: int) -> int:
        """A."""
        return self.outward.in_features // width


def attentions(backbone: Encoder) -> list[Attention]:
    """Every attention module once, in the layers' order: one per layer, or per shared layer."""
    family = FAMILIES[backbone.config.model_type]
    blocks: list[Any] = list(backbone.layers)
    if family.blocks is not None:
        blocks = [block for layer in blocks for block in part(layer, family.blocks)]
    return [_attention(block, family) for block in blocks]


def head_width(backbone: Encoder) -> int:
    """d, which is that of the unpruned encoder."""
    return backbone.config.hidden_size // backbone.config.num_attention_heads


def prune(backbone: Encoder, kept_heads: Heads) -> None:
    """Take the other heads out of an encoder, in place."""
    d = head_width(backbone)
    for attention, heads in zip(attentions(backbone), kept_heads, strict=True):
        columns = torch.cat([torch.arange(head * d, (head + 1) * d) for head in heads])
        for linear in attention.inward:
            _slice(linear, columns, 0)
            linear.out_features = len(columns)
        _slice(attention.outward, columns, 1)
        attention.outward.in_features = len(columns)


def _slice(linear: nn.Linear, index: torch.Tensor, dim: int) -> None:
    def sliced(p: torch.Tensor, dim: int) -> nn.Parameter:
        values = p.detach().index_select(dim, index.to(p.device)).clone()
        return nn.Parameter(values, p.requires_grad)

    linear.weight = sliced(linear.weight, dim)
    if linear.bias is not None and dim == 0:
        linear.bias = sliced(linear.bias, 0)


def _attention(block: Any, family: Family) -> Attention:
    queries, keys, values = (part(block, name) for name in family.inward)
    return Attention((queries, keys, values), part(block, family.outward))
