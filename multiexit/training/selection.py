"""Early stopping: how long a phase is, when it is over, and which of its epochs is the best."""

import math
from typing import Any

from multiexit.recipes import Phase
from multiexit.training.config import TrainConfig
from multiexit.training.records.state import Position


def phase_length(phase: Phase, config: TrainConfig, batches: int) -> tuple[int, int]:
    """The length of a phase.

    Args:
        phase: with its own number of epochs, or the run's.
        config: with `epochs`, `max_steps` and `accumulation`.
        batches: of B1 in an epoch, on each process.

    Returns:
        Epochs, and steps of Θ.
    """
    per_epoch = math.ceil(batches / config.accumulation)
    if config.max_steps is not None:
        return math.ceil(config.max_steps / per_epoch), config.max_steps
    epochs = phase.epochs or config.epochs
    return epochs, epochs * per_epoch


def is_over(position: Position, patience: int | None, epochs: int, steps: int) -> bool:
    """Whether a phase is over: all is done, nothing was better for long enough, or it was stopped.

    Args:
        position: where the run is.
        patience: evaluations without a better one after which it stops, or None.
        epochs, steps: how long the phase is.
    """
    out_of_patience = patience is not None and position.stale >= patience
    return out_of_patience or position.stopped or position.epoch >= epochs or position.step >= steps


def judges(position: Position, every: int | None, epoch_ends: bool, steps: int) -> bool:
    """Whether exits are scored here.

    They are at epochs' ends, or at every so many steps; and at the phase's end.

    Args:
        position: where the run is.
        every: steps between evaluations, or None for epochs' ends.
        epoch_ends: whether an epoch ends here.
        steps: how many the phase has.
    """
    ends = position.stopped or position.step == steps
    return ends or (epoch_ends if every is None else position.step % every == 0)


def is_better(row: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether an epoch beats the best before it, which may be of another phase.

    Args:
        row: the epoch in the history, with `"phase"` and `"mean"`.
        best: the best one so far, or None.
    """
    return best is None or best["phase"] != row["phase"] or row["mean"] > best["mean"]
