"""What of a row's values can be a text or an image, and what is wrong with the others."""

import io
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from multiexit.data.own import stored
from multiexit.losses.class_names import missing

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
IMAGES = "files' names, their bytes, images of Pillow, or uint8 pixels [H, W, C] or [C, H, W]"


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
        value: as the table has it; uint8 pixels become an image of Pillow; of a dict of `bytes`
            and `path`, as `datasets` writes them, the bytes, or else the path.
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
    if (pixels := _pixels(value)) is not None:
        return _drawn(pixels, name)
    if not isinstance(value, str | Path):
        kind = numbers(value) or type(value).__name__
        raise ValueError(f"a {name} that is no image but a {kind}: wanted are {IMAGES}")
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
    return any(_of_pillow(value) or _pixels(value) is not None or _opens(value) for value in there)


def numbers(value: Any) -> str | None:
    """What an array, or lists of lists, as pixels may be, are called; None of other values."""
    if isinstance(value, list):
        return "list of lists" if value and isinstance(value[0], list) else None
    return f"{type(value).__name__} of {value.dtype}" if getattr(value, "ndim", 0) > 1 else None


def _pixels(value: Any) -> np.ndarray | None:
    """An array of uint8 that can be an image."""
    if not hasattr(value, "__array__") or not str(value.dtype).endswith("uint8"):
        return None
    array = np.asarray(value)
    grey = array.ndim == 2
    return array if grey or (array.ndim == 3 and {*array.shape[::2]} & {*CHANNELS}) else None


def _drawn(pixels: np.ndarray, name: str) -> Any:
    """Pixels as an image of Pillow."""
    from PIL import Image

    if pixels.ndim == 3:
        first, last = (size in CHANNELS for size in pixels.shape[::2])
        if first and last:
            raise ValueError(
                f"a {name} of shape {pixels.shape}, which could be [H, W, C] or [C, H, W]: give an "
                "image of Pillow"
            )
        pixels = np.moveaxis(pixels, 0, -1) if first else pixels
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


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
