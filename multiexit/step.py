"""What one pass over a batch gives the training loop.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiexit import losses
from multiexit.data import batches


def batch_losses(
    model: nn.Module,
    batch: Any,
    tau: float | Tensor,
    divergence: losses.Divergence,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """L_MM and logits_MBC of a batch.

    Raises:
        ValueError: a batch without labels, or with labels outside the classes.
    """
    args, inputs, labels_B = batches.unpack(batch)
    logits_MBC = model(*batches.move(args, device), **batches.move(inputs, device))
    if device.type != "cpu":  # where nobody can look at them without waiting
        losses.check_labels(labels_B, logits_MBC.shape[-1])
        labels_B = labels_B.to(device, non_blocking=True)
    return losses.loss_matrix(logits_MBC, labels_B, tau, divergence), logits_MBC


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises by the batch as in training, and its running statistics stay."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [m.track_running_stats for m in norms]
    for m in norms:
        if m.training:
            m.track_running_stats = False
    try:
        yield
    finally:
        for m, tracked in zip(norms, tracking, strict=True):
            m.track_running_stats = tracked


def check_parameters(model: nn.Module, step: int) -> None:
    """Raise FloatingPointError if training has left a parameter or statistic NaN or infinite."""
    named = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    finite = torch.stack([p.detach().isfinite().all() for p in named.values()])
    if not finite.all():
        name = list(named)[int((~finite).nonzero()[0])]
        raise FloatingPointError(
            f"{name} is NaN or infinite after {step} steps: lower the learning rate; the last "
            "checkpoint stands"
        )


def check_finite(L_SMM: Tensor, A_MM: Tensor, steps: list[int]) -> None:
    """Raise FloatingPointError at the first term that counts and is NaN or infinite.

    Args:
        L_SMM: loss matrices of S steps.
        A_MM: factors; 0 where a term doesn't count.
        steps: the steps' numbers, for the message.
    """
    bad = (~torch.isfinite(L_SMM) & (A_MM != 0)).nonzero()
    if len(bad):
        index, i, j = bad[0].tolist()
        term = f"exit {i}'s own loss" if i == j else f"what exit {i} learns from exit {j}"
        raise FloatingPointError(
            f"{term} is {float(L_SMM[index, i, j])} at step {steps[index]}: lower the learning "
            "rate, or look for broken inputs; the last checkpoint stands"
        )
