"""Sources of GLUE's rows: classic TSV files, parquet files in the hub's layout, or the hub.

A source is a function from a split's hub name (`"train"`, `"validation"`, `"test"`, for MNLI with
`_matched` or `_mismatched`) to its `GlueRows`.
"""

import codecs
import contextlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from multiexit.data.glue_tasks import GlueTask
from multiexit.data.sources import not_found, read_shard, shards
from multiexit.files.paths import regular_file
from multiexit.files.unreadable import one_line
from multiexit.losses.labels import check_labels
from multiexit_runner.user_line import user_level

HUB = "nyu-mll/glue"

COLA_HEADER = ["source", "label", "original_label", "sentence"]
"""The columns of CoLA's train.tsv and dev.tsv, which have no header."""

HAS_MALFORMED_LINES = {"qqp"}
"""Tasks whose official TSV files have a few lines with too few or too many fields."""


class GlueRows(NamedTuple):
    """One split: texts, second texts if the task has them, and labels.

    A test set without labels has -1 for each row, and nan for each of STS-B's scores.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float]


Source = Callable[[str], GlueRows]


def hub_source(task: GlueTask) -> Source:
    """Rows from the hub, downloaded and cached by `datasets`.

    Raises:
        FileNotFoundError: the hub can't be reached and its cache does not have the task.
    """
    import datasets

    try:
        data = datasets.load_dataset(HUB, task.name)
    except OSError as error:
        raise FileNotFoundError(
            f"GLUE {task.folder} could not be fetched from the hub ({HUB}, {task.name}): "
            f"{one_line(error)}. Without network, give a folder that has it (data_dir), such as "
            f"the TSV files of {task.folder} from https://gluebenchmark.com/tasks"
        ) from error

    def read_split(split: str) -> GlueRows:
        if split not in data:
            raise not_found(f"split {split}", [Path(HUB) / task.name], _remedy(task))
        table = data[split]
        columns = [list(table[name]) for name in (*task.columns, "label")]
        return _checked_rows(task, columns[:-1], columns[-1], f"{HUB} {task.name} {split}", split)

    return read_split


def folder_source(task: GlueTask, data_dir: Path) -> Source:
    """Rows from TSV or parquet files in a folder or below it.

    Raises:
        FileNotFoundError: no training set in any of the places where one may lie.
    """
    names = (task.folder, task.name)
    places = [data_dir / above / name for above in ("", "glue") for name in names] + [data_dir]
    for folder in places:
        if (folder / "train.tsv").is_file():
            return lambda split: _read_tsv_split(task, folder, split)
        if shards(folder, "train"):
            return lambda split: _read_parquet_split(task, folder, split)
    what = f"GLUE {task.folder} (train.tsv or train-*.parquet)"
    raise not_found(what, places, _remedy(task))


def _remedy(task: GlueTask) -> str:
    return (
        f"Leave data_dir out to download it from the hub ({HUB}, {task.name}), "
        f"or get the TSV files of {task.folder} from https://gluebenchmark.com/tasks."
    )


def _read_parquet_split(task: GlueTask, folder: Path, split: str) -> GlueRows:
    files = shards(folder, split)
    if not files:
        raise not_found(f"GLUE {task.folder}", [folder / f"{split}-*.parquet"], _remedy(task))
    names = (*task.columns, "label")
    tables = [read_shard(file, names) for file in files]
    columns = [[value for table in tables for value in table[name].to_pylist()] for name in names]
    return _checked_rows(task, columns[:-1], columns[-1], str(folder / f"{split}-*.parquet"), split)


def _checked_rows(
    task: GlueTask, columns: list[list[str]], labels: list[float], where: str, split: str
) -> GlueRows:
    """Put a split's columns together and check the labels, which only a test set may lack."""
    if not labels:
        raise ValueError(f"{where}: no rows")
    for row, label in enumerate(labels):
        if not isinstance(label, (int, float)):
            raise ValueError(f"{where}: label {label!r} in row {row} is not a number")
    if not split.startswith("test"):
        check_labels(torch.tensor(labels), task.num_classes, where)
    elif task.labels is None:
        labels = [math.nan if score < 0 else score for score in labels]
    return GlueRows(columns[0], columns[1] if len(columns) == 2 else None, labels)


def _read_tsv_split(task: GlueTask, folder: Path, split: str) -> GlueRows:
    file = folder / f"{split.replace('validation', 'dev')}.tsv"
    if not file.is_file():
        raise not_found(f"GLUE {task.folder}", [file], _remedy(task))
    return read_tsv(task, file, labelled=not split.startswith("test"))


def read_tsv(task: GlueTask, file: Path, labelled: bool = True) -> GlueRows:
    """Read one classic GLUE TSV file: tabs between fields, quotes are plain characters.

    Lines with too few or too many fields are an error, but for QQP, whose official files have a
    few: there they are dropped, with a warning.

    Args:
        task: which task, so which columns.
        file: UTF-8, with or without a byte-order mark and a final newline.
        labelled: whether there must be labels. Where there are none, they are -1 or nan.

    Raises:
        ValueError: names the file, the line, what was found and what was expected.
    """
    lines = _lines(file)
    if task.name == "cola" and labelled:
        header, first = COLA_HEADER, 0
    else:
        header, first = (lines[0] if lines else "").split("\t"), 1
    if len(lines) <= first:
        raise ValueError(f"{file}: no rows; expected the {task.folder} data of GLUE")
    has_labels = labelled or task.tsv_label in header
    names = (*task.tsv_columns, task.tsv_label) if has_labels else task.tsv_columns
    for name in names:
        if name not in header:
            raise ValueError(
                f"{file}, line 1: no column {name!r} in {header}; is it {task.folder}?"
            )
    positions = [header.index(name) for name in names]
    rows = []
    for number, line in enumerate(lines[first:], first + 1):
        fields = line.split("\t")
        if len(fields) == len(header):
            cells: list = [fields[position] for position in positions]
            if has_labels:
                cells[-1] = _label(task, cells[-1], file, number)
            rows.append(cells)
        elif task.name not in HAS_MALFORMED_LINES:
            raise ValueError(
                f"{file}, line {number}: {len(fields)} fields between tabs, expected "
                f"{len(header)} ({', '.join(header)}): {line[:80]!r}"
            )
    dropped = len(lines) - first - len(rows)
    if not rows:
        raise ValueError(f"{file}: none of {dropped} lines has {len(header)} fields between tabs")
    if dropped:
        warnings.warn(f"{file}: dropped {dropped} malformed lines", stacklevel=user_level())
    columns = [list(column) for column in zip(*rows, strict=True)]
    unknown = -1 if task.labels else math.nan
    labels = columns[-1] if has_labels else [unknown] * len(rows)
    return GlueRows(columns[0], columns[1] if len(task.columns) == 2 else None, labels)


def _label(task: GlueTask, text: str, file: Path, line: int) -> int | float:
    """A class's number or a score from 0 to 5, from how the TSV writes it."""
    if task.labels is not None:
        if text in task.tsv_values:
            return task.tsv_values.index(text)
        allowed = " or ".join(task.tsv_values)
    else:
        with contextlib.suppress(ValueError):
            if 0 <= (score := float(text)) <= 5:
                return score
        allowed = "a score from 0 to 5"
    raise ValueError(f"{file}, line {line}: unknown label {text!r}, expected {allowed}")


def _lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file, without those that are empty at its end."""
    data = regular_file(file).read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line}: not UTF-8 ({error.reason})") from error
    # Only "\n" ends a line: str.splitlines would also split at characters inside sentences.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
