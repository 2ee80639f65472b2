"""The data that a command reads: a task by its name, or a user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiexit.data.own.loading import Found
    from multiexit.data.tasks import TaskData

COLUMNS = ("text", "text_pair", "image", "label")
"""Options that name the columns of a user's own data."""


@dataclass(frozen=True)
class Source:
    """Data that was found, and is not read yet.

    Args:
        name: of the task; of a user's own data `"text"` or `"image"`.
        kind: `"text"` or `"image"`.
        data_dir, download, normalisation: of a task by its name.
        own: a user's data.
        options: of how that is read.
    """

    name: str
    kind: str
    data_dir: Path | None
    download: bool
    normalisation: str | None
    own: "Found | None"
    options: dict[str, Any]

    def load(self, tokenizer: Any, max_length: int | None, skipped: Path | None) -> "TaskData":
        """Read the data.

        Args:
            tokenizer: of texts.
            max_length: tokens of text at most.
            skipped: a file for rows that can't be used, where they are to be left out.

        Raises:
            ValueError: rows that can't be used.
        """
        from multiexit.data import tasks
        from multiexit.data.own.loading import task_of

        if self.own is None:
            return tasks.load(
                self.name, self.data_dir, tokenizer, max_length, self.normalisation, self.download
            )
        length = {} if max_length is None else {"max_length": max_length}
        return task_of(self.own, tokenizer, skip_bad=skipped, **length, **self.options)


def find(
    task: str | None,
    data: str | None,
    options: Mapping[str, Any],
    data_dir: Path | None = None,
    seed: int = 0,
    **others: Any,
) -> Source:
    """Find what a command is to read.

    Args:
        task: its name, or None.
        data: a file, folder or hub name of the user's own data, or None.
        options: those that are for a user's own data alone, as far as the command has them; None
            and False were not given.
        data_dir: of a task.
        seed: of the split, where one is drawn.
        others: options that some tasks take; see `multiexit.data.tasks.check_options`.

    Raises:
        ValueError: neither or both, an option that is for the other, no such data.
    """
    from multiexit.data import tasks
    from multiexit.data.own.loading import find as find_own

    given = {name: value for name, value in options.items() if value}
    if (task is None) == (data is None):
        raise ValueError(
            "give --task, the name of a data set, or --data, a file or folder of your own"
            + ("" if task is None else ", not both")
        )
    if task is not None:
        if given:
            name, value = next(iter(given.items()))
            raise ValueError(f"{name} {value} is for data of your own, by --data: leave it out")
        tasks.check_options(task, data_dir=data_dir, **others)
        download, normalisation = bool(others.get("download")), others.get("normalisation")
        return Source(task, tasks.modality(task), data_dir, download, normalisation, None, {})
    columns: dict[str, Any] = {name: given.get(name) for name in COLUMNS}
    if columns["label"] is not None and len(columns["label"]) == 1:
        columns["label"] = columns["label"][0]
    own = find_own(
        data, validation=given.get("validation_data"), test=given.get("test_data"), **columns
    )
    image_options = {"image_size": "size", "augment": "augment"}
    for name in image_options:
        if name in given and own.kind != "image":
            raise ValueError(f"{name} {given[name]} is for images, and these are texts: leave it")
    tasks.check_options(own.kind, data_dir=data_dir, **others)
    reading = {new: given[name] for name, new in image_options.items() if name in given}
    if "problem" in given:
        reading["problem"] = given["problem"]
    return Source(own.kind, own.kind, None, False, None, own, {**reading, "seed": seed})
