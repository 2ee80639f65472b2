"""Tables from where users have them: files of several kinds, and data in memory."""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiexit.data.own import arrow, delimited, json_rows
from multiexit.data.own.table import Table, of_rows
from multiexit.files.paths import regular_file

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


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
        return delimited.table(path, "\t" if suffix == ".tsv" else None)
    if suffix in (".jsonl", ".ndjson"):
        return json_rows.lines(path)
    if suffix == ".json":
        return json_rows.whole(path)
    if suffix == ".parquet":
        return arrow.parquet(path)
    packed = ": unpack it first" if suffix in (".gz", ".bz2", ".xz", ".zst", ".zip") else ""
    raise ValueError(f"{path}: a table is {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}{packed}")


def from_memory(data: Any, name: str = "data") -> Table:
    """Rows in memory: a list of dicts, a dict of lists, a data frame, or a set of `datasets`.

    Raises:
        ValueError: something else, or no rows.
    """
    if arrow.is_set(data):
        return arrow.from_datasets(data, name)
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = _columns_of_frame(data, name)
    if isinstance(data, Mapping):
        if odd := [key for key, values in data.items() if not isinstance(values, Sized)]:
            raise ValueError(
                f"{name}: column {odd[0]!r} is a {type(data[odd[0]]).__name__}; give a list"
            )
        lengths = {key: len(values) for key, values in data.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name}: columns of unequal length: {lengths}")
        keys = list(data)
        data = [dict(zip(keys, row, strict=True)) for row in zip(*data.values(), strict=True)]
    if hasattr(data, "collect"):
        raise ValueError(f"{name} is a {type(data).__name__}, not read yet: give data.collect()")
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise ValueError(f"{name} is a {type(data).__name__}; give rows, such as a list of dicts")
    return of_rows(list(data), name)


def _columns_of_frame(frame: Any, name: str) -> dict[Any, list[Any]]:
    names = list(frame.columns)
    if twice := [column for column in names if names.count(column) > 1]:
        raise ValueError(f"{name}: the column {twice[0]!r} twice; give each its own name")
    series = {column: frame[column] for column in names}
    return {  # of pandas, or of polars
        column: one.tolist() if hasattr(one, "tolist") else one.to_list()
        for column, one in series.items()
    }
