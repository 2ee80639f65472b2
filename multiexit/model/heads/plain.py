"""Heads that read their own feature alone.

Letters: B batch rows, T tokens, H width of a token, C channels, D a vector's width, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiexit.backbones.layouts import Shape, default_layout, width_of
from multiexit.backbones.pooling import pool_feature
from multiexit.model.heads.base import Features, VectorHead

DROPOUT = 0.1  # before a text classifier, as BERT's fine-tuning has it (Devlin et al. 2019)


class LinearHead(VectorHead):
    """`Linear(pool(f))`: one matrix on a pooled feature, [B, …] → [B, K].

    Args:
        shape, layout: of the feature, see `multiexit.backbones.layouts`.
        num_classes: K.
        pool: `"first"`, `"last"` or `"mean"`.

    Raises:
        ValueError: a shape whose layout can't be told, or a width that is not fixed.

    Example:
        >>> import torch, multiexit as mx
        >>> mx.heads.LinearHead((16, 8, 8), 10, pool="mean")(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, shape: Shape, num_classes: int, pool: str, layout: str | None = None):
        super().__init__()
        self.pool = pool
        self.layout = layout or default_layout(shape)
        self.linear = nn.Linear(width_of(shape, self.layout), num_classes)

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return pool_feature(feature, self.pool, valid_BT, self.layout)


class PoolerHead(VectorHead):
    """`Linear(tanh(pooler(pool(f))))`, as BERT classifies a sentence, [B, T, H] → [B, K].

    Args:
        pooler: `Linear(H, H)`; the same object in every head makes it a shared pooler.
        num_classes: K.
        pool: `"first"`, `"last"` or `"mean"`.
        layout: of the feature; None is by its number of dimensions.

    Example:
        Two exits with one pooler:

        >>> import torch, multiexit as mx
        >>> pooler = torch.nn.Linear(16, 16)
        >>> heads = [mx.heads.PoolerHead(pooler, 3, pool="first") for _ in range(2)]
        >>> heads[1](torch.rand(2, 5, 16)).shape
        torch.Size([2, 3])
    """

    def __init__(self, pooler: nn.Linear, num_classes: int, pool: str, layout: str | None = None):
        super().__init__()
        self.pool = pool
        self.layout = layout
        self.pooler = pooler
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(pooler.out_features, num_classes)

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        pooled = self.pooler(pool_feature(feature, self.pool, valid_BT, self.layout))
        return self.dropout(torch.tanh(pooled))


class AttentionHead(VectorHead):
    """FastBERT's student: narrow to 128, self-attention of 2 heads, first token, two layers.

    [B, T, H] → [B, K].

    Args:
        shape: of the feature without the batch, `(None, H)`.
        num_classes: K.
        width: what the tokens are narrowed to.
        num_heads: of the attention; it divides the width.

    Example:
        >>> import torch, multiexit as mx
        >>> head = mx.heads.AttentionHead((None, 16), num_classes=3)
        >>> head(torch.rand(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 3])

    Reference: Liu et al., "FastBERT", ACL 2020, section 3.1, and its code.
    """

    def __init__(self, shape: Shape, num_classes: int, width: int = 128, num_heads: int = 2):
        super().__init__()
        self.narrow = nn.Linear(width_of(shape), width)
        self.attention = nn.MultiheadAttention(width, num_heads, DROPOUT, batch_first=True)
        self.dense = nn.Linear(width, width)
        self.linear = nn.Linear(width, num_classes)

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        x_BTH = torch.tanh(self.narrow(feature))
        padding = None if valid_BT is None else ~valid_BT
        first, _ = self.attention(x_BTH[:, :1], x_BTH, x_BTH, padding, need_weights=False)
        return torch.tanh(self.dense(first[:, 0]))


class MixedPoolHead(VectorHead):
    """Shallow-Deep's head: `Linear(flatten(α·maxpool(f) + (1 − α)·avgpool(f)))`, α learned.

    [B, C, H, W] → [B, K]. The kernel is H // 4 by W // 4, which leaves 4×4 positions where 4
    divides H and W; a feature below 8×8 is not pooled and has no α. α starts in U(0, 1).

    Args:
        shape: of the feature without the batch, in its layout.
        num_classes: K.
        layout: `"image"` or `"channels-last-image"`.

    Example:
        >>> import torch, multiexit as mx
        >>> head = mx.heads.MixedPoolHead((16, 32, 32), num_classes=10)
        >>> head.kernel, head.linear.in_features
        ((8, 8), 256)

    Reference: Kaya et al., "Shallow-Deep Networks", ICML 2019, section 4 and its code.
    """

    def __init__(self, shape: Shape, num_classes: int, layout: str = "image"):
        super().__init__()
        self.last = layout == "channels-last-image"
        sizes = [int(size) for size in shape if size is not None]
        channels, height, width = [sizes[-1], *sizes[:-1]] if self.last else sizes
        self.kernel = (max(height // 4, 1), max(width // 4, 1))
        self.alpha = nn.Parameter(torch.rand(1)) if self.kernel != (1, 1) else None
        positions = (height // self.kernel[0]) * (width // self.kernel[1])
        self.linear = nn.Linear(channels * positions, num_classes)

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        feature = feature.permute(0, 3, 1, 2) if self.last else feature
        if self.alpha is not None:
            most = F.max_pool2d(feature, self.kernel)
            feature = self.alpha * most + (1 - self.alpha) * F.avg_pool2d(feature, self.kernel)
        return feature.flatten(1)


def linear(features: Features) -> list[LinearHead]:
    """A linear head for each exit."""
    K, pool = features.num_classes, features.pool
    return [
        LinearHead(shape, K, pool, layout)
        for shape, layout in zip(features.shapes, features.layouts, strict=True)
    ]


def one_pooler(features: Features) -> list[PoolerHead]:
    """Heads that share a pooler, with the network's own head too if that has the pretrained one.

    Raises:
        ValueError: features of several widths.
    """
    widths = features.widths
    if features.owns_pooler and features.pooler is not None:
        return _on_poolers(features, [features.pooler] * len(widths))
    if len(set(widths)) > 1:
        raise ValueError(
            f"a shared pooler needs features of one width; these have {sorted(set(widths))}: "
            "use head='own-pooler' or head='linear'"
        )
    return _on_poolers(features, [_pooler(width, features) for width in widths[:1]] * len(widths))


def own_poolers(features: Features) -> list[PoolerHead]:
    """Heads that have a pooler each."""
    return _on_poolers(features, [_pooler(width, features) for width in features.widths])


def attention(features: Features) -> list[AttentionHead]:
    """FastBERT's head for each exit."""
    features.check_layouts(
        ("tokens",), "the attention head reads tokens [B, T, H] (images: head='linear')"
    )
    return [AttentionHead(shape, features.num_classes) for shape in features.shapes]


def mixed_pool(features: Features) -> list[MixedPoolHead]:
    """Shallow-Deep's head for each exit."""
    features.check_layouts(
        ("image", "channels-last-image"), "mixed pooling reads images [B, C, height, width]"
    )
    return [
        MixedPoolHead(shape, features.num_classes, layout)
        for shape, layout in zip(features.shapes, features.layouts, strict=True)
    ]


def _pooler(width: int, features: Features) -> nn.Linear:
    """A new pooler, which starts from the pretrained one where that fits."""
    pooler = nn.Linear(width, width)
    if features.pooler is not None and features.pooler.weight.shape == pooler.weight.shape:
        pooler.load_state_dict(features.pooler.state_dict())
    return pooler


def _on_poolers(features: Features, poolers: list[nn.Linear]) -> list[PoolerHead]:
    return [
        PoolerHead(pooler, features.num_classes, features.pool, layout)
        for pooler, layout in zip(poolers, features.layouts, strict=True)
    ]
