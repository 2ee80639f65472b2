"""Rows written to a file: CSV, TSV, JSON lines or parquet, whole or not at all."""

import csv
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

Row = dict[str, Any]
Types = Mapping[str, Any]
Writer = Callable[[Path, list[str], Iterable[Row], Types], None]

GROUP = 10_000
"""Rows of a parquet file's row group."""


def check(path: Path, source: Path | None) -> None:
    """Refuse a file that can't be written.

    Args:
        path: of the file.
        source: of the rows, which isn't to be lost; None where it is no file.

    Raises:
        ValueError: another suffix, no such folder or none to write in, something there that is no
            file, or the source.
    """
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"output is {path}; it ends in {', '.join(WRITERS)}, which says its form")
    if not path.parent.is_dir():
        raise ValueError(f"output is {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"output is {path}: {path.parent} is not to be written in")
    if path.exists() and not path.is_file():
        raise ValueError(f"output is {path}: that is no file")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"output is {path}, the table that is read: name another file")


def write(
    path: Path,
    columns: list[str],
    rows: Iterable[Row],
    types: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write rows, by the file's suffix: aside, then renamed.

    Args:
        path: of the file.
        columns: in their order.
        rows: taken as they come; for parquet `GROUP` are held at once.
        types: of columns, of Arrow, which parquet has; the others' are those of their values.

    Raises:
        ValueError: values that a file of this form can't hold.
    """
    from multiexit.files import writing

    writer = WRITERS[path.suffix.lower()]
    writing.write(path, lambda aside: writer(aside, columns, rows, types))


def as_json(row: Row) -> str:
    """One line; what the terminal's encoding lacks, or is half a letter, is escaped."""
    import sys

    line = json.dumps(row, ensure_ascii=False, default=_plain)
    if "NaN" in line or "Infinity" in line:
        line = json.dumps(_finite(row), ensure_ascii=False, default=_plain)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(_finite(row), default=_plain)
    return line


def _finite(value: Any) -> Any:
    """Numbers that JSON lacks as null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        raise ValueError("a column holds bytes: write a .parquet file, which can keep them")
    return str(value)


def _delimited(delimiter: str) -> Writer:
    def write(path: Path, columns: list[str], rows: Iterable[Row], types: Types) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                writer.writerow([_cell(row.get(name)) for name in columns])

    return write


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict | bytes):
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain)
    return value


def _json_lines(path: Path, columns: list[str], rows: Iterable[Row], types: Types) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            line = json.dumps(_finite(row), ensure_ascii=False, default=_plain)
            try:
                line.encode()
            except UnicodeEncodeError:
                line = json.dumps(_finite(row), default=_plain)
            file.write(line + "\n")


def _parquet(path: Path, columns: list[str], rows: Iterable[Row], types: Types) -> None:
    """Row groups, first each in a file of its own: what a column holds is known behind the last."""
    import pyarrow
    import pyarrow.parquet

    groups = _groups(rows)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        schema, parts = _arrow_table(columns, [], types).schema, []
        for part in groups:
            table = _arrow_table(columns, part, types)
            try:
                schema = pyarrow.unify_schemas([schema, table.schema], promote_options="permissive")
            except pyarrow.ArrowException as error:
                raise ValueError(f"{error}, which can't be parquet: write a .jsonl file") from error
            parts.append(Path(folder) / str(len(parts)))
            pyarrow.parquet.write_table(table, parts[-1])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for part in parts:
                try:
                    writer.write_table(pyarrow.parquet.read_table(part).cast(schema))
                except pyarrow.ArrowException as error:
                    raise ValueError(
                        f"{error}, which can't be parquet: write a .jsonl file"
                    ) from error


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    source = iter(rows)
    while group := list(islice(source, GROUP)):
        yield group


def _arrow_table(columns: list[str], rows: Sequence[Row], types: Types) -> Any:
    """Rows as a table of pyarrow, each column of its own type or of that which holds its values."""
    import pyarrow

    arrays = []
    for name in columns:
        try:
            arrays.append(pyarrow.array([row.get(name) for row in rows], types.get(name)))
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise ValueError(
                f"column {name!r} can't be parquet ({error}): write a .jsonl file"
            ) from error
    return pyarrow.table(arrays, names=columns)


WRITERS: dict[str, Writer] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""What writes rows, by suffix."""
