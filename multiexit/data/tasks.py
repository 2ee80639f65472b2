"""Data sets by name, ready for a model: GLUE's tasks, CIFAR-10 and -100, and the digits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from multiexit.arguments import unknown
from multiexit.data import cifar, digits, glue
from multiexit.data.images import Images
from multiexit.data.sources import canonical
from multiexit.runtime import processes


@dataclass(frozen=True)
class TaskData:
    """A task's data and what a model must know of it.

    Args:
        name: the task.
        train: the training set.
        sets: what is reported on, by name; the first is the main one.
        num_classes: 1 for regression.
        metric: a name in `multiexit.metrics.METRICS`.
        labels: the classes' names, or None for regression.
        preprocessing: how inputs are made, saved with the model and used by `predict`.
        problem: what labels mean; None is classification, or with one output regression.
    """

    name: str
    train: Any
    sets: dict[str, Dataset[Any]]
    num_classes: int
    metric: str
    labels: tuple[str, ...] | None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def known_as(self) -> str:
        """The name by which settings go: the task's, or of a user's own data one of `OWN`."""
        return self.preprocessing["kind"] if "data" in self.preprocessing else self.name

    @property
    def main(self) -> str:
        """The task and its main set, as they are said: one name where they share it."""
        name = next(iter(self.sets))
        return name if name == self.name else f"{self.name} ({name})"


def _cifar(name: str, **options: Any) -> Images:
    with processes().main_process_first():  # one process downloads
        return cifar.load(name, **options)


class ImageSet(NamedTuple):
    """A data set of images.

    Args:
        load: by the options of `load` that it takes.
        options: those it takes, beside `IMAGE_OPTIONS`.
    """

    load: Callable[..., Images]
    options: tuple[str, ...] = ()


OWN = ("text", "image")
"""Names of a user's own data, in place of a task's: what holds for any texts, and any images."""

TEXT_OPTIONS = ("data_dir", "max_length")
IMAGE_OPTIONS = ("weights", "channels_last")
CIFAR_OPTIONS = ("data_dir", "download", "normalisation", "schedule")

IMAGES = {
    "cifar10": ImageSet(partial(_cifar, "cifar10"), CIFAR_OPTIONS),
    "cifar100": ImageSet(partial(_cifar, "cifar100"), CIFAR_OPTIONS),
    "digits": ImageSet(digits.load),
}


def modality(name: str) -> str:
    """`"text"` or `"image"`.

    Args:
        name: of a task, or one of `OWN`.

    Raises:
        ValueError: an unknown task; the message lists all.
    """
    if name in OWN:
        return name
    name = canonical(name)
    if name in IMAGES:
        return "image"
    if name in glue.TASKS:
        return "text"
    raise unknown("task", name, [*glue.TASKS, *IMAGES])


def check_options(name: str, **options: Any) -> None:
    """Refuse what has no effect for a task.

    Args:
        name: the task.
        options: as `load`, training and the command line have them; None is one that wasn't given.

    Raises:
        ValueError: an unknown task, or an option that is for others.
    """
    taken = _options_of(name)
    for option, value in options.items():
        if value is not None and option not in taken:
            images = [image for image in IMAGES if option in _options_of(image)]
            takers = ["images"] if len(images) == len(IMAGES) else images
            takers = ["text", *takers] if option in TEXT_OPTIONS else takers
            raise ValueError(
                f"{option}={value} is for {', '.join(takers)}, and has no effect for {name}: "
                "leave it out"
            )


def _options_of(name: str) -> tuple[str, ...]:
    if name in OWN:
        images = ("channels_last", "normalisation", "pretrained", "weights")
        return ("max_length",) if name == "text" else images
    if modality(name) == "text":
        return TEXT_OPTIONS
    return (*IMAGE_OPTIONS, *IMAGES[canonical(name)].options)


def load(
    name: str,
    data_dir: str | Path | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    normalisation: str | None = None,
    download: bool = False,
) -> TaskData:
    """Read a task's data.

    Args:
        name: a GLUE task (`"mrpc"`, …), `"cifar10"`, `"cifar100"` or `"digits"`.
        data_dir: where it lies; None is the hub for GLUE, `~/.cache/multiexit` for CIFAR.
        tokenizer: for text.
        max_length: tokens of text per row at most; None is 128.
        normalisation, download: for CIFAR, see `multiexit.data.cifar.load`.

    Raises:
        ValueError: an unknown task, or something that has no effect for it.
    """
    check_options(
        name,
        data_dir=data_dir,
        max_length=max_length,
        normalisation=normalisation,
        download=download or None,
    )
    name = canonical(name)
    if modality(name) == "text":
        return _load_text(name, data_dir, tokenizer, 128 if max_length is None else max_length)
    given = {"data_dir": data_dir, "download": download, "normalisation": normalisation}
    images = IMAGES[name]
    data = images.load(**{option: given[option] for option in given if option in images.options})
    preprocessing = {**data.preprocessing, "task": name, "normalisation": normalisation}
    return TaskData(
        name,
        data.train,
        {"test": data.test},
        len(data.labels),
        "accuracy",
        tuple(data.labels),
        preprocessing,
    )


def _load_text(name: str, data_dir: str | Path | None, tokenizer: Any, max_length: int) -> TaskData:
    data = glue.load(name, tokenizer, data_dir, max_length)
    sets: dict[str, Dataset[Any]] = {"dev": data.dev}
    if data.dev_mismatched is not None:
        sets = {"dev_matched": data.dev, "dev_mismatched": data.dev_mismatched}
    preprocessing = {
        "kind": "text",
        "task": name,
        "max_length": max_length,
        "pairs": len(data.task.columns) == 2,
    }
    return TaskData(
        name,
        data.train,
        sets,
        data.task.num_classes,
        data.task.metric,
        data.task.labels,
        preprocessing,
    )
