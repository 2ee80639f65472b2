"""CSV and TSV files as tables, row by row, with the line of each."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.table import Row, Table

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
QUOTES = "a field that begins with a quote ends with one, and quotes within it are doubled"


def table(path: Path, delimiter: str | None) -> Table:
    """The rows below a first line that names the columns.

    A blank line is no row; but of one column it is one without a value, if others follow.

    Args:
        path: of the file.
        delimiter: between columns; None takes the one of `DELIMITERS` that gives most columns.

    Raises:
        ValueError: columns without names, or with the same ones; bytes that are no UTF-8.
    """
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
        blank: list[int] = []
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
            if line == 1:
                continue
            if not fields:
                blank += [line] * (len(columns) == 1)
                continue
            yield from ((f"{path}, line {empty}", {columns[0]: ""}) for empty in blank)
            blank.clear()
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
            if "\r" in text:
                yield from io.StringIO(text, newline="")  # lines that end by \r alone come apart
            else:
                yield text


def _check_columns(path: Path, columns: list[str]) -> None:
    if not columns:
        raise ValueError(f"{path}, line 1: no names of columns: the file is empty or begins so")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if "" in columns or twice:
        what = f"{twice} twice" if twice else f"a column without a name in {columns}"
        raise ValueError(f"{path}, line 1: the names of the columns are wanted there; got {what}")
    if strange := [name for name in columns if "\0" in name]:
        raise ValueError(
            f"{path}, line 1: a NUL character in {strange[0]!r:.60}: is it a table, in UTF-8?"
        )
