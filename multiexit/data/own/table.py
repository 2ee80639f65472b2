"""A table: rows that can be read again and again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multiexit.arguments import suggest
from multiexit.data.own.bad_rows import BadRows

Row = tuple[str, dict[str, Any]]
"""A row's place, for messages, and its values by column."""


@dataclass(frozen=True)
class Table:
    """Rows that can be read again and again.

    Args:
        name: of the file or set, for messages.
        columns: their names.
        read: gives the rows; those that can't be read go to the bad rows.
        classes: the names of a column's classes, where the source numbers them itself.
        notes: what was guessed.
        types: of the columns, of Arrow, where the source has them.
        folder: that files named in the rows are looked for in; None is where the program runs.
    """

    name: str
    columns: list[str]
    read: Callable[[BadRows], Iterator[Row]]
    classes: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()
    types: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def check_columns(self, names: Iterable[str]) -> None:
        """Refuse a column that isn't there, by a ValueError that says which is near."""
        for name in names:
            if name not in self.columns:
                near = suggest(name, self.columns)
                hint = f": did you mean {near!r}?" if near else "."
                raise ValueError(f"{self.name} has no column {name!r}{hint} It has {self.columns}")


def joined(tables: Sequence[Table]) -> Table:
    """Several tables with the same columns, one after another.

    Raises:
        ValueError: other columns in one of them, or classes numbered in another order.
    """
    first = tables[0]
    for table in tables[1:]:
        if table.columns != first.columns:
            raise ValueError(
                f"{table.name} has columns {table.columns}, and {first.name} {first.columns}: "
                "files of one set need the same ones"
            )
        if table.classes != first.classes:
            raise ValueError(
                f"{table.name} numbers its classes {dict(table.classes)}, and {first.name} "
                f"{dict(first.classes)}: files of one set need the same ones"
            )

    def read(bad: BadRows) -> Iterator[Row]:
        for table in tables:
            yield from table.read(bad)

    notes = tuple(note for table in tables for note in table.notes)
    return replace(first, read=read, notes=notes)


def of_rows(rows: Sequence[Any], name: str) -> Table:
    """Rows in memory, each a mapping.

    Raises:
        ValueError: none, something else, or two keys that are one name, as 1 and "1" are.
    """
    check_some(name, rows)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{name}, row {number} is a {type(row).__name__}, and no dict")
        if len({*map(str, row)}) < len(row):
            names = [str(key) for key in row]
            twice = next(key for key in names if names.count(key) > 1)
            raise ValueError(f"{name}, row {number} has two keys called {twice!r}")

    def read(bad: BadRows) -> Iterator[Row]:
        for number, row in enumerate(rows):
            yield f"{name}, row {number}", {str(key): value for key, value in row.items()}

    return Table(name, columns_of(rows), read, {})


def columns_of(rows: Iterable[Mapping[Any, Any]]) -> list[str]:
    """All keys of all rows, in the order in which they come first."""
    columns: dict[str, None] = {}
    for row in rows:
        if not columns.keys() >= row.keys():
            columns.update(dict.fromkeys(map(str, row)))
    return list(columns)


def check_some(name: str, rows: Any) -> None:
    """Refuse a table without rows, by a ValueError."""
    if not len(rows):
        raise ValueError(f"{name}: no rows")
