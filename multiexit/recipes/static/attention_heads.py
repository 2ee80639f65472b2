"""Attention heads that are really removed: narrower projections.

Letters: H width, A heads, d width of a head.
"""

import copy
from typing import Any

from multiexit.backbones import adapters
from multiexit.backbones.transformers.attention_heads import Heads, attentions, head_width, prune
from multiexit.backbones.transformers.transformer import TransformerBackbone
from multiexit.recipes.static.layers import check_encoder


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
        ValueError: another kind of backbone, another number of layers, a layer without heads,
            indices that are out of range, repeat or don't rise, or adapters of peft.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=2, vocab_size=50, **sizes)))
        >>> pruned = mx.static.keep_heads(bert, [[1], [0, 1]])
        >>> [layer.attention.self.query.out_features for layer in pruned.layers]
        [4, 8]

    Reference: Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019.
    """
    check_encoder(backbone)
    pruned = copy.deepcopy(backbone)
    _check_heads(pruned, kept)
    prune(pruned, kept)
    spec: dict[str, Any] = dict(backbone.spec or {})
    before = spec.get("heads") or [range(backbone.config.num_attention_heads)] * len(kept)
    pairs = zip(before, kept, strict=True)
    pruned.spec = {**spec, "heads": [[old[head] for head in heads] for old, heads in pairs]}
    return pruned


def _check_heads(backbone: TransformerBackbone, kept: Heads) -> None:
    if adapters.layers(backbone):
        raise ValueError(
            "this encoder has adapters of peft, which are as wide as all heads: call "
            "multiexit.merge_adapters(backbone) first"
        )
    layers = attentions(backbone)
    if len(kept) != len(layers):
        raise ValueError(f"heads of {len(kept)} layers were given; this encoder has {len(layers)}")
    for layer, (attention, heads) in enumerate(zip(layers, kept, strict=True)):
        A = attention.heads(head_width(backbone))
        rising = list(heads) == sorted(set(heads))
        if not heads or not rising or not 0 <= min(heads) <= max(heads) < A:
            raise ValueError(
                f"layer {layer} keeps heads {list(heads)}: they must rise within 0..{A - 1}, and "
                "one at least must stay"
            )
