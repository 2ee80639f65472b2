"""Tables of rows: CSV, TSV, JSON lines, parquet, sets of `datasets`, and lists in memory."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multiexit.data.own.bad_rows import BadRows
from multiexit.files.paths import regular_file

Row = tuple[str, dict[str, Any]]
"""A row's place, for messages, and its values by column."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
QUOTES = "a field that begins with a quote ends with one, and quotes within it are doubled"


@dataclass(frozen=True)
class Table:
    """Rows that can be read again and again.

    Args:
        name: of the file or set, for messages.
        columns: their names.
        read: gives the rows; those that can't be read go to the bad rows.
        classes: the names of a column's classes, where the source numbers them itself.
        notes: what was guessed.
        folder: that files named in the rows are looked for in; None is where the program runs.
    """

    name: str
    columns: list[str]
    read: Callable[[BadRows], Iterator[Row]]
    classes: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()
    folder: Path | None = None


def from_file(path: Path) -> Table:
    """The table in a file, by its suffix.

    Raises:
        ValueError: another suffix, no rows, or columns without or with the same names.
    """
    regular_file(path)
    return replace(_by_suffix(path), folder=path.absolute().parent)


def _by_suffix(path: Path) -> Table:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _delimited(path, "\t" if suffix == ".tsv" else None)
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path)
    if suffix == ".json":
        return _json_list(path)
    if suffix == ".parquet":
        return _parquet(path)
    raise ValueError(f"{path}: a table is {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def joined(tables: Sequence[Table]) -> Table:
    """Several tables with the same columns, one after another.

    Raises:
        ValueError: other columns in one of them.
    """
    first = tables[0]
    for table in tables[1:]:
        if table.columns != first.columns:
            raise ValueError(
                f"{table.name} has columns {table.columns}, and {first.name} {first.columns}: "
                "files of one set need the same ones"
            )

    def read(bad: BadRows) -> Iterator[Row]:
        for table in tables:
            yield from table.read(bad)

    notes = tuple(note for table in tables for note in table.notes)
    return replace(first, read=read, notes=notes)


def from_memory(data: Any, name: str = "data") -> Table:
    """Rows in memory: a list of dicts, a dict of lists, a data frame, or a set of `datasets`.

    Raises:
        ValueError: something else, or no rows.
    """
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return from_datasets(data, name)
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # of pandas
        data = data.to_dict("records")
    if isinstance(data, Mapping):
        lengths = {key: len(values) for key, values in data.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name}: columns of unequal length: {lengths}")
        keys = list(data)
        data = [dict(zip(keys, row, strict=True)) for row in zip(*data.values(), strict=True)]
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise ValueError(f"{name} is a {type(data).__name__}; give rows, such as a list of dicts")
    rows = list(data)
    _check_some(name, rows)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{name}, row {number} is a {type(row).__name__}, and no dict")
    columns = [str(column) for column in rows[0]]

    def read(bad: BadRows) -> Iterator[Row]:
        for number, row in enumerate(rows):
            yield f"{name}, row {number}", {str(key): value for key, value in row.items()}

    return Table(name, columns, read, {})


def from_datasets(data: Any, name: str) -> Table:
    """A set of the library `datasets`."""
    _check_some(name, data)
    features = data.features or {}
    classes = {
        column: list(names)
        for column, feature in features.items()
        if (names := getattr(feature, "names", None)) is not None
    }

    def read(bad: BadRows) -> Iterator[Row]:
        for number, row in enumerate(data.with_format(None)):
            yield f"{name}, row {number}", row

    return Table(name, list(data.column_names), read, classes)


def _delimited(path: Path, delimiter: str | None) -> Table:
    csv.field_size_limit(sys.maxsize)
    notes: tuple[str, ...] = ()
    if delimiter is None:
        counts = {mark: len(_header(path, mark)) for mark in DELIMITERS}
        delimiter = max(counts, key=lambda mark: counts[mark])
        if delimiter != ",":
            notes = (f"{path} is read with {DELIMITERS[delimiter]} between its columns",)
    columns = [name.strip() for name in _header(path, delimiter)]
    _check_columns(path, columns)

    def read(bad: BadRows) -> Iterator[Row]:
        reader = csv.reader(_text_lines(path), delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                last = reader.line_num
                place = f"line {line}" if last <= line else f"lines {line} to {last}"
                bad.add(f"{path}, {place}", f"{error} ({QUOTES})", "")
                continue
            if fields is None:
                return
            if line == 1 or not fields:
                continue
            if len(fields) == len(columns):
                yield f"{path}, line {line}", dict(zip(columns, fields, strict=True))
            else:
                reason = f"{len(fields)} fields, expected {len(columns)}"
                bad.add(f"{path}, line {line}", reason, delimiter.join(fields)[:200])

    return Table(str(path), columns, read, {}, notes)


def _header(path: Path, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(_text_lines(path), delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, without a byte-order mark.

    Raises:
        ValueError: bytes that are no UTF-8, named by their line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}): save the file as UTF-8"
                ) from error
            yield from io.StringIO(text, newline="")  # lines that end by \r alone come apart too


def _json_lines(path: Path) -> Table:
    def read(bad: BadRows) -> Iterator[Row]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    bad.add(place, f"no JSON ({error})", line[:200].decode("utf-8", "replace"))
                    continue
                if isinstance(row, dict):
                    yield place, row
                else:
                    bad.add(place, "no JSON object", row)

    return Table(str(path), _columns_of(path, read), read, {})


def _json_list(path: Path) -> Table:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: no JSON ({error}); of one object a line name it .jsonl"
        ) from error
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    if not isinstance(rows, list):
        raise ValueError(
            f"{path}: a list of objects is wanted, one a row; got {type(rows).__name__}"
        )
    return from_memory(rows, str(path))


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error

    def read(bad: BadRows) -> Iterator[Row]:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield f"{path}, row {number}", row
                number += 1

    return Table(str(path), list(columns), read, {})


def _columns_of(path: Path, read: Callable[[BadRows], Iterator[Row]]) -> list[str]:
    bad = BadRows()
    for _, row in read(bad):
        return list(row)
    bad.settle()
    raise ValueError(f"{path}: no rows")


def _check_columns(path: Path, columns: list[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if not columns or "" in columns or twice:
        what = f"{twice} twice" if twice else f"a column without a name in {columns}"
        raise ValueError(f"{path}, line 1: the names of the columns are wanted there; got {what}")


def _check_some(name: str, rows: Any) -> None:
    if not len(rows):
        raise ValueError(f"{name}: no rows")
