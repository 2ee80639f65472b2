"""JSON files as tables: an object a line, or a list of objects."""

import json
from collections.abc import Iterator
from pathlib import Path

from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.table import Row, Table, columns_of, of_rows
from multiexit_runner.json_files import unique_keys


def lines(path: Path) -> Table:
    """An object a line. The columns are all keys of all lines: what a line lacks is a gap.

    Raises:
        ValueError: no line is an object.
    """

    def read(bad: BadRows) -> Iterator[Row]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    row = json.loads(
                        line.decode("utf-8-sig" if number == 1 else "utf-8"),
                        object_pairs_hook=unique_keys,
                    )
                except (ValueError, RecursionError) as error:
                    bad.add(place, f"no JSON ({error})", line[:200].decode("utf-8", "replace"))
                    continue
                if isinstance(row, dict):
                    yield place, row
                else:
                    bad.add(place, "no JSON object", row)

    bad = BadRows()
    columns = columns_of(row for _, row in read(bad))
    if not columns:
        bad.settle()
        raise ValueError(f"{path}: no rows")
    return Table(str(path), columns, read, {})


def whole(path: Path) -> Table:
    """A list of objects, alone or as `data` of an object.

    Raises:
        ValueError: anything else.
    """
    try:
        rows = json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
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
    return of_rows(rows, str(path))
