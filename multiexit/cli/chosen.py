"""What a run begins with where nothing was typed, and said."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiexit.backbones import Backbone
    from multiexit.training.config import TrainConfig


def suited(
    config: "TrainConfig",
    pool: str | None,
    lr: object,
    task: str,
    backbone: "Backbone",
    quiet: bool = False,
) -> tuple["TrainConfig", str | None]:
    """The settings and the pooling that a network is trained with.

    Args:
        config: of the task, with what was typed.
        pool, lr: as typed, None where nothing was; what was typed stays.
        task: its name.
        backbone: the network.
        quiet: say nothing.
    """
    from multiexit.data.own.notes import say
    from multiexit.runtime import processes
    from multiexit.training import experiment

    rate, pooling = experiment.suited(task, backbone)
    said = []
    if lr is None and rate is not None:
        config = replace(config, lr=rate)
        said.append(f"the learning rate {rate:.3g} (--lr)")
    if pool is None and pooling is not None:
        pool = pooling
        said.append(f"at exits the {pooling} over the tokens (--pool)")
    if said and not quiet and processes().is_main_process:
        say(f"chosen for texts of your own: {' and '.join(said)}")
    return config, pool


def all_steps(config: "TrainConfig", early_stopping: object = None) -> "TrainConfig":
    """The settings, of which early stopping goes where `max_steps` says how long runs are.

    Methods that halve the training set are scored twice as often, and would end sooner.

    Args:
        config: with what was typed.
        early_stopping: as typed, None where nothing was; what was typed stays.
    """
    if config.max_steps is None or early_stopping is not None:
        return config
    return replace(config, early_stopping=None)


def say_untrained(backbone: str | None, pretrained: bool) -> None:
    """Say that a network of timm or torchvision starts from random weights."""
    from multiexit.data.own.notes import say
    from multiexit.runtime import processes

    named = backbone is not None and backbone.startswith(("timm:", "torchvision:"))
    if named and not pretrained and processes().is_main_process:
        say(f"{backbone} starts from random weights: --pretrained loads its trained ones")


def say_held(held: int, rows: int) -> None:
    """Say how many of the training rows select the epoch."""
    from multiexit.data.own.notes import say
    from multiexit.runtime import processes

    if processes().is_main_process:
        say(f"{held} of {rows} training rows select the epoch, the others train (--validation)")
