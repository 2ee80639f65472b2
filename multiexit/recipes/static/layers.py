"""Fewer layers of a trained encoder."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from multiexit.arguments import rising
from multiexit.backbones.transformers.transformer import TransformerBackbone


def keep_layers(backbone: TransformerBackbone, layers: Sequence[int]) -> TransformerBackbone:
    """A shorter encoder of copies: these layers and everything around them.

    With f_l the encoder's layers and e its embeddings, layers (a, b, …) give …f_b(f_a(e(x))). Its
    configuration says the new depth, so that it is saved and rebuilt like any other. ALBERT's
    layers stay shared, and groups that no layer is left of are dropped.

    Args:
        backbone: from `multiexit.wrap`; it stays as it was.
        layers: indices from 0, rising.

    Raises:
        ValueError: another kind of backbone; no layers, or some that are out of range, repeat or
            don't rise.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)))
        >>> mx.static.keep_layers(bert, [0, 2]).config.num_hidden_layers
        2
    """
    check_encoder(backbone)
    kept = rising("layers to keep", layers, 0, backbone.num_stages)
    modules = [backbone.order[layer] for layer in kept]
    distinct = sorted(set(modules))
    short = copy.deepcopy(backbone)
    per_layer = len(backbone.spec.get("heads", [])) // len(backbone.layers) if backbone.spec else 0
    short.layers = nn.ModuleList(short.layers[index] for index in distinct)
    short.order = [distinct.index(index) for index in modules]
    short.feature_shapes = [backbone.feature_shapes[layer] for layer in kept]
    short.config.num_hidden_layers = len(kept)
    spec: dict[str, Any] = dict(backbone.spec or {})
    if short.family.groups is not None:
        setattr(short.config, short.family.groups, len(distinct))
        spec["order"] = short.order
    if per_layer:
        spec["heads"] = [
            spec["heads"][i * per_layer + j] for i in distinct for j in range(per_layer)
        ]
    short.spec = {**spec, "config": short.config.to_dict()}
    return short


def first_layers(backbone: TransformerBackbone, n: int) -> TransformerBackbone:
    """The first n layers, the plainest way to a smaller network: `keep_layers(backbone, range(n))`.

    Args:
        backbone: from `multiexit.wrap`; it stays as it was.
        n: how many layers stay, in 1..depth.

    Raises:
        ValueError: another kind of backbone, or n outside 1..depth.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)))
        >>> mx.static.first_layers(bert, 3).num_stages
        3
    """
    check_encoder(backbone)
    check_depth(n, backbone.num_stages)
    return keep_layers(backbone, range(n))


def spread_layers(depth: int, keep: int) -> list[int]:
    """The layers to keep so that they are spread evenly: ⌊i·depth / keep⌋, i = 0..keep − 1.

    Where 1/p is whole this is LayerDrop's "every other" rule for a pruning rate p = 1 − keep/depth:
    of depths d counted from 1, drop those with d ≡ 0 modulo 1/p.

    Raises:
        ValueError: `keep` outside 1..depth.

    Example:
        >>> spread_layers(12, 6), spread_layers(12, 9)
        ([0, 2, 4, 6, 8, 10], [0, 1, 2, 4, 5, 6, 8, 9, 10])

    Reference: Fan et al., "Reducing Transformer Depth on Demand with Structured Dropout", ICLR
    2020, section 3.2; the same layers as in fairseq's `examples/layerdrop` (0, 2, 4, … for a half).
    """
    check_depth(keep, depth)
    return [i * depth // keep for i in range(keep)]


def check_encoder(backbone: Any) -> None:
    """Refuse what is no plain transformers encoder, by a ValueError."""
    if not isinstance(backbone, TransformerBackbone):
        raise ValueError(
            f"static baselines are made of multiexit.wrap(…) of a BERT-like encoder, got "
            f"{type(backbone).__name__}; of LayerDrop take .inner, of Theseus .successor"
        )


def check_depth(n: Any, depth: int) -> None:
    """Refuse a number of layers that an encoder of this depth doesn't have, by a ValueError."""
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= depth:
        raise ValueError(f"the number of layers must be a whole number in 1..{depth}, got {n!r}")
