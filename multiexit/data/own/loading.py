"""`multiexit.data.load`: a user's own table or folder as a task.

Letters: N rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiexit.arguments import check_share
from multiexit.data.own import drawing, image_sets
from multiexit.data.own import rows as split_rows
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.choosing import Name
from multiexit.data.own.finding import Found, find
from multiexit.data.own.notes import Notes, say
from multiexit.data.own.rows import Rows
from multiexit.data.own.targets import Targets
from multiexit.data.tasks import TaskData
from multiexit.data.text import TextDataset

METRICS = {
    "classification": "accuracy",
    "regression": "pearson_spearman",
    "multi-label": "micro_f1",
}


@dataclass(frozen=True)
class Reading:
    """How a user's data is read: the arguments of `load` with these names.

    Args:
        check: is told how many classes there are, and the problem, before rows are read.
    """

    problem: str | None = None
    max_length: int = 128
    size: int | None = None
    preparation: Mapping[str, Any] | None = None
    augment: str | image_sets.Augment | None = "crop"
    share: float = 0.2
    seed: int = 0
    skip_bad: str | Path | None = None
    check: Callable[[int, str | None], None] = lambda num_classes, problem: None


@dataclass(frozen=True)
class Trained:
    """What a model that is there already asks of data.

    Args:
        goal: its targets, whose classes the data's must be.
        how: its preparation of images.
        draw: whether a validation set is drawn where there is none; if not, all rows are judged on.
        drawn_from: the fingerprint of the rows that its own validation set was drawn from.
    """

    goal: Targets
    how: dict[str, Any] | None = None
    draw: bool = True
    drawn_from: str | None = None


def load(
    data: Any,
    tokenizer: Any = None,
    *,
    validation: Any = None,
    test: Any = None,
    text: Name | None = None,
    text_pair: Name | None = None,
    image: Name | None = None,
    label: Name | Sequence[Name] | None = None,
    problem: str | None = None,
    max_length: int = 128,
    size: int | None = None,
    preparation: Mapping[str, Any] | None = None,
    augment: str | image_sets.Augment | None = "crop",
    share: float = 0.2,
    seed: int = 0,
    skip_bad: str | Path | None = None,
    notes: Notes = say,
) -> TaskData:
    """Read your own data.

    Columns that aren't named are guessed, by their names and values, and what was guessed is said.
    Classes are put in the order of their names, or of their numbers. Where there is no validation
    or test set, a share of the rows is drawn for one, class by class.

    Args:
        data: a CSV, TSV, JSONL, JSON or parquet file; a folder of files `train`, `validation` and
            `test`, or of folders of these names; a folder of images for each class; a folder that
            `datasets` saved; the name of a set on the hub; or rows in memory: a list of dicts, a
            data frame of pandas or polars, a set of `datasets`, or a mapping of these by split.
        tokenizer: of the network that will read the texts.
        validation, test: a file or rows of that split, where `data` is the training set alone.
        text, text_pair, image: columns of the inputs.
        label: the column of labels, or several columns of yes and no.
        problem: `"classification"`, `"regression"` or `"multi-label"`.
        max_length: texts are cut to this many tokens.
        size: height and width of images as the network reads them; None is those of the
            preparation, or 224.
        preparation: of images, as the network that will read them says
            (`multiexit.image_preparation`); None is as ImageNet's are read.
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
    reading = Reading(problem, max_length, size, preparation, augment, share, seed, skip_bad)
    return task_of(found, tokenizer, reading, notes=notes)


def task_of(
    found: Found,
    tokenizer: Any = None,
    reading: Reading | None = None,
    trained: Trained | None = None,
    notes: Notes = say,
) -> TaskData:
    """Read data that was found.

    Args:
        found: from `find`.
        tokenizer, notes: as for `load`.
        reading: how; None is `load`'s defaults.
        trained: a model that the data is for; None where it is to be trained.

    Raises:
        ValueError: rows that can't be used, one class only; a set that is to be drawn again, from
            other rows.
    """
    reading = reading or Reading()
    check_share("share", reading.share, "(0, 1)")
    how = change = None
    if found.kind == "image":
        how = (trained and trained.how) or image_sets.preparation(reading.size, reading.preparation)
        change = image_sets.augment_of(reading.augment)
    elif tokenizer is None:
        raise ValueError("texts need the tokenizer of the network that reads them: tokenizer=…")
    rows, goal = _read(found, reading, how, trained, notes)
    draws = trained is None or trained.draw
    described = None
    if found.described is not None:
        described = {**found.described, "share": reading.share, "seed": reading.seed}
        described |= {"skip_bad": True} if reading.skip_bad is not None else {}
        if draws and list(rows) == ["train"]:
            described["drawn_from"] = rows["train"].fingerprint()
    preprocessing: dict[str, Any] = {"kind": found.kind, "data": described, **(how or {})}
    if how is None:
        preprocessing |= {
            "max_length": reading.max_length,
            "pairs": found.columns.text_pair is not None,
        }
    sets: dict[str, Any] = {}
    for split, part in rows.items():
        if part.texts is None:
            training = draws and split == "train"
            sets[split] = image_sets.ImageRows(
                part.images, part.labels, how or {}, change if training else None
            )
        else:
            sets[split] = _tokenised(split, part, tokenizer, reading.max_length, notes)
    train = None
    if draws:
        train = sets.pop("train")
        if not sets:
            rest, held = drawing.draw(rows["train"], goal, reading.share, reading.seed, notes)
            train, sets["validation"] = train.subset(rest), train.subset(held).for_evaluation()
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


def _read(
    found: Found,
    reading: Reading,
    how: dict[str, Any] | None,
    trained: Trained | None,
    notes: Notes,
) -> tuple[dict[str, Rows], Targets]:
    """The rows of each split, and the targets."""
    for table in found.tables.values():
        table.check_columns((*found.columns.read, *found.columns.labels))
    bad = BadRows(None if reading.skip_bad is None else Path(reading.skip_bad))
    if trained is None:
        train = found.tables["train"]
        goal = split_rows.find_targets(train, found.columns, reading.problem, bad, notes)
        reading.check(goal.num_classes, goal.problem)
    else:
        goal = trained.goal
    rows = {}
    for split, table in found.tables.items():
        rows[split] = split_rows.read(table, found.columns, goal, bad, how)
        if bad.aside is None or not len(rows[split]):
            bad.settle()
        if not len(rows[split]):
            raise ValueError(f"{split}: no row is left")
    if trained is not None and not trained.draw and list(rows) == ["train"]:
        rows = {found.name: rows["train"]}
    left_out = bad.settle()
    if left_out is not None:
        notes(left_out)
    expected = trained.drawn_from if trained is not None and trained.draw else None
    if expected is not None and expected != rows["train"].fingerprint():
        raise ValueError(
            f"{found.name} has other rows than when the model was trained, or was read by another "
            "version of multiexit then, so that its validation set can't be drawn again: rows that "
            "the model learned from would judge it. Put the rows back as they were, or give new "
            "ones (--data)"
        )
    drawing.say_lacks(rows, goal, notes)
    drawing.say_repeats(rows, notes)
    return rows, goal


def _tokenised(
    split: str, part: Rows, tokenizer: Any, max_length: int, notes: Notes
) -> TextDataset:
    assert part.texts is not None
    data = TextDataset.from_stream(tokenizer, part.texts, part.labels, max_length)
    if cut := sum(length >= max_length for length in data.lengths):
        notes(
            f"{split}: {cut} of {len(part)} rows fill all {max_length} tokens; longer ones are "
            "cut there"
        )
    return data
