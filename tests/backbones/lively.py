"""Random networks whose signal lives: what is 0 or 1 when it is made would hide mistakes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def perturb(network: nn.Module) -> None:
    """Draw what is one number all over: a bias of 0 or a scale of 1e-6 would hide its use."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() and parameter.min() == parameter.max():
                parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def settle(network: nn.Module, *args: Tensor, **inputs: Tensor) -> None:
    """Batch normalisations take their statistics from inputs: with 0 and 1 the signal would die."""
    norms = [
        part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        network(*args, **inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
