"""Which epoch of a phase is the best, and when a phase is over."""

import math
from typing import Any

from multiexit.recipes import Phase
from multiexit.training.config import TrainConfig
from multiexit.training.records.state import Position


def phase_length(phase: Phase, config: TrainConfig, batches: int) -> tuple[int, int]:
    """Epochs and steps of Θ of a phase, of so many batches an epoch."""
    per_epoch = math.ceil(batches / config.accumulation)
    if config.max_steps is not None:
        return math.ceil(config.max_steps / per_epoch), config.max_steps
    epochs = phase.epochs or config.epochs
    return epochs, epochs * per_epoch


def is_over(position: Position, patience: int | None, epochs: int, steps: int) -> bool:
    """Whether a phase is: all done, or no better epoch for long enough."""
    out_of_patience = patience is not None and position.stale >= patience
    return out_of_patience or position.epoch >= epochs or position.step >= steps


def is_better(row: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether an epoch beats the best before it, which may be of another phase."""
    return best is None or best["phase"] != row["phase"] or row["mean"] > best["mean"]
