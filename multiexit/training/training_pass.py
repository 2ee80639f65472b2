"""One pass over a batch, from its inputs to its losses.

Letters: M exits, B batch rows, C classes.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.utils.checkpoint import checkpoint

from multiexit.backbones import Carry
from multiexit.data import batches
from multiexit.losses import labels, matrix
from multiexit.losses.criterion import Criterion
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase, Seen
from multiexit.runtime import compiled
from multiexit.training.batch_norm import RepeatedStatistics
from multiexit.training.config import TrainConfig


class Losses(NamedTuple):
    """The losses of a pass over a batch.

    Args:
        L_MM: the loss matrix [M, M].
        rows_MB: each row's own loss at each exit [M, B], where the learner weighs rows.
        extra: what the phase adds, a scalar.
        logits_MBC: all exits' logits [M, B, C].
        labels_B: on the logits' device, or None where the phase learns from none.
        asked_BT: of tokens without labels, which are learned.
    """

    L_MM: Tensor
    rows_MB: Tensor | None
    extra: Tensor | None
    logits_MBC: Tensor
    labels_B: Tensor | None
    asked_BT: Tensor | None = None


class TrainingPass(nn.Module):
    """The way from a batch to its losses as one module, so that DDP and FSDP wrap all of it.

    Args:
        model: what is trained.
        phase: with its loss.
        labelled: whether the phase learns from labels; if not, batches need none.
        config: how the pass is run: compiled, with channels last, stages computed twice.
    """

    def __init__(
        self,
        model: MultiExitModel,
        phase: Phase,
        labelled: bool = True,
        config: TrainConfig | None = None,
    ):
        super().__init__()
        self.model = model
        self._phase = phase
        self._labelled = labelled
        config = config or TrainConfig()
        self._channels_last = config.channels_last
        self.criterion = criterion(model, config)
        self._stage = self._recomputed_stage if config.checkpoint_gradients else None
        self._compiled = config.compile
        # A function is compiled, no module: names of parameters stay as they are.
        self._compute = self._losses
        if config.compile:  # phases, gradients on and off, and lengths of text are compiled apart
            self._compute = compiled(self._losses, 64)
            if phase.surgery is not None:
                # It goes backward more than once. For the whole process: a patch is of one thread,
                # and backward passes on a GPU look this up in threads of their own.
                functorch.donated_buffer = False

    def forward(self, batch: Any, tau: float | Tensor) -> Losses:
        """The losses of a batch.

        Raises:
            ValueError: a batch with labels outside the classes, or without labels in a phase that
                learns from them.
        """
        device = next(self.model.parameters()).device
        labels_B = None
        if self._labelled:
            args, inputs, labels_B = batches.unpack(batch)
        else:
            args, inputs = batches.unpack_inputs(batch)
        if labels_B is not None:
            C, problem = self.model.num_classes, self.model.problem
            if self._compiled or device.type != "cpu":  # where the loss matrix doesn't look
                labels.check_labels(labels_B, C, "a batch of training", problem)
            labels_B = batches.move(labels_B, device)
        args, inputs = batches.move((args, inputs), device)
        if self._channels_last:
            args, inputs = batches.channels_last((args, inputs))
        return self._compute(args, inputs, labels_B, tau)

    def _losses(self, args: Any, inputs: Any, labels_B: Tensor | None, tau: float | Tensor) -> Any:
        phase = self._phase
        exits = self.model.run(args, inputs, phase.branch, phase.extra is not None, self._stage)
        # Where there are labels, they say which tokens are learned.
        asked_BT = exits.asked_BT if labels_B is None else None
        L_MM = matrix.loss_matrix(
            exits.logits_MBC, labels_B, tau, phase.divergence, self.criterion, asked_BT
        )
        rows_MB = extra = None
        if phase.learner.weighs_rows and labels_B is not None:
            rows_MB = matrix.row_losses(exits.logits_MBC, labels_B, self.criterion)
        if phase.extra is not None:
            how = self.model.problem, self.criterion
            extra = phase.extra(Seen(args, inputs, labels_B, *exits[:3], *how))
        return Losses(L_MM, rows_MB, extra, exits.logits_MBC, labels_B, asked_BT)

    def _recomputed_stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        """A stage that keeps nothing for the backward pass, where it is run again."""
        backbone = self.model.backbone
        if not torch.is_grad_enabled():
            return backbone.stage(carry, index)
        if torch.compiler.is_compiling():  # the compiler knows which updates are not to be repeated
            return checkpoint(backbone.stage, carry, index, use_reentrant=False)
        return checkpoint(
            backbone.stage,
            carry,
            index,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), RepeatedStatistics(backbone)),
        )


def criterion(model: MultiExitModel, config: TrainConfig) -> Criterion:
    """How a run's labels count, by the model's problem and the run's settings."""
    return Criterion(model.problem, config.label_smoothing, config.class_weights)


class Terms(nn.Module):
    """A training pass that gives its weighted terms alone: rows' losses, or the loss matrix."""

    def __init__(self, training_pass: TrainingPass):
        super().__init__()
        self.training_pass = training_pass

    def forward(self, batch: Any, tau: float | Tensor) -> Tensor:
        losses = self.training_pass(batch, tau)
        return losses.L_MM if losses.rows_MB is None else losses.rows_MB
