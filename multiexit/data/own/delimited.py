"""CSV and TSV files as tables, row by row, with the line of each."""

import csv
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.table import Row, Table
from multiexit.data.own.text_lines import text_lines

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SAMPLE = 200
QUOTES = "a field that begins with a quote ends with one, and quotes within it are doubled"


def table(path: Path, delimiter: str | None) -> Table:
    """The rows below a first line that names the columns.

    Blank lines above it are skipped. Below, a blank line is no row; but of one column it is one
    without a value, if others follow. A first column that has no name and counts the rows, as
    pandas writes an index, is left out.

    Args:
        path: of the file.
        delimiter: between columns; None takes the one that Excel's `sep=;` above the names says,
            or the one of `DELIMITERS` that gives most columns.

    Raises:
        ValueError: columns without names, or with the same ones; bytes that are no UTF-8.
    """
    csv.field_size_limit(sys.maxsize)
    skip, said = _above(path)
    if delimiter is None:
        counts = {mark: len(_header(path, mark, skip)) for mark in DELIMITERS}
        delimiter = said or max(counts, key=lambda mark: counts[mark])
    header = _header(path, delimiter, skip)
    counted = header[:1] == [""] and _counts(path, delimiter, skip)
    columns = header[counted:]
    _check_columns(f"{path}, line {1 + skip}", columns)
    notes = []
    if delimiter not in ",\t" or (delimiter == "\t" and path.suffix.lower() != ".tsv"):
        between = DELIMITERS.get(delimiter, repr(delimiter))
        notes.append(f"{path} is read with {between} between its columns")
    if counted:
        notes.append(f"{path}: the first column has no name and counts the rows: it is left out")
    if (odd := _like_a_row(path, delimiter, skip)) is not None:
        notes.append(
            f"{path}: its first line names the columns, and {odd} there: if it is a row, put a "
            "line of names above it"
        )

    def read(bad: BadRows) -> Iterator[Row]:
        blank: list[str] = []
        for place, fields in islice(_records(path, delimiter, skip), 1, None):
            if isinstance(fields, csv.Error):
                bad.add(place, f"{fields} ({QUOTES})", "")
                continue
            if not fields:
                blank += [place] * (len(header) == 1)
                continue
            yield from ((empty, {columns[0]: ""}) for empty in blank)
            blank.clear()
            if len(fields) == len(header):
                yield place, dict(zip(columns, fields[counted:], strict=True))
            else:
                reason = f"{len(fields)} fields, expected {len(header)}"
                bad.add(place, reason, delimiter.join(fields)[:200])

    return Table(str(path), columns, read, {}, tuple(notes))


def header(path: Path, delimiter: str) -> list[str]:
    """The names in the line that `table` takes for that of the columns; none where it can't."""
    return _header(path, delimiter, _above(path)[0])


def _records(path: Path, delimiter: str, skip: int) -> Iterator[tuple[str, list[str] | csv.Error]]:
    """The fields of each row with its place; the error where its quotes are wrong.

    Args:
        path, delimiter: as for `table`.
        skip: lines above the names of columns.
    """
    reader = csv.reader(islice(text_lines(path), skip, None), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + skip + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            last = reader.line_num + skip
            yield f"{path}, line{f' {line}' if last <= line else f's {line} to {last}'}", error
            continue
        if fields is None:
            return
        yield f"{path}, line {line}", fields


def _header(path: Path, delimiter: str, skip: int) -> list[str]:
    _, fields = next(_records(path, delimiter, skip), ("", []))
    return [] if isinstance(fields, csv.Error) else [name.strip() for name in fields]


def _above(path: Path) -> tuple[int, str | None]:
    """How many lines stand above the names of columns, and which delimiter they say.

    They are blank ones, and one such as `sep=;`, which Excel reads.
    """
    skip, said = 0, None
    for line in text_lines(path):
        text = line.rstrip("\r\n").strip('"').lower()
        if said is None and text.startswith("sep=") and len(text) == 5:
            said = text[4]
        elif line.strip():
            break
        skip += 1
    return skip, said


def _counts(path: Path, delimiter: str, skip: int) -> bool:
    """Whether the first column is 0, 1, 2, … as far as it can be read."""
    rows = (fields for _, fields in islice(_records(path, delimiter, skip), 1, None) if fields)
    for number, fields in enumerate(rows):
        if isinstance(fields, csv.Error):
            return True
        if fields[0] != str(number):
            return False
    return True


def _like_a_row(path: Path, delimiter: str, skip: int) -> str | None:
    """What makes the line of names look like a row: a number, or a word that rows have too."""
    records = (fields for _, fields in islice(_records(path, delimiter, skip), SAMPLE))
    rows = [fields for fields in records if not isinstance(fields, csv.Error)]
    for column, name in enumerate(rows[0] if rows else []):
        if name.strip() and any(name in row[column : column + 1] for row in rows[1:]):
            return f"{name!r} is also among the values"
        if re.fullmatch(r"[-+]?\d*\.\d+", name.strip()):
            return f"{name!r} is a number"
    return None


def _check_columns(place: str, columns: list[str]) -> None:
    if not columns:
        raise ValueError(f"{place}: no names of columns: the file is empty or begins so")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if "" in columns or twice:
        what = f"{twice} twice" if twice else f"a column without a name in {columns}"
        index = " (pandas' index? write the table with index=False)" * (columns[0] == "")
        raise ValueError(f"{place}: the names of the columns are wanted there; got {what}{index}")
    if strange := [name for name in columns if "\0" in name]:
        raise ValueError(
            f"{place}: a NUL character in {strange[0]!r:.60}: is it a table, in UTF-8?"
        )
