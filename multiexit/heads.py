"""Exit heads: from a stage's feature to logits.

Letters: B batch rows, T tokens, H width, C channels (of a feature) or classes (of logits),
K classes.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiexit.backbones.base import Backbone

Shape = tuple[int | None, ...]
Factory = Callable[[Shape, int], nn.Module]
"""A head of the user's own: `(feature shape without the batch, K) -> module`."""

DROPOUT = 0.1  # before a text classifier, as BERT's fine-tuning has it (Devlin et al. 2019)


class Head(nn.Module, ABC):
    """A head that is told which tokens are real: `forward(feature, valid_BT) -> logits_BK`."""

    @abstractmethod
    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Logits [B, K] of a stage's feature."""


class _Plain(Head):
    """A user's module, which takes the feature alone."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.module(feature)


class LinearHead(Head):
    """`Linear(pool(f))`: one matrix on a pooled feature, [B, …] → [B, K]."""

    def __init__(self, shape: Shape, num_classes: int, pool: str):
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(_width(shape), num_classes)

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.linear(pool_feature(feature, self.pool, valid_BT))


class PoolerHead(Head):
    """`Linear(tanh(pooler(pool(f))))`, as BERT classifies a sentence, [B, T, H] → [B, K].

    Args:
        pooler: `Linear(H, H)`; the same object in every head makes it a shared pooler.
    """

    def __init__(self, pooler: nn.Linear, num_classes: int, pool: str):
        super().__init__()
        self.pool = pool
        self.pooler = pooler
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(pooler.out_features, num_classes)

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        pooled = torch.tanh(self.pooler(pool_feature(feature, self.pool, valid_BT)))
        return self.linear(self.dropout(pooled))


class AttentionHead(Head):
    """FastBERT's student: narrow to 128, self-attention of 2 heads, first token, two layers.

    [B, T, H] → [B, K]. Reference: Liu et al., "FastBERT", ACL 2020, section 3.1, and its code.
    """

    def __init__(self, shape: Shape, num_classes: int, width: int = 128, num_heads: int = 2):
        super().__init__()
        self.narrow = nn.Linear(_width(shape), width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.dense = nn.Linear(width, width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        x_BTH = torch.tanh(self.narrow(feature))
        padding = None if valid_BT is None else ~valid_BT
        first, _ = self.attention(x_BTH[:, :1], x_BTH, x_BTH, padding, need_weights=False)
        return self.linear(torch.tanh(self.dense(first[:, 0])))


class MixedPoolHead(Head):
    """Shallow-Deep's head: `Linear(flatten(α·maxpool(f) + (1 − α)·avgpool(f)))`, α learned.

    [B, C, H, W] → [B, K]. The kernel is H // 4 by W // 4, which leaves 4×4 positions where 4
    divides H and W; a feature below 8×8 is not pooled and has no α. α starts in U(0, 1).

    Reference: Kaya et al., "Shallow-Deep Networks", ICML 2019, section 4 and its code.
    """

    def __init__(self, shape: Shape, num_classes: int):
        super().__init__()
        channels, height, width = (int(size) for size in shape if size is not None)
        self.kernel = (max(height // 4, 1), max(width // 4, 1))
        self.alpha = nn.Parameter(torch.rand(1)) if self.kernel != (1, 1) else None
        positions = (height // self.kernel[0]) * (width // self.kernel[1])
        self.linear = nn.Linear(channels * positions, num_classes)

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        if self.alpha is not None:
            most = F.max_pool2d(feature, self.kernel)
            feature = self.alpha * most + (1 - self.alpha) * F.avg_pool2d(feature, self.kernel)
        return self.linear(feature.flatten(1))


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


def build(
    head: str | Factory, pool: str, backbone: Backbone, stages: Sequence[int], num_classes: int
) -> nn.ModuleList:
    """One head per exit.

    Args:
        head: `"linear"`, `"pooler"` (a pooler shared by all exits), `"own-pooler"`, `"attention"`
            (FastBERT), `"mixed-pool"` (Shallow-Deep), or a function `(shape, K) -> nn.Module`.
        pool: `"first"` or `"mean"`.
        backbone: gives the features' shapes and pretrained poolers and classifiers to start from.
        stages: the stage of each exit.
        num_classes: K; 1 for regression.

    Raises:
        ValueError: an unknown head or pool, or one that the features don't suit.
    """
    shapes = [backbone.feature_shapes[stage] for stage in stages]
    if pool not in ("first", "mean"):
        raise ValueError(f"no pooling {pool!r}; there are 'first' and 'mean'")
    if isinstance(head, nn.Module):
        raise ValueError(
            "head is a module; pass a function (feature shape, classes) -> nn.Module, which makes "
            "one for each exit"
        )
    if callable(head):
        made = [head(shape, num_classes) for shape in shapes]
        return nn.ModuleList(
            module if isinstance(module, Head) else _Plain(module) for module in made
        )
    if head == "linear":
        heads = [LinearHead(shape, num_classes, pool) for shape in shapes]
        if stages[-1] == backbone.num_stages - 1:
            _start_from(heads[-1].linear, backbone.classifier)
        return nn.ModuleList(heads)
    if head in ("pooler", "own-pooler"):
        heads = _pooler_heads(shapes, num_classes, pool, backbone.pooler, shared=head == "pooler")
        if stages[-1] == backbone.num_stages - 1:
            _start_from(heads[-1].linear, backbone.classifier)
        return nn.ModuleList(heads)
    if head == "attention":
        _need(shapes, 2, "the attention head reads tokens [B, T, H]")
        return nn.ModuleList(AttentionHead(shape, num_classes) for shape in shapes)
    if head == "mixed-pool":
        _need(shapes, 3, "mixed pooling reads images [B, C, height, width]")
        return nn.ModuleList(MixedPoolHead(shape, num_classes) for shape in shapes)
    raise ValueError(
        f"no head {head!r}; there are 'linear', 'pooler', 'own-pooler', 'attention', 'mixed-pool', "
        "or pass a function (feature shape, classes) -> nn.Module"
    )


def _pooler_heads(
    shapes: list[Shape], num_classes: int, pool: str, pretrained: nn.Linear | None, shared: bool
) -> list[PoolerHead]:
    widths = {_width(shape) for shape in shapes}
    if shared and len(widths) > 1:
        raise ValueError(
            f"a shared pooler needs features of one width; these have {sorted(widths)}: "
            "use head='own-pooler' or head='linear'"
        )

    def pooler(shape: Shape) -> nn.Linear:
        made = nn.Linear(_width(shape), _width(shape))
        _start_from(made, pretrained)
        return made

    first = pooler(shapes[0])
    poolers = [first if shared or i == 0 else pooler(shape) for i, shape in enumerate(shapes)]
    return [PoolerHead(pooler, num_classes, pool) for pooler in poolers]


def _start_from(linear: nn.Linear, pretrained: nn.Linear | None) -> None:
    if pretrained is not None and pretrained.weight.shape == linear.weight.shape:
        linear.load_state_dict(copy.deepcopy(pretrained.state_dict()))


def _width(shape: Shape) -> int:
    """Channels of an image, width of a token or vector."""
    width = shape[0] if len(shape) == 3 else shape[-1]
    if width is None:
        raise ValueError(f"a feature of shape {shape} has no fixed width")
    return width


def _need(shapes: list[Shape], dimensions: int, what: str) -> None:
    for shape in shapes:
        if len(shape) != dimensions:
            raise ValueError(f"{what}; this backbone's features have shape (B, {shape})")
