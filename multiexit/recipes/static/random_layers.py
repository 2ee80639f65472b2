"""Helpers of backbones that run other layers in training than afterwards."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from multiexit.backbones.transformers.transformer import TransformerBackbone


def adopt(outer: nn.Module, inner: TransformerBackbone) -> None:
    """Make the parts of one backbone those of another, under the same names.

    So the outer one's weights are named as the inner one's, and what is saved loads as that.
    """
    for name, child in inner.named_children():
        outer.add_module(name, child)


def facts(inner: TransformerBackbone) -> dict:
    """The arguments of `Backbone.__init__`, as the inner one has them."""
    return {
        "feature_shapes": inner.feature_shapes,
        "head": inner.head,
        "pool": inner.pool,
        "spec": inner.spec,
        "pooler": inner.pooler,
        "classifier": inner.classifier,
    }


def idle(x_BTH: Tensor, module: nn.Module) -> Tensor:
    """x itself [B, T, H], with gradients of 0 for a module that is not run, where there were none.

    So every parameter takes part in every step, on one device or many.

    Raises:
        ValueError: a module sharded by FSDP2, which all processes must run together.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if any(isinstance(p, DTensor) for p in trained):
        raise ValueError(
            "layers that are skipped at random can't be sharded one by one: train with DDP, or "
            "with FSDP2 and fsdp_auto_wrap_policy: NO_WRAP"
        )
    if not trained or not torch.is_grad_enabled():
        return x_BTH
    return x_BTH + 0 * torch.stack([p.sum() for p in trained]).sum().to(x_BTH.dtype)
