"""All exits' last layers in one product for each width, for training.

Letters: M exits, B batch rows, T tokens, D a vector's width, K classes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.model.heads.base import VectorHead


def separable(heads: Iterable[nn.Module]) -> bool:
    """Whether all heads are a vector and a plain linear layer that has no hooks.

    Example:
        >>> import multiexit as mx
        >>> head = mx.heads.LinearHead((8,), num_classes=3, pool="mean")
        >>> mx.heads.separable([head]), mx.heads.separable([mx.heads.MixedHead(head, exit=0)])
        (True, False)
    """
    return all(
        isinstance(head, VectorHead)
        and type(head).forward is VectorHead.forward
        and type(head.linear) is nn.Linear
        and head.linear.bias is not None
        and not any(_has_hooks(part) for part in (head, head.linear))
        for head in heads
    )


def classify(heads: Any, vectors: Sequence[Tensor]) -> Tensor:
    """Run `head.linear(vector)` of each exit, in as many products as there are widths.

    Args:
        heads: one per exit, which are `separable`.
        vectors: what each one's last layer reads, [B, D] with a D of its own, or [B, T, D].

    Returns:
        Logits [M, B, K], or [M, B, T, K].

    Example:
        >>> import torch, multiexit as mx
        >>> heads = [mx.heads.LinearHead((D,), num_classes=3, pool="mean") for D in (8, 16)]
        >>> mx.heads.classify(heads, [torch.rand(5, 8), torch.rand(5, 16)]).shape
        torch.Size([2, 5, 3])
    """
    exits_of_width: dict[int, list[int]] = {}
    for m, vector in enumerate(vectors):
        exits_of_width.setdefault(vector.shape[-1], []).append(m)
    parts = []
    for exits in exits_of_width.values():
        w_MKD, b_MK = (
            torch.stack([getattr(heads[m].linear, name) for m in exits])
            for name in ("weight", "bias")
        )
        x_MBD = torch.stack([vectors[m].flatten(0, -2) for m in exits])
        parts.append(torch.baddbmm(b_MK[:, None], x_MBD, w_MKD.transpose(1, 2)))
    logits_MBK = torch.cat(parts).unflatten(1, vectors[0].shape[:-1])
    order = [m for exits in exits_of_width.values() for m in exits]
    if order == sorted(order):
        return logits_MBK
    return torch.stack([logits_MBK[order.index(m)] for m in range(len(order))])


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module would run a hook."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks)
