"""Losses and parameters that are no longer finite."""

import torch
from torch import Tensor, nn

from multiexit.training import sharding


def check_parameters(model: nn.Module, step: int) -> None:
    """Raise FloatingPointError if training has left a parameter or statistic NaN or infinite."""
    named = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    finite = torch.stack([sharding.local(p).detach().isfinite().all() for p in named.values()])
    if not finite.all():
        name = list(named)[int((~finite).nonzero()[0])]
        raise FloatingPointError(
            f"{name} is NaN or infinite after {step} steps: lower the learning rate; the last "
            "checkpoint stands"
        )


def check_finite(L_SMM: Tensor, A_SMM: Tensor, steps: list[int]) -> None:
    """Raise FloatingPointError at the first term that counts and is NaN or infinite.

    Args:
        L_SMM: loss matrices of S steps.
        A_SMM: their factors; 0 where a term doesn't count.
        steps: the steps' numbers, for the message.
    """
    bad = (~torch.isfinite(L_SMM) & (A_SMM != 0)).nonzero()
    if len(bad):
        index, i, j = bad[0].tolist()
        term = f"exit {i}'s own loss" if i == j else f"what exit {i} learns from exit {j}"
        raise FloatingPointError(
            f"{term} is {float(L_SMM[index, i, j])} at step {steps[index]}: lower the learning "
            "rate, or look for broken inputs; the last checkpoint stands"
        )
