"""What of a row's values can be a text or an image, and what is wrong with the others."""

import io
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from multiexit.data.own import stored
from multiexit.losses.class_names import missing


def text(value: Any, name: str) -> str:
    """A row's text.

    Args:
        value: as the table has it; numbers are written out.
        name: of the column.

    Raises:
        ValueError: an empty one, or what is no text that can be read, with the reason.
    """
    if missing(value) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"an empty {name}")
    if isinstance(value, list):
        raise ValueError(
            f"a list in {name!r}, where a text is wanted (words with a tag each are trained in "
            "Python: see token classification in the documentation)"
        )
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"a {name} that is no text")
    words = str(value)
    if "\0" in words:
        raise ValueError(f"a {name} with a NUL character: is the file UTF-8, and whole?")
    if not words.isascii():
        try:
            words.encode()
        except UnicodeEncodeError:
            raise ValueError(f"a {name} with half a character (a lone surrogate)") from None
    return words


def image(value: Any, name: str, folder: Path | None) -> Any:
    """A row's image: a file's path, its bytes, an image of Pillow, or `Stored`.

    Args:
        value: as the table has it; of a dict of `bytes` and `path`, as `datasets` writes them, the
            bytes, or else the path.
        name: of the column.
        folder: that paths begin in; None is where the program runs.

    Raises:
        ValueError: none, no such file, or something else.
    """
    if isinstance(value, stored.Stored):
        inner = image(value.read(), name, folder)
        return value if isinstance(inner, bytes) else inner
    if isinstance(value, dict) and value and {*value} <= {"bytes", "path"}:
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    empty = isinstance(value, str | bytes) and not value.strip()
    if empty or (not hasattr(value, "__array__") and missing(value)):
        raise ValueError(f"an empty {name}")
    if isinstance(value, bytes) or _of_pillow(value):
        return value
    if not isinstance(value, str | Path):
        raise ValueError(
            f"a {name} that is no image but a {type(value).__name__}: wanted are files' names, "
            "their bytes, or images of Pillow"
        )
    path = Path(value.strip() if isinstance(value, str) else value)
    path = path if folder is None else folder / path
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise ValueError("no such file")
    return str(path)


def are_images(values: Iterable[Any], suffixes: Iterable[str]) -> bool:
    """Whether a column's first values look like images."""
    there = [value for value in map(stored.read, values) if not missing(value)]
    if not there:
        return False
    if all(isinstance(value, str) for value in there):
        return all(value.strip().lower().endswith(tuple(suffixes)) for value in there)
    return any(_of_pillow(value) or _opens(value) for value in there)


def _of_pillow(value: Any) -> bool:
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _opens(value: Any) -> bool:
    """Whether bytes begin as an image does; a dict of `bytes` and `path` is one."""
    from PIL import Image

    if isinstance(value, dict):
        return {*value} == {"bytes", "path"}
    try:
        with Image.open(io.BytesIO(value)):
            return True
    except Exception:  # no bytes; and Pillow's plugins raise nearly anything
        return False
