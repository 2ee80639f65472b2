"""Which columns are the text, the image and the label: as named, or guessed and said."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from multiexit.data.own import inputs
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.image_folders import SUFFIXES
from multiexit.data.own.table import Table

LABELS = ("label", "labels", "target", "class", "category", "sentiment", "score", "rating", "y")
TEXTS = ("text", "sentence", "review", "content", "comment", "body", "question", "title", "input")
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
IMAGES = ("image", "img", "file", "file_name", "filename", "path", "image_path")
SAMPLE = 200

Name = str | int
"""A column as a user names it: frames may number theirs."""


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Args:
        text, text_pair: of texts; None where images are read.
        image: of images.
        labels: one, or several of yes and no.
    """

    text: str | None
    text_pair: str | None
    image: str | None
    labels: tuple[str, ...]

    @property
    def read(self) -> list[str]:
        """The columns that are inputs."""
        return [name for name in (self.text, self.text_pair, self.image) if name is not None]


def choose(
    table: Table,
    text: Name | None = None,
    text_pair: Name | None = None,
    image: Name | None = None,
    label: Name | Sequence[Name] | None = None,
) -> tuple[Columns, list[str]]:
    """The columns of a table, and what was guessed, as sentences.

    Args:
        table: the training set.
        text, text_pair, image, label: as named by the user; None guesses, by names and values.

    Raises:
        ValueError: a column that isn't there, or none that could be it.
    """
    if image is not None and (text is not None or text_pair is not None):
        raise ValueError(
            f"image={image!r} and text={text or text_pair!r}: a row is one or the other"
        )
    text, text_pair, image = (
        None if name is None else str(name) for name in (text, text_pair, image)
    )
    labels = [label] if isinstance(label, Name) else list(label or ())
    names = [str(name) for name in labels]
    roles = [name for name in (text, text_pair, image, *names) if name is not None]
    table.check_columns(roles)
    if twice := [name for name in roles if roles.count(name) > 1]:
        raise ValueError(f"column {twice[0]!r} is named twice: each is read as one thing")
    notes = []
    bad = BadRows()
    rows = [row for _, row in islice(table.read(bad), SAMPLE)]
    if not rows:
        bad.settle()
        raise ValueError(f"{table.name}: no rows")
    left = [name for name in table.columns if name not in (text, text_pair, image, *names)]
    if not names:
        guess = _by_name(LABELS, left) or _few_values(left, rows)
        if guess is None:
            raise ValueError(
                f"{table.name}: which of the columns {table.columns} is the label? Name it: label=…"
            )
        names, left = [guess], [name for name in left if name != guess]
        notes.append(f"the label is column {guess!r}")
    if text is None and image is None:
        image = next((name for name in left if _is_image(name, rows)), None)
        if image is not None:
            notes.append(f"images are column {image!r}")
    if text is None and image is None:
        pair = next(iter(_pairs(left)), None)
        if pair is not None and text_pair is None:
            text, text_pair = pair
            notes.append(f"rows are pairs of texts, columns {text!r} and {text_pair!r}")
        else:
            text = _by_name(TEXTS, left) or _longest(left, rows)
            if text is None:
                raise ValueError(_no_text(table, left, rows))
            notes.append(f"the text is column {text!r}")
            others = [n for n in left if n not in (text, text_pair) and _holds_texts(n, rows)]
            if others and text_pair is None:
                unread = " and ".join(map(repr, others))
                notes.append(f"texts of {unread} aren't read; one may be named as text_pair")
    return Columns(text, text_pair, image, tuple(names)), notes


def inputs_by_name(table: Table, pairs: bool) -> list[str]:
    """The columns that a model of texts reads, by their names; none where others may be meant.

    One called `text` is the text. Another name of a text will do if there is one alone, and no
    other column has longer values, whatever they are.

    Args:
        table: of rows to answer.
        pairs: whether the model reads pairs of texts.
    """
    if pairs:
        found = _pairs(table.columns)
        return found[0] if len(found) == 1 else []
    if TEXTS[0] in table.columns:
        return [TEXTS[0]]
    called = [name for name in table.columns if name.lower() in TEXTS]
    if len(called) != 1:
        return []
    rows = [row for _, row in islice(table.read(BadRows()), SAMPLE)]
    lengths = {name: sum(_length(row.get(name)) for row in rows) for name in table.columns}
    return called if lengths[called[0]] == max(lengths.values()) else []


def names_a_pair(columns: Sequence[str]) -> bool:
    """Whether two columns are called as pairs of texts are."""
    return bool(_pairs(columns))


def names_a_label(columns: list[str]) -> bool:
    """Whether a column is called as labels are."""
    return _by_name(LABELS, columns) is not None


def _pairs(columns: Sequence[str]) -> list[list[str]]:
    """The columns that are called as pairs of texts are."""
    by_lower = _by_lower(columns)
    return [[by_lower[name] for name in pair] for pair in PAIRS if {*pair} <= by_lower.keys()]


def _no_text(table: Table, left: list[str], rows: list[dict[str, Any]]) -> str:
    """What to say where no column can be the text, nor the image."""
    for name in left:
        if (kind := inputs.numbers(rows[0].get(name))) is not None:
            images = f"if it is the image, wanted are {inputs.IMAGES}"
            return f"{table.name}: {name!r} is a {kind}, which can't be read; {images}"
    return f"{table.name}: which of the columns {table.columns} is the text? Name it: text=…"


def _by_name(known: Sequence[str], columns: list[str]) -> str | None:
    by_lower = _by_lower(columns)
    return next((by_lower[name] for name in known if name in by_lower), None)


def _by_lower(columns: Sequence[str]) -> dict[str, str]:
    """Columns by their names in small letters; one that is spelled so comes first."""
    return {name.lower(): name for name in columns} | {name: name for name in columns}


def _few_values(columns: list[str], rows: list[dict[str, Any]]) -> str | None:
    """The only column whose values come again and again."""
    few = [
        name
        for name in columns
        if 1 < len({str(row.get(name)) for row in rows}) <= max(2, len(rows) // 5)
    ]
    return few[0] if len(few) == 1 else None


def _holds_texts(name: str, rows: list[dict[str, Any]]) -> bool:
    """Whether most of its values are different strings of three words or more."""
    texts = {t for row in rows if isinstance(t := row.get(name), str) and len(t.split()) > 2}
    return len(texts) > len(rows) / 2


def _length(value: Any) -> int:
    """Of a value as it is written."""
    return 0 if value is None else len(str(value))


def _longest(columns: list[str], rows: list[dict[str, Any]]) -> str | None:
    """The column of the longest strings."""

    def length(name: str) -> float:
        texts = [row.get(name) for row in rows]
        return sum(len(t) for t in texts if isinstance(t, str)) / max(1, len(rows))

    longest = max(columns, key=length, default=None)
    return longest if longest is not None and length(longest) > 0 else None


def _is_image(name: str, rows: list[dict[str, Any]]) -> bool:
    return inputs.are_images((row.get(name) for row in rows[:20]), SUFFIXES)
