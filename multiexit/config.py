"""The settings of a training run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multiexit.metrics import METRICS, Metric


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains; what it trains on which loss is the recipe's.

    Args:
        epochs: passes over D1 (over the whole set where Ω needs no second half).
        max_steps: Θ's steps per phase in all, in place of `epochs`; for comparing methods.
        batch_size: rows per step of Θ on one process (before accumulation).
        lr: λ1, Θ's learning rate.
        omega_lr: λ2, Ω's learning rate (Adam without decay).
        optimizer: Θ's: `"adamw"` or `"sgd"`.
        weight_decay, momentum: of Θ's optimiser.
        schedule: `"linear"` or `"cosine"` to 0, `"step"` (×0.1 at each milestone), `"constant"`.
        warmup: share of the steps over which the rate rises from 0.
        milestones: shares of the steps, for `"step"`.
        clip: largest norm of Θ's gradient, or None.
        accumulation: batches per step of Θ.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`.
        compile: compile the training pass with `torch.compile`.
        channels_last: lay images and convolutions out with the channels innermost.
        checkpoint_gradients: keep no activations inside a stage for the backward pass, which
            computes them again: less memory for about a forward pass more.
        seed: of everything: weights of new heads are the caller's, order and dropout are here.
        early_stopping: stop after so many epochs whose mean over exits is no better; None never.
        metric: a name in `multiexit.metrics.METRICS`, or a function of answers [N] and labels [N]
            that gives a number, more being better, or a dict of numbers with `"score"`; it is
            tried on made-up rows first. None is accuracy, or Pearson and Spearman for regression.
        output: the run's folder, or None to keep nothing on disk.
        resume: go on from the checkpoint in `output`, if there is one.
        force: go on even if that checkpoint is of a run with another recipe, settings, data or
            versions; warns of what differs.
        checkpoint_every: steps between checkpoints, beside one at each epoch's end.
        keep_checkpoints: how many of the latest stay, beside that of the best epoch.
        log_every: steps between readings of the losses from the device.
        trackers: of accelerate: `"tensorboard"`, `"wandb"`, …
        workers: processes that prepare batches.
        progress: show a bar.
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    lr: float = 2e-5
    omega_lr: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: Literal["linear", "cosine", "step", "constant"] = "linear"
    warmup: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)
    clip: float | None = 1.0
    accumulation: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    channels_last: bool = False
    checkpoint_gradients: bool = False
    seed: int = 0
    early_stopping: int | None = 5
    metric: str | Metric | None = None
    output: str | Path | None = None
    resume: bool = False
    force: bool = False
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    log_every: int = 20
    trackers: tuple[str, ...] = ()
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "keep_checkpoints", "log_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("seed", "workers"):
            _at_least(name, getattr(self, name), 0)
        for name in ("max_steps", "checkpoint_every", "early_stopping"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("lr", "omega_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("warmup", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, or None for no clipping, got {self.clip}")
        if any(not 0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones are shares of the steps, 0..1, got {self.milestones}")
        _one_of("optimizer", self.optimizer, ("adamw", "sgd"))
        _one_of("schedule", self.schedule, ("linear", "cosine", "step", "constant"))
        _one_of("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        if not callable(self.metric):
            _one_of("metric", self.metric, (None, *METRICS))
        if self.trackers and self.output is None:
            raise ValueError("trackers write to the run's folder: set output=")
        if self.resume and self.output is None:
            raise ValueError("resume=True needs output=, the folder of the run to go on with")
        if self.force and not self.resume:
            raise ValueError("force=True is for resume=True: it lets another run's checkpoint pass")


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
