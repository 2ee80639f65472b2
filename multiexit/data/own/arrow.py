"""Tables of Arrow: sets of the library `datasets`, and parquet files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.stored import Stored
from multiexit.data.own.table import Row, Table, check_some
from multiexit.files.paths import CACHE, home

BATCH = 1000
"""Rows that are held at a time."""


def is_set(data: Any) -> bool:
    """Whether it is a set of the library `datasets`, which is not imported for this."""
    return hasattr(data, "features") and hasattr(data, "column_names")


def from_datasets(data: Any, name: str) -> Table:
    """A set of the library `datasets`; bytes and images are read one by one, as they are needed.

    Raises:
        ValueError: no rows, or a stream.
    """
    if not hasattr(data, "__len__"):
        raise ValueError(
            f"{name} is a stream ({type(data).__name__}), and rows are read several times: load it "
            "without streaming, or take what fits into memory, list(data.take(10_000))"
        )
    check_some(name, data)
    features = data.features or {}
    for column, feature in features.items():
        if type(feature).__name__ == "Image":
            data = data.cast_column(column, type(feature)(decode=False))
    plain = data.with_format(None)
    heavy = [column for column, feature in features.items() if _holds_bytes(feature)]
    light = plain.remove_columns(heavy)

    def read(bad: BadRows) -> Iterator[Row]:
        for number in range(0, len(plain), BATCH):
            rows = range(number, min(number + BATCH, len(plain)))
            columns = light[rows.start : rows.stop] if light.column_names else {}
            for place, row in enumerate(rows):
                values = {column: values[place] for column, values in columns.items()}
                yield (
                    f"{name}, row {row}",
                    values | {column: Stored(plain, row, column) for column in heavy},
                )

    types = _types(plain.features.arrow_schema) if plain.features else {}
    return Table(name, list(data.column_names), read, _classes(features), types=types)


def parquet(path: Path) -> Table:
    """A parquet file; one with images is first written as Arrow's own file, in the cache.

    Raises:
        ValueError: it can't be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise ValueError(f"{path}: the column {twice[0]!r} twice; give each its own name")
    features = _features(schema)
    if any(map(_holds_bytes, features.values())):
        return replace(from_datasets(_as_set(path), str(path)), types=_types(schema))

    def read(bad: BadRows) -> Iterator[Row]:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(BATCH):
            for row in batch.to_pylist():
                yield f"{path}, row {number}", row
                number += 1

    return Table(str(path), list(schema.names), read, _classes(features), types=_types(schema))


def _types(schema: Any) -> dict[str, Any]:
    return dict(zip(schema.names, schema.types, strict=True))


def _features(schema: Any) -> Mapping[str, Any]:
    """What `datasets` makes of the columns; nothing where one is of a type that it doesn't know."""
    from datasets import Features

    try:
        return Features.from_arrow_schema(schema)
    except Exception:  # the library's own, of all kinds
        return {}


def _classes(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of classes that a set numbers itself, one a row or a list of them."""
    entries = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    named = ((column, getattr(feature, "names", None)) for column, feature in entries.items())
    return {column: list(names) for column, names in named if names is not None}


def _holds_bytes(feature: Any) -> bool:
    """Whether values are images, bytes, or structs of bytes."""
    if isinstance(feature, Mapping):
        return any(map(_holds_bytes, feature.values()))
    binary = ("binary", "large_binary")
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", None) in binary


def _as_set(path: Path) -> Any:
    """A parquet file as a set that is mapped from the disk.

    The copy is named by the file's place, size and times, so that a changed file is read anew.
    """
    import datasets

    stat, cache = path.stat(), home(CACHE)
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    name = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    folder = None if cache is None else str(cache / "tables" / name)
    try:
        with _no_bars():
            return datasets.Dataset.from_parquet(str(path), cache_dir=folder)  # type: ignore[arg-type]
    except Exception as error:  # Arrow's and the library's own, of all kinds
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"{path}: not a readable parquet file ({reason})") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the library's bars of progress."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
