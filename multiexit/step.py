"""What one pass over a batch gives the training loop, and checks of what it left.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit import losses, sharding
from multiexit.data import batches
from multiexit.model import MultiExitModel
from multiexit.recipes import Phase, Seen


class Losses(NamedTuple):
    """What a pass over a batch gives the training step.

    Args:
        L_MM: the loss matrix.
        rows_MB: each row's own loss at each exit, where the learner weighs rows.
        extra: what the phase adds.
        logits_MBC: all exits' logits.
        labels_B: on the logits' device, or None where the phase learns from none.
    """

    L_MM: Tensor
    rows_MB: Tensor | None
    extra: Tensor | None
    logits_MBC: Tensor
    labels_B: Tensor | None


class TrainingPass(nn.Module):
    """A phase's pass over a batch, as one module: what spreads modules over devices sees it all.

    Args:
        model, phase: as elsewhere.
        labelled: whether the phase learns from labels; if not, batches need none.
    """

    def __init__(self, model: MultiExitModel, phase: Phase, labelled: bool = True):
        super().__init__()
        self.model = model
        self._phase = phase
        self._labelled = labelled

    def forward(self, batch: Any, tau: float | Tensor) -> Losses:
        """The losses of a batch.

        Raises:
            ValueError: a batch with labels outside the classes, or without labels in a phase that
                learns from them.
        """
        phase, device = self._phase, next(self.model.parameters()).device
        labels_B = None
        if self._labelled:
            args, inputs, labels_B = batches.unpack(batch)
        else:
            args, inputs = batches.unpack_inputs(batch)
        args, inputs = batches.move(args, device), batches.move(inputs, device)
        seen = self.model.run(args, inputs, phase.branch, phase.extra is not None)
        if labels_B is not None and device.type != "cpu":  # where nobody looks without waiting
            losses.check_labels(labels_B, seen.logits_MBC.shape[-1])
            labels_B = labels_B.to(device, non_blocking=True)
        L_MM = losses.loss_matrix(seen.logits_MBC, labels_B, tau, phase.divergence)
        rows_MB = extra = None
        if phase.learner.weighs_rows and labels_B is not None:
            rows_MB = losses.row_losses(seen.logits_MBC, labels_B)
        if phase.extra is not None:
            extra = phase.extra(
                Seen(args, inputs, labels_B, seen.logits_MBC, seen.certainty_MB, seen.features)
            )
        return Losses(L_MM, rows_MB, extra, seen.logits_MBC, labels_B)


class Terms(nn.Module):
    """A training pass that gives its weighted terms alone: rows' losses, or the loss matrix."""

    def __init__(self, passing: TrainingPass):
        super().__init__()
        self.passing = passing

    def forward(self, batch: Any, tau: float | Tensor) -> Tensor:
        found = self.passing(batch, tau)
        return found.L_MM if found.rows_MB is None else found.rows_MB


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
