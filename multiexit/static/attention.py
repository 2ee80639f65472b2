"""Attention heads that are really removed: narrower projections.

Letters: B batch rows, T tokens, H width, A heads, d width of a head.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from multiexit.backbones.transformer import TransformerBackbone
from multiexit.static.layers import check_encoder

Heads = Sequence[Sequence[int]]
"""The heads of each attention module, in the order of `attentions`."""


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


def attentions(backbone: TransformerBackbone) -> list[Attention]:
    """Every attention module once, in the layers' order: one per layer, or per shared layer."""
    kind, layers = backbone.config.model_type, backbone.layers
    if kind == "albert":
        return [_albert(layer) for group in layers for layer in _inside(group)]
    return [_distilbert(layer) if kind == "distilbert" else _bert(layer) for layer in layers]


def head_width(backbone: TransformerBackbone) -> int:
    """d, which is that of the unpruned encoder."""
    return backbone.config.hidden_size // backbone.config.num_attention_heads


def keep_heads(backbone: TransformerBackbone, kept: Heads) -> TransformerBackbone:
    """A copy of an encoder with these attention heads only.

    With A of a layer's heads kept, its projections to queries, keys and values become H → A·d and
    the one outward A·d → H: each head that goes takes 4·H·d + 3·d parameters with it. The logits
    are those of the encoder with the other heads' outputs set to 0. The kept heads are part of the
    backbone's spec, so that it is saved and rebuilt.

    Args:
        backbone: from `multiexit.wrap`; it stays as it was.
        kept: per layer the indices of its heads, from 0, rising; per *shared* layer for ALBERT,
            whose heads go from all its uses.

    Raises:
        ValueError: another kind of backbone, another number of layers, a layer without heads, or
            indices that are out of range, repeat or don't rise.

    Reference: Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019.
    """
    check_encoder(backbone)
    pruned = copy.deepcopy(backbone)
    _check(pruned, kept)
    cut(pruned, kept)
    spec: dict[str, Any] = dict(backbone.spec or {})
    before = spec.get("heads") or [range(backbone.config.num_attention_heads)] * len(kept)
    pairs = zip(before, kept, strict=True)
    pruned.spec = {**spec, "heads": [[old[head] for head in heads] for old, heads in pairs]}
    return pruned


def cut(backbone: TransformerBackbone, kept: Heads) -> None:
    """Take the other heads out of an encoder, in place."""
    d = head_width(backbone)
    for attention, heads in zip(attentions(backbone), kept, strict=True):
        columns = torch.cat([torch.arange(head * d, (head + 1) * d) for head in heads])
        for linear in attention.inward:
            _slice(linear, columns, 0)
            linear.out_features = len(columns)
        _slice(attention.outward, columns, 1)
        attention.outward.in_features = len(columns)


def _slice(linear: nn.Linear, index: torch.Tensor, dim: int) -> None:
    def part(p: torch.Tensor, dim: int) -> nn.Parameter:
        values = p.detach().index_select(dim, index.to(p.device)).clone()
        return nn.Parameter(values, p.requires_grad)

    linear.weight = part(linear.weight, dim)
    if linear.bias is not None and dim == 0:
        linear.bias = part(linear.bias, 0)


def _check(backbone: TransformerBackbone, kept: Heads) -> None:
    there = attentions(backbone)
    if len(kept) != len(there):
        raise ValueError(f"heads of {len(kept)} layers were given; this encoder has {len(there)}")
    for layer, (attention, heads) in enumerate(zip(there, kept, strict=True)):
        A = attention.heads(head_width(backbone))
        rising = list(heads) == sorted(set(heads))
        if not heads or not rising or not 0 <= min(heads) <= max(heads) < A:
            raise ValueError(
                f"layer {layer} keeps heads {list(heads)}: they must rise within 0..{A - 1}, and "
                "one at least must stay"
            )


def _inside(group: Any) -> nn.ModuleList:
    return group.albert_layers


def _bert(layer: Any) -> Attention:
    own = layer.attention.self
    return Attention((own.query, own.key, own.value), layer.attention.output.dense)


def _albert(layer: Any) -> Attention:
    own = layer.attention
    return Attention((own.query, own.key, own.value), own.dense)


def _distilbert(layer: Any) -> Attention:
    own = layer.attention
    return Attention((own.q_lin, own.k_lin, own.v_lin), own.out_lin)
