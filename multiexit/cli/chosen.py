"""What a run begins with where nothing was typed, and said."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiexit.backbones import Backbone
    from multiexit.cli.sources import Source
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


def preparation(
    source: "Source", backbone: str | None, pretrained: bool = False
) -> dict[str, Any] | None:
    """How images of a user's own are made ready: by what was typed, then as the network says.

    Args:
        source: of the rows.
        backbone, pretrained: as typed.

    Returns:
        None where it isn't asked: of texts, and of tasks by their names.

    Raises:
        ValueError: no such network, or one whose images are read as no description can say.
    """
    from multiexit.backbones import image_preparation
    from multiexit.data.own import image_sets
    from multiexit.data.own.notes import say
    from multiexit.runtime import processes

    if source.own is None or source.kind != "image" or backbone is None:
        return None
    typed, size = source.normalisation is not None, source.rows.image_size
    own = None
    if not typed or size is None:
        own = image_preparation(backbone, pretrained, whole=not typed)
    how = image_sets.preparation(size, own)
    if processes().is_main_process:
        who = f"as {backbone} says" if own and "mean" in own else "as ImageNet's"
        say(f"images are read {who}: {image_sets.in_words(how)} (--image-size, --normalisation)")
    return how


def cut(source: "Source", backbone: str, tokenizer: Any) -> "Source":
    """The source, whose texts are cut to as many tokens as the network takes.

    Args:
        source: of texts or images.
        backbone: the network's name.
        tokenizer: of texts, else None.

    Raises:
        ValueError: a longer `--max-length` that was typed.
    """
    from multiexit.backbones.transformers.trials import most_tokens
    from multiexit.data.own.loading import Reading
    from multiexit.data.own.notes import say
    from multiexit.runtime import processes

    if source.kind != "text":
        return source
    length = source.rows.max_length
    most = min(most_tokens(backbone) or tokenizer.model_max_length, tokenizer.model_max_length)
    if most >= (Reading.max_length if length is None else length):
        return source
    if length is not None:
        raise ValueError(
            f"max_length={length}: {backbone} takes rows of {most} tokens at most: give no more"
        )
    if processes().is_main_process:
        say(f"texts are cut to {most} tokens, all that {backbone} takes (--max-length)")
    return replace(source, rows=replace(source.rows, max_length=most))


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
