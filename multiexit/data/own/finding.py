"""A user's data, found but not read: its tables, and which columns are what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from multiexit.data.own import choosing, places
from multiexit.data.own.choosing import Columns, Name
from multiexit.data.own.notes import Notes, say
from multiexit.data.own.table import Table


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
    text: Name | None = None,
    text_pair: Name | None = None,
    image: Name | None = None,
    label: Name | Sequence[Name] | None = None,
    notes: Notes = say,
) -> Found:
    """Find a user's data: its tables, and the columns to read.

    Args:
        data, validation, test, text, text_pair, image, label, notes: as for `load`.

    Raises:
        ValueError: no such data or columns.
    """
    tables = places.splits(data, validation, test)
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


def _whole_path(source: str | Path) -> str:
    """A file's whole path; the name of a set on the hub as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(source)
