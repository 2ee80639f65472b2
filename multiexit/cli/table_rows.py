"""The rows of a table with what a model reads of each, for `multiexit predict`."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from multiexit.cli import typed

if TYPE_CHECKING:
    from multiexit.data.own.bad_rows import BadRows
    from multiexit.data.own.table import Table

_BROKEN = "\0"
"""The key of why a line is no row: no column is called so."""


class Read(NamedTuple):
    """A row, and what the model reads of it.

    Args:
        place: its file and line.
        row: its values by column.
        value: a text, a pair of texts, or an image that isn't opened yet.
        wrong: why it can't be used; empty where it can.
    """

    place: str
    row: dict[str, Any]
    value: Any
    wrong: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        """The row's values; bytes that are stored are read."""
        from multiexit.data.own import stored

        return {name: stored.read(value) for name, value in self.row.items()}


class Closed(NamedTuple):
    """Columns that rows mustn't have.

    Args:
        added: those of the answers.
        known: if not None, rows mustn't have any others, which the output could not hold.
    """

    added: frozenset[str]
    known: frozenset[str] | None

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuse a row by a ValueError."""
        others = {*row} & self.added if self.known is None else {*row} - self.known
        if others:
            raise ValueError(f"a column {min(others)!r} that the first row lacks")


@dataclass(frozen=True)
class TableRows:
    """A table's rows, as a model reads them.

    Args:
        table: read anew each time.
        columns: that the model reads.
        preprocessing: the model's; of images it says how they are opened.
        closed: columns that rows mustn't have.
    """

    table: "Table"
    columns: list[str]
    preprocessing: Mapping[str, Any]
    closed: Closed

    @property
    def of_images(self) -> bool:
        """Whether the model reads images."""
        return self.preprocessing.get("kind") == "image"

    def read(self, bad: "BadRows") -> Iterator[Read]:
        """All rows in order; no image is opened.

        Args:
            bad: gets what is no row at all.
        """
        for place, row in self.table.read(bad):
            try:
                value = self._value(row)
                self.closed.check(row)
            except ValueError as error:
                yield Read(place, row, None, str(error))
            else:
                yield Read(place, row, value)

    def opened(self, read: Read) -> Read:
        """The row with its image opened, or with the reason why it can't be."""
        from multiexit.data.own import stored
        from multiexit_runner import pictures

        if read.wrong or not self.of_images:
            return read
        image = stored.read(read.value)
        image = image["bytes"] if isinstance(image, dict) else image
        try:
            return read._replace(value=pictures.upright(image, self.preprocessing))
        except ValueError as error:
            return read._replace(value=None, wrong=str(error))

    def identity(self, read: Read) -> Any:
        """What tells whether a row is read as before: of an image file its name, size and time."""
        from multiexit.data.own import stored

        if self.of_images and isinstance(read.value, str):
            stat = os.stat(read.value)
            return [read.value, stat.st_size, stat.st_mtime_ns]
        return [read.wrong, stored.read(read.value)]

    def refuse(self, read: Read, bad: "BadRows") -> None:
        """Add a row to the bad ones."""
        bad.add(read.place, read.wrong, read.row.get(self.columns[0]))

    def check(self) -> int:
        """Look at all rows, before any is answered, and count them; no image is opened.

        Raises:
            ValueError: rows that can't be used.
        """
        from multiexit.data.own.bad_rows import BadRows

        bad, rows = BadRows(), 0
        for rows, read in enumerate(self.read(bad), 1):  # noqa: B007
            if read.wrong:
                self.refuse(read, bad)
        bad.settle()
        return rows

    def _value(self, row: dict[str, Any]) -> Any:
        from multiexit.data.own import inputs

        if _BROKEN in row:
            raise ValueError(row[_BROKEN])
        if self.of_images:
            (name,) = self.columns
            return inputs.image(row.get(name), name, self.table.folder)
        texts = [inputs.text(row.get(name), name) for name in self.columns]
        return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def stdin_table(columns: list[str]) -> "Table":
    """JSON lines on stdin, read once, as they come; the first one tells the columns."""
    from multiexit.data.own.table import Table

    numbered = ((n, line) for n, line in enumerate(typed.lines(None), 1) if line.strip())
    first = list(islice(numbered, 1))

    def read(bad: "BadRows") -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in chain(first, numbered):
            yield f"stdin, line {number}", _json_row(line, columns[0])

    rows = [_json_row(line, columns[0]) for _, line in first]
    names = [name for row in rows if _BROKEN not in row for name in row]
    return Table("stdin", names or columns, read, {})


def file_table(path: Path) -> "Table":
    """The table in a file; what was guessed of it is said."""
    from multiexit.data.own import tables
    from multiexit.data.own.notes import say

    table = tables.from_file(path)
    for note in table.notes:
        say(note)
    return table


def _json_row(line: str, column: str) -> dict[str, Any]:
    """The row of a line; or why it is none, with the line under the name of a column."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {_BROKEN: f"no JSON ({error})", column: line}
    return row if isinstance(row, dict) else {_BROKEN: "no JSON object", column: line}
