"""The settings of a training run."""

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from multiexit.arguments import ELSEWHERE, check_share, suggest, unknown
from multiexit.evaluation.metrics import METRICS, Metric
from multiexit.files.paths import user_path
from multiexit.losses.criterion import Criterion
from multiexit.training import schedules
from multiexit_runner.user_line import user_level

REACH = 2.0
"""How far Ω's logits may move in a phase by default: weights then differ by up to e^(2·REACH)."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; what it trains, and on which loss, is the recipe's.

    Args:
        epochs: passes over D1 (over the whole set where Ω needs no second half).
        max_steps: Θ's steps per phase in all, in place of `epochs`; for comparing methods.
        batch_size: rows per step of Θ on one process (before accumulation).
        lr: λ1, Θ's learning rate.
        omega_lr: λ2, Ω's learning rate (Adam without decay). None is `REACH` / steps of the phase:
            Adam moves a logit by λ2 a step at most.
        optimizer: Θ's: `"adamw"` or `"sgd"`.
        weight_decay, momentum: of Θ's optimiser. The default decay, and that of `clip`, suit AdamW:
            SGD on images starts from `presets.cifar`.
        schedule: `"linear"` or `"cosine"` to 0, `"step"` (×0.1 at each milestone), `"constant"`; or
            a name of transformers: `"cosine_with_restarts"`, `"polynomial"`, `"inverse_sqrt"`,
            `"constant_with_warmup"`, `"cosine_with_min_lr"`, `"cosine_warmup_with_min_lr"` or
            `"warmup_stable_decay"`.
        schedule_options: of a schedule of transformers, by name: `{"num_cycles": 3}`.
        warmup: share of the steps over which the rate rises from 0.
        milestones: shares of the steps, for `"step"`.
        layer_decay: a factor in (0, 1) by which Θ's rate falls from each stage to the one before
            it, down to the embeddings; None is one rate for all.
        label_smoothing: ε in [0, 1), of labels that are classes (see `multiexit.Criterion`).
        class_weights: how much each class counts in the loss against labels, one number for each
            of the C outputs; None is 1. A batch's loss is the weighted mean over its own rows (as
            of `torch.nn.CrossEntropyLoss`); batches that are accumulated, and those of several
            processes, count by their rows, whatever these weigh.
        sampling: `"balanced"` draws each epoch's rows (of D1 and of D2) so that every class has as
            many as every other: rows of rare classes come several times, of frequent ones a part.
            It needs a class a row. None is every row once.
        mixup, cutmix: α of MixUp and CutMix of images, such as 0.2 and 1.0 (see
            `multiexit.data.mixing`): Θ learns from mixed images and labels, of classes or of
            several labels, and so do exits from each other; D2 and rows without labels stay as
            they are. None is without. Label smoothing comes after it.
        ema: decay in (0, 1) of an exponential moving average of Θ, and of BatchNorm's statistics,
            over the steps of a phase, of 0.999 and near; smaller in its first steps, (1 + t) /
            (10 + t). The averages are what is judged, selected and kept, and where the next phase
            begins; Ω is not averaged. None keeps the weights themselves.
        clip: largest norm of Θ's gradient, or None.
        accumulation: batches per step of Θ.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`.
        compile: compile the training pass with `torch.compile`.
        channels_last: lay images and convolutions out with the channels innermost.
        checkpoint_gradients: keep no activations inside a stage for the backward pass, which
            computes them again: less memory for about a forward pass more.
        seed: of everything: weights of new heads are the caller's, order and dropout are here.
        early_stopping: stop after so many evaluations whose mean over exits is no better; None
            never.
        metric: a name in `multiexit.metrics.METRICS`, or a function of answers [N] and labels [N]
            that gives a number, more being better, or a dict of numbers with `"score"`; it is
            tried on made-up rows first. None is accuracy, or Pearson and Spearman for regression.
        output: the run's folder, or None to keep nothing on disk.
        resume: go on from the checkpoint in `output`; a new folder is begun anew.
        overwrite: clear away the run that `output` holds, and start anew.
        force: go on even if that checkpoint is of a run with another recipe, settings, data or
            versions; warns of what differs.
        evaluate_every: steps between evaluations of all exits, beside one at each phase's end; None
            is each epoch's end.
        checkpoint_every: steps between checkpoints, beside one at each epoch's end and evaluation.
        keep_checkpoints: how many of the latest stay, beside that of the best epoch.
        log_every: steps between readings of the losses from the device.
        trackers: of accelerate: `"tensorboard"`, `"wandb"`, …
        workers: processes that prepare batches.
        progress: say on stderr how far the run is: a bar on a terminal, lines elsewhere, and a line
            per evaluation.

    Raises:
        ValueError: it names the setting, the value, and what would be right.

    Example:
        >>> import multiexit as mx
        >>> mx.TrainConfig(epochs=3, lr=5e-5, mixed_precision="bf16").clip
        1.0
        >>> mx.TrainConfig(lr=0)
        Traceback (most recent call last):
        ValueError: lr must be above 0, got 0
        >>> mx.TrainConfig(learning_rate=1e-4)
        Traceback (most recent call last):
        ValueError: TrainConfig has no learning_rate: did you mean lr?
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    lr: float = 2e-5
    omega_lr: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: str = "linear"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    warmup: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)
    layer_decay: float | None = None
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    sampling: Literal["balanced"] | None = None
    mixup: float | None = None
    cutmix: float | None = None
    ema: float | None = None
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
    overwrite: bool = False
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    log_every: int = 20
    trackers: tuple[str, ...] = ()
    workers: int = 0
    progress: bool = True

    def __new__(cls, *args: Any, **settings: Any) -> "TrainConfig":
        """Refuse a setting that there isn't, with the nearest one.

        Raises:
            ValueError: with its name.
        """
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                near = suggest(ELSEWHERE.get(name, name), known)
                hint = f"it has {', '.join(known)}" if near is None else f"did you mean {near}?"
                raise ValueError(f"TrainConfig has no {name}: {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Numbers of numpy become plain ones, so that they can be written.

        Raises:
            ValueError: it names the setting, the value, and what would be right.
        """
        for name in ("epochs", "batch_size", "accumulation", "keep_checkpoints", "log_every"):
            self._set_whole_number(name, 1)
        for name in ("max_steps", "evaluate_every", "checkpoint_every", "early_stopping"):
            if getattr(self, name) is not None:
                self._set_whole_number(name, 1)
        self._set_whole_number("workers", 0)
        self._set_whole_number("seed", 0, 2**32)
        for name in ("lr", "omega_lr") if self.omega_lr is not None else ("lr",):
            if not self._set_number(name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "momentum"):
            check_share(name, self._set_number(name), "[0, 1)")
        if not self._set_number("weight_decay") >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        self._set_number("label_smoothing")
        criterion = Criterion(None, self.label_smoothing, self.class_weights)
        object.__setattr__(self, "class_weights", criterion.class_weights)
        for name, none in (("clip", "no clipping"), ("mixup", "none"), ("cutmix", "none")):
            value = getattr(self, name)
            if value is not None and not self._set_number(name) > 0:
                raise ValueError(f"{name} must be above 0, or None for {none}, got {value}")
        _one_of("sampling", self.sampling, (None, "balanced"))
        if self.sampling is not None and self.class_weights is not None:
            raise ValueError(
                "sampling='balanced' makes classes equally frequent, and class_weights would count "
                "rare ones once more: set one of them"
            )
        for name in ("compile", "channels_last", "checkpoint_gradients", "resume", "force"):
            self._set_switch(name)
        for name in ("overwrite", "progress"):
            self._set_switch(name)
        self._set_tuple("milestones", "shares of the steps, such as (0.5, 0.75)")
        for milestone in self.milestones:
            check_share("each of milestones", milestone, "(0, 1)")
        object.__setattr__(self, "milestones", tuple(map(float, self.milestones)))
        self._set_tuple("trackers", "names, such as ('tensorboard',)")
        if not all(isinstance(name, str) for name in self.trackers):
            raise ValueError(f"trackers are names, such as ('tensorboard',); got {self.trackers}")
        _one_of("optimizer", self.optimizer, ("adamw", "sgd"))
        _one_of("schedule", self.schedule, (*schedules.OWN, *schedules.LIBRARY))
        schedules.check(self.schedule, self.schedule_options, self.lr)
        object.__setattr__(self, "schedule_options", dict(self.schedule_options))
        for name in ("layer_decay", "ema"):
            if getattr(self, name) is not None:
                check_share(name, self._set_number(name), "(0, 1)")
        _one_of("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise ValueError(f"{unknown('metric', self.metric, METRICS)}, or give a function")
        if not (self.metric is None or isinstance(self.metric, str) or callable(self.metric)):
            raise ValueError(f"metric must be a name or a function, got {self.metric!r}")
        self._check_output()
        self._warn_without_effect()

    def _check_output(self) -> None:
        output: object = self.output
        if isinstance(output, os.PathLike) and not isinstance(output, Path):
            object.__setattr__(self, "output", Path(os.fsdecode(output)))
        elif output is not None and not (isinstance(output, Path) or _is_folder_name(output)):
            raise ValueError(f"output is the name of a folder, or None for none; got {output!r}")
        if self.output is not None and str(self.output).startswith("~"):
            object.__setattr__(self, "output", user_path(self.output))
        if self.trackers and self.output is None:
            raise ValueError("trackers write to the run's folder: set output=")
        for name in ("resume", "overwrite"):
            if getattr(self, name) and self.output is None:
                raise ValueError(f"{name}=True needs output=, the folder of the run")
        if self.resume and self.overwrite:
            raise ValueError("resume goes on with a run and overwrite clears it away: set one")
        if self.force and not self.resume:
            raise ValueError("force=True is for resume=True: it lets another run's checkpoint pass")

    def _warn_without_effect(self) -> None:
        """Warn of what was set and has no effect."""
        default = {f.name: f.default for f in fields(self)}
        for name, idle, why in (
            ("milestones", self.schedule != "step", f"schedule={self.schedule!r}"),
            ("momentum", self.optimizer != "sgd", f"optimizer={self.optimizer!r}"),
            ("checkpoint_every", self.output is None, "output=None"),
            ("keep_checkpoints", self.output is None, "output=None"),
        ):
            if idle and getattr(self, name) != default[name]:
                warnings.warn(
                    f"{name}={getattr(self, name)} has no effect with {why}",
                    stacklevel=user_level(),
                )

    def _set_whole_number(self, name: str, least: int, below: int | None = None) -> None:
        value = getattr(self, name)
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not least <= int(value) < (math.inf if below is None else below):
            upto = "" if below is None else f" below {below}"
            raise ValueError(f"{name} must be a whole number from {least}{upto}, got {value!r}")
        object.__setattr__(self, name, int(value))

    def _set_number(self, name: str) -> float:
        value = getattr(self, name)
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        number = int(value) if isinstance(value, Integral) else float(value)
        object.__setattr__(self, name, number)
        return number

    def _set_switch(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {value!r}")
        object.__setattr__(self, name, bool(value))

    def _set_tuple(self, name: str, what: str) -> None:
        value = getattr(self, name)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} are {what}; got {value!r}")
        object.__setattr__(self, name, tuple(value))


def _is_folder_name(output: object) -> bool:
    return isinstance(output, str) and bool(output.strip()) and "\0" not in output


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
