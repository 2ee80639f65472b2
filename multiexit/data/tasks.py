"""Data sets by name, ready for a model: GLUE's tasks, CIFAR-10 and -100, and the digits."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from multiexit.data import cifar, digits, glue
from multiexit.data.sources import canonical
from multiexit.names import unknown
from multiexit.runtime import processes

IMAGES = ("cifar10", "cifar100", "digits")


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
    """

    name: str
    train: Any
    sets: dict[str, Dataset[Any]]
    num_classes: int
    metric: str
    labels: tuple[str, ...] | None
    preprocessing: dict[str, Any] = field(default_factory=dict)


def modality(name: str) -> str:
    """`"text"` or `"image"`.

    Raises:
        ValueError: an unknown task; the message lists all.
    """
    name = canonical(name)
    if name in IMAGES:
        return "image"
    if name in glue.TASKS:
        return "text"
    raise unknown("task", name, [*glue.TASKS, *IMAGES])


CIFAR = ("cifar10", "cifar100")
OPTION_TASKS = {
    "data_dir": ("text, cifar10 and cifar100", (*glue.TASKS, *CIFAR)),
    "download": ("cifar10 and cifar100", CIFAR),
    "normalisation": ("cifar10 and cifar100", CIFAR),
    "schedule": ("cifar10 and cifar100", CIFAR),
    "max_length": ("text", tuple(glue.TASKS)),
    "weights": ("images", IMAGES),
    "channels_last": ("images", IMAGES),
}
"""For which tasks an option is."""


def check_options(name: str, **options: Any) -> None:
    """Refuse what has no effect for a task.

    Args:
        name: the task.
        options: those of `OPTION_TASKS`; None is one that wasn't given.

    Raises:
        ValueError: an unknown task, or an option that is for others.
    """
    modality(name)
    for option, value in options.items():
        what, tasks = OPTION_TASKS[option]
        if value is not None and canonical(name) not in tasks:
            raise ValueError(
                f"{option} {value} is for {what}, and has no effect for {name}: leave it out"
            )


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
    if name == "digits":
        data = digits.load()
    else:
        with processes().main_process_first():  # one process downloads
            data = cifar.load(name, data_dir, download, normalisation=normalisation)
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
