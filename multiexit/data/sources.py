"""Names of data sets, files in shards, and what to say where there are none."""

import re
from collections.abc import Iterable
from pathlib import Path

from multiexit.files.paths import regular_file


def canonical(name: str) -> str:
    """A data set's name without capitals, dashes and blanks: `"SST-2"` is `"sst2"`."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def shards(folder: Path, split: str) -> list[Path]:
    """The files `split-00000-of-00002.parquet`, … of a folder in the hub's layout.

    Returns:
        The files in order; an empty list when the folder has none of this split.

    Raises:
        ValueError: some of the shards are missing.
    """
    files = sorted(folder.glob(f"{split}-*.parquet"))
    totals = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)$", file.stem))}
    if totals and totals != {len(files)}:
        raise ValueError(
            f"{folder}: {len(files)} files {split}-*.parquet, while their names promise "
            f"{max(totals)}; fetch the missing ones or remove those of another version"
        )
    return files


def read_shard(file: Path, columns: Iterable[str]):
    """Read some columns of one parquet file as a `pyarrow.Table`.

    Raises:
        ValueError: the file is damaged, lacks a column, or has empty cells in one.
    """
    import pyarrow
    import pyarrow.parquet

    regular_file(file)
    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{file}: not a readable parquet file ({error}); fetch it again"
        ) from error
    columns = list(columns)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{file}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}"
        )
    for name in columns:
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            raise ValueError(f"{file}: column {name} is empty in row {row} (counted from 0)")
    return table.select(columns)


def not_found(what: str, places: Iterable[Path], remedy: str) -> FileNotFoundError:
    """The error for missing data.

    Args:
        what: was looked for.
        places: where it was looked for.
        remedy: how to get it, a sentence.
    """
    looked = "\n".join(f"  {place}" for place in places)
    return FileNotFoundError(f"{what} not found. Looked in:\n{looked}\n{remedy}")
