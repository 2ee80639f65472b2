"""Plain data as JSON, written whole and read with care."""

import json
from pathlib import Path
from typing import Any

from multiexit.files import schema
from multiexit.files.paths import regular_file
from multiexit.files.writing import write
from multiexit_runner.json_files import unique_keys

LARGEST_JSON = 2**30
"""Bytes."""


def read_json(path: str | Path, inside: Path | None = None, finite: bool = True) -> Any:
    """The plain data of a JSON file.

    Args:
        path, inside: as in `regular_file`.
        finite: refuse NaN and infinities, which JSON doesn't know.

    Raises:
        ValueError: no regular file, or one that isn't JSON; a key that comes twice.
        OSError: it isn't there, or can't be read.
    """
    path = regular_file(path, inside)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, too many for what it is")
    options: dict[str, Any] = {"parse_constant": _refuse_constant} if finite else {}
    try:
        data = path.read_bytes().decode("utf-8-sig")
        return json.loads(data, object_pairs_hook=unique_keys, **options)
    except RecursionError:
        raise ValueError(f"{path} is nested too deep to be read") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error


def read_table(
    path: str | Path,
    what: str,
    check: schema.Check,
    *,
    format: int | None = None,
    inside: Path | None = None,
    finite: bool = True,
) -> dict[str, Any]:
    """The table in a JSON file that the library wrote.

    Args:
        path, inside, finite: as in `read_json`.
        what: it is, for the message.
        check: of the table; where there is a format, it asks for the key.
        format: the one that can be read, compared before the check; None where files have none.

    Raises:
        ValueError: as `read_json`; another format, or what the check refuses.
        OSError: it isn't there, or can't be read.
    """
    data = read_json(path, inside, finite)
    if format is not None and isinstance(data, dict) and "format" in data:
        stated = data["format"]
        if type(stated) is not int or stated != format:
            raise ValueError(
                f"{path} has format {schema.short(stated)}; this version of multiexit reads "
                f"{format}: install the version that wrote it"
            )
    try:
        check("", data)
    except ValueError as error:
        raise ValueError(f"{path} holds no {what}: {error}") from error
    return data


def write_json(path: Path, data: Any) -> None:
    """Write plain data as a JSON file."""
    text = json.dumps(data, indent=1)
    write(path, lambda target: target.write_text(text, encoding="utf-8"))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
