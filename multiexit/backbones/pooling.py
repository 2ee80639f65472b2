"""Pooling: from a feature to a vector per row.

Letters: B batch rows, T tokens, H width, C channels.
"""

import torch
from torch import Tensor

from multiexit.backbones.layouts import LAYOUTS

_DEFAULT_LAYOUT = {1: "vector", 2: "tokens", 3: "image", 4: "volume"}


def pool_feature(
    feature: Tensor, pool: str, valid_BT: Tensor | None = None, layout: str | None = None
) -> Tensor:
    """Pool a feature to a vector per row.

    Tokens [B, T, H]: the first one, the last real one, or the mean over the real ones, which
    `valid_BT` marks.
    Images, sequences, volumes: the mean over positions. Vectors [B, D]: as they are.

    Args:
        feature: [B, …].
        pool: `"first"`, `"last"` or `"mean"`.
        valid_BT: which tokens are real, bool [B, T]; None is all.
        layout: one of `multiexit.backbones.layouts.LAYOUTS`; None is vectors, tokens, images or
            volumes with the channels first, by the number of dimensions.

    Returns:
        [B, H], [B, C] or [B, D].

    Raises:
        ValueError: a feature of another rank than its layout has.

    Example:
        The second row has one real token:

        >>> import torch, multiexit as mx
        >>> feature = torch.tensor([[[1.0], [3.0]], [[1.0], [3.0]]])
        >>> valid_BT = torch.tensor([[True, True], [True, False]])
        >>> mx.heads.pool_feature(feature, "mean", valid_BT).tolist()
        [[2.0], [1.0]]
    """
    layout = _DEFAULT_LAYOUT.get(feature.ndim - 1, "none") if layout is None else layout
    if layout not in LAYOUTS or LAYOUTS[layout].rank != feature.ndim - 1:
        raise ValueError(
            f"a feature of shape {tuple(feature.shape)} where a {layout} was expected: when the "
            "network was wrapped, its example had another rank than this input; wrap it with "
            "input_shape= of one such row"
        )
    if layout == "vector":
        return feature
    if layout == "tokens":
        return _pool_tokens(feature, pool, valid_BT)
    width = 1 + LAYOUTS[layout].width
    positions = tuple(dim for dim in range(1, feature.ndim) if dim != width)
    dtype = torch.promote_types(feature.dtype, torch.float32)
    if not torch.is_grad_enabled():
        return feature.mean(positions, dtype=dtype).to(feature.dtype)
    num_positions = 1
    for dim in positions:
        num_positions = num_positions * feature.shape[dim]
    # Not .mean: its backward writes out a whole feature map, that of a sum does not.
    return (feature.sum(positions, dtype=dtype) / num_positions).to(feature.dtype)


def turned_by(value: Tensor, places_B: Tensor) -> Tensor:
    """Rows turned round: position t of a row is what was at (t + places) mod T.

    Args:
        value: [B, T] or [B, T, H].
        places_B: by how many each row is turned, within −T..T.

    >>> turned_by(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([1, -1])).tolist()
    [[1, 2, 0], [2, 0, 1]]
    """
    T = value.shape[1]
    index_BT = torch.arange(T, device=value.device) + places_B.unsqueeze(1)
    index_BT = torch.where(index_BT < 0, index_BT + T, index_BT)  # ONNX has no % of a size
    index_BT = torch.where(index_BT < T, index_BT, index_BT - T)
    if value.ndim == 3:
        return value.gather(1, index_BT.unsqueeze(-1).expand(-1, -1, value.shape[2]))
    return value.gather(1, index_BT)


def _pool_tokens(feature_BTH: Tensor, pool: str, valid_BT: Tensor | None) -> Tensor:
    if pool == "first":
        return feature_BTH[:, 0]
    if pool == "last":
        return _last_token(feature_BTH, valid_BT)
    if valid_BT is None:
        return feature_BTH.mean(1)
    weight_BT1 = valid_BT.to(feature_BTH.dtype).unsqueeze(-1)
    return (feature_BTH * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def _last_token(feature_BTH: Tensor, valid_BT: Tensor | None) -> Tensor:
    if valid_BT is None:
        return feature_BTH[:, -1]
    place_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
    last_B11 = (valid_BT * place_T).argmax(1).view(-1, 1, 1)
    return feature_BTH.gather(1, last_B11.expand(-1, 1, feature_BTH.shape[2])).squeeze(1)
