"""`multiexit.data.load`: a user's own table or folder as a task.

Letters: N rows.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multiexit.arguments import check_share
from multiexit.data.fingerprint import fingerprint
from multiexit.data.own import choosing, image_sets, places, targets
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.choosing import Columns
from multiexit.data.own.tables import Table
from multiexit.data.own.targets import Targets
from multiexit.data.splits import holdout
from multiexit.data.tasks import TaskData
from multiexit.data.text import TextDataset
from multiexit.losses.class_names import missing

METRICS = {
    "classification": "accuracy",
    "regression": "pearson_spearman",
    "multi-label": "micro_f1",
}


def say(note: str) -> None:
    """Print a note to stderr."""
    print(f"multiexit: {note}", file=sys.stderr)


@dataclass
class Rows:
    """A split's rows that can be used: the inputs of each, and its label as a number."""

    inputs: list[list[Any]]
    labels: list[Any]


def load(
    data: Any,
    tokenizer: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    text: str | None = None,
    text_pair: str | None = None,
    image: str | None = None,
    label: str | Sequence[str] | None = None,
    problem: str | None = None,
    max_length: int = 128,
    size: int = 224,
    augment: str | image_sets.Augment | None = "crop",
    share: float = 0.2,
    seed: int = 0,
    skip_bad: str | Path | None = None,
    notes: Callable[[str], None] = say,
) -> TaskData:
    """Read your own data.

    Columns that aren't named are guessed, by their names and values, and what was guessed is said.
    Classes are put in the order of their names, or of their numbers. Where there is no validation
    or test set, a share of the rows is drawn for one, class by class.

    Args:
        data: a CSV, TSV, JSONL, JSON or parquet file; a folder of files `train`, `validation` and
            `test`, or of folders of these names; a folder of images for each class; a folder that
            `datasets` saved; the name of a set on the hub; or rows in memory: a list of dicts, a
            data frame, a set of `datasets`, or a mapping of these by split.
        tokenizer: of the network that will read the texts.
        validation, test: a file or rows of that split, where `data` is the training set alone.
        text, text_pair, image: columns of the inputs.
        label: the column of labels, or several columns of yes and no.
        problem: `"classification"`, `"regression"` or `"multi-label"`.
        max_length: texts are cut to this many tokens.
        size: height and width of images as the network reads them.
        augment: of training images: `"crop"`, a random part, mirrored half of the time;
            `"randaugment"` or `"trivialaugment"`, a change or two more; `"none"`; or a function
            from an image of Pillow to another one, or to uint8 pixels [C, H, W], such as transforms
            of torchvision (v2); the network's size, scale and normalisation come after it.
        share: of the rows that are drawn for a validation set where there is none.
        seed: of that draw.
        skip_bad: a file; rows that can't be used are written there, and the others used. None
            refuses them.
        notes: is told what was guessed, drawn, cut and left out; the default prints it to stderr.

    Returns:
        The task, for `multiexit.MultiExitModel` and `multiexit.Trainer`: its `train`, its `sets`,
        `num_classes`, `problem`, `labels`, `metric` and `preprocessing`.

    Raises:
        ValueError: no such data or columns, rows that can't be used (the first one by its file and
            line, and how many), one class only.

    Example:
        >>> import tokenizers, transformers
        >>> from multiexit.data import load
        >>> words = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2}, "[UNK]")
        >>> tokenizer = transformers.PreTrainedTokenizerFast(
        ...     tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]")
        >>> rows = 5 * [{"review": "good", "stars": 5}, {"review": "bad", "stars": 1}]
        >>> task = load(rows, tokenizer, text="review", label="stars", notes=lambda note: None)
        >>> task.labels, len(task.train), len(task.sets["validation"])
        (('1', '5'), 8, 2)
    """
    found = find(
        data,
        validation=validation,
        test=test,
        text=text,
        text_pair=text_pair,
        image=image,
        label=label,
        notes=notes,
    )
    return task_of(
        found,
        tokenizer,
        problem=problem,
        max_length=max_length,
        size=size,
        augment=augment,
        share=share,
        seed=seed,
        skip_bad=skip_bad,
        notes=notes,
    )


class Found(NamedTuple):
    """A user's data, found but not read.

    Args:
        name: what to call it.
        tables: by split.
        columns: to read.
        described: what it takes to find it again, as plain data; None for rows in memory.
    """

    name: str
    tables: dict[str, Table]
    columns: Columns
    described: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """`"text"` or `"image"`."""
        return "text" if self.columns.image is None else "image"


def find(
    data: Any,
    *,
    validation: Any = None,
    test: Any = None,
    text: str | None = None,
    text_pair: str | None = None,
    image: str | None = None,
    label: str | Sequence[str] | None = None,
    notes: Callable[[str], None] = say,
) -> Found:
    """Find a user's data: its tables, and the columns to read.

    Args:
        data, validation, test, text, text_pair, image, label, notes: as for `load`.

    Raises:
        ValueError: no such data or columns.
    """
    tables = {
        split: table
        for split, table in places.splits(data, validation, test).items()
        if split in places.NAMES
    }
    for note in dict.fromkeys(note for table in tables.values() for note in table.notes):
        notes(note)
    columns, guesses = choosing.choose(tables["train"], text, text_pair, image, label)
    for note in guesses:
        notes(note)
    sources = {"data": data, "validation": validation, "test": test}
    described = None
    if all(isinstance(source, str | Path | None) for source in sources.values()):
        described = {k: _whole_path(v) for k, v in sources.items() if v is not None}
        described |= {"text": columns.text, "text_pair": columns.text_pair}
        described |= {"image": columns.image, "label": list(columns.labels)}
    name = Path(data).stem if isinstance(data, str | Path) else "data"
    return Found(name or "data", tables, columns, described)


def task_of(
    found: Found,
    tokenizer: Any = None,
    *,
    problem: str | None = None,
    max_length: int = 128,
    size: int = 224,
    augment: str | image_sets.Augment | None = "crop",
    share: float = 0.2,
    seed: int = 0,
    skip_bad: str | Path | None = None,
    how: dict[str, Any] | None = None,
    trained: Targets | None = None,
    draw: bool = True,
    drawn_from: str | None = None,
    notes: Callable[[str], None] = say,
) -> TaskData:
    """Read data that was found.

    Args:
        found: from `find`.
        tokenizer, problem, max_length, size, augment, share, seed, skip_bad, notes: as for `load`.
        how: the preparation of images, in place of that for a size.
        trained: the targets of a model that is there already, whose classes these must be.
        draw: whether a validation set is drawn where there is none; if not, all rows are one set
            to judge on.
        drawn_from: the fingerprint of the rows that a model's validation set was drawn from.

    Raises:
        ValueError: rows that can't be used, one class only; a set that is to be drawn again, from
            other rows.
    """
    check_share("share", share, "(0, 1)")
    bad = BadRows(None if skip_bad is None else Path(skip_bad))
    rows: dict[str, Rows] = {}
    goal = trained
    for split, table in found.tables.items():
        rows[split], goal = read_split(table, found.columns, goal, problem, bad, notes)
    assert goal is not None
    if not draw and list(rows) == ["train"]:
        rows = {found.name: rows["train"]}
    left_out = bad.settle()
    if left_out is not None:
        notes(left_out)
    _check_some(rows, goal, notes)
    sets: dict[str, Any] = {}
    described = None
    if found.described is not None:
        described = {**found.described, "share": share, "seed": seed}
    if draw and list(rows) == ["train"]:
        these = fingerprint([rows["train"].inputs, rows["train"].labels])
        if drawn_from not in (None, these):
            raise ValueError(
                f"{found.name} has other rows than when the model was trained, so that its "
                "validation set can't be drawn again: rows that the model learned from would judge "
                "it. Put the rows back as they were, or give new ones (--data)"
            )
        described = None if described is None else {**described, "drawn_from": these}
    preprocessing: dict[str, Any] = {"kind": found.kind, "data": described}
    if found.kind == "image":
        how, change = how or image_sets.preparation(size), image_sets.augment_of(augment)
        preprocessing |= how
        for split, part in rows.items():
            images = [row[0] for row in part.inputs]
            sets[split] = image_sets.ImageRows(
                images, tensor(part, goal), how, change if draw and split == "train" else None
            )
    else:
        if tokenizer is None:
            raise ValueError("texts need the tokenizer of the network that reads them: tokenizer=…")
        preprocessing |= {
            "max_length": max_length,
            "pairs": found.columns.text_pair is not None,
        }
        _say_repeats(rows, notes)
        for split, part in rows.items():
            sets[split] = _tokenised(part, tokenizer, max_length, goal)
            if cut := sum(length >= max_length for length in sets[split].lengths):
                notes(
                    f"{split}: {cut} of {len(part.labels)} rows fill all {max_length} tokens; "
                    "longer ones are cut there"
                )
    train = None
    if draw:
        train = sets.pop("train")
        if not sets:
            train, sets["validation"] = holdout(train, share, seed)
            drawn, left = len(sets["validation"]), len(train)
            notes(
                f"no validation set: {drawn} of {drawn + left} rows are drawn for one, class by "
                f"class, with seed {seed}"
            )
    return TaskData(
        found.name,
        train,
        sets,
        goal.num_classes,
        METRICS[goal.problem],
        goal.names,
        preprocessing,
        goal.problem,
    )


def read_split(
    table: Table,
    columns: Columns,
    goal: Targets | None,
    problem: str | None,
    bad: BadRows,
    notes: Callable[[str], None],
) -> tuple[Rows, Targets]:
    """A split's rows, and the targets: of the training set where there are none yet."""
    for name in (*columns.read, *columns.labels):
        if name not in table.columns:
            raise ValueError(f"{table.name} has no column {name!r}; it has {table.columns}")
    places: list[str] = []
    inputs: list[list[Any]] = []
    values: list[Any] = []
    for place, row in table.read(bad):
        value = _label(row, columns)
        row = _with_files(row, table, columns)
        reason = _wrong_input(row, columns) or ("no label" if value is None else None)
        if reason is None:
            places.append(place)
            inputs.append([row[name] for name in columns.read])
            values.append(value)
        else:
            name = columns.read[0] if value is not None else columns.labels[0]
            bad.add(place, reason, row.get(name))
    if not values or bad.aside is None:
        bad.settle()
    if not values:
        raise ValueError(f"{table.name}: no rows")
    if goal is None:
        if len(columns.labels) > 1:
            if problem not in (None, "multi-label"):
                raise ValueError(
                    f"{len(columns.labels)} columns of labels are each yes or no, which is "
                    f"problem='multi-label'; got {problem!r}: name one column, or leave it out"
                )
            goal = targets.of_columns(columns.labels)
        else:
            column = next(iter(columns.labels))
            goal, guess = targets.found(values, problem, table.classes.get(column))
            notes(guess)
    rows = Rows([], [])
    for place, row, value in zip(places, inputs, values, strict=True):
        try:
            rows.labels.append(goal.number(_class_name(value, table, columns)))
        except ValueError as error:
            bad.add(place, str(error), value)
        else:
            rows.inputs.append(row)
    return rows, goal


def _label(row: dict[str, Any], columns: Columns) -> Any:
    """A row's label, a dict where several columns are labels; None for a gap."""
    values = {name: _plain(row.get(name)) for name in columns.labels}
    if any(missing(v) or (isinstance(v, str) and not v.strip()) for v in values.values()):
        return None
    return values if len(values) > 1 else next(iter(values.values()))


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _class_name(value: Any, table: Table, columns: Columns) -> Any:
    """The name of a class that the source gives by number."""
    names = table.classes.get(columns.labels[0])
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value


def _with_files(row: dict[str, Any], table: Table, columns: Columns) -> dict[str, Any]:
    """A row whose image's file is found from anywhere: a table's are beside it."""
    name = columns.image
    if name is None or table.folder is None or not isinstance(row.get(name), str):
        return row
    return {**row, name: str(table.folder / row[name].strip())}


def _wrong_input(row: dict[str, Any], columns: Columns) -> str | None:
    for name in columns.read:
        value = row.get(name)
        if missing(value) or (isinstance(value, str) and not value.strip()):
            return f"an empty {name}"
        if columns.image is None and not isinstance(value, str | int | float):
            return f"a {name} that is no text"
        if (
            columns.image is not None
            and isinstance(value, str | Path)
            and not Path(value).is_file()
        ):
            return "no such file"
    return None


def _check_some(rows: dict[str, Rows], goal: Targets, notes: Callable[[str], None]) -> None:
    """Refuse an empty split, and name classes that a split lacks."""
    for split, part in rows.items():
        if not part.labels:
            raise ValueError(f"{split}: no row is left")
        if goal.problem != "classification" or goal.names is None:
            continue
        there = {*part.labels}
        lacking = [name for number, name in enumerate(goal.names) if number not in there]
        if lacking:
            notes(f"{split} has no row of {', '.join(lacking[:8])}" + ", …" * (len(lacking) > 8))


def _say_repeats(rows: dict[str, Rows], notes: Callable[[str], None]) -> None:
    """Say how many rows of a split are in the training set too."""
    if "train" not in rows:
        return
    seen = {tuple(row) for row in rows["train"].inputs}
    for split, part in rows.items():
        again = 0 if split == "train" else sum(tuple(row) in seen for row in part.inputs)
        if again:
            notes(f"{again} of {len(part.inputs)} rows of {split} are in the training set too")


def _tokenised(rows: Rows, tokenizer: Any, max_length: int, goal: Targets) -> TextDataset:
    columns = [[str(text) for text in column] for column in zip(*rows.inputs, strict=True)]
    pairs = columns[1] if len(columns) > 1 else None
    data = TextDataset.from_texts(tokenizer, columns[0], pairs, None, max_length)
    data.labels = tensor(rows, goal)
    return data


def tensor(rows: Rows, goal: Targets) -> Tensor:
    """Labels as numbers: whole ones of classes."""
    whole = goal.problem == "classification"
    return torch.tensor(rows.labels, dtype=torch.int64 if whole else torch.float32)


def _whole_path(source: str | Path) -> str:
    """A file's whole path; the name of a set on the hub as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(source)
