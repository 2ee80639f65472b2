"""Images are opened before training, so that none is found damaged in the middle of it."""

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from multiexit.data.order import chunks
from multiexit.data.own import stored
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.usable import Usable
from multiexit_runner import pictures

TOGETHER = 256
"""Images that are in memory at a time."""


def with_content(
    rows: Iterable[Usable], how: dict[str, Any], bad: BadRows
) -> Iterator[tuple[Usable, list[Any]]]:
    """Rows of images with what is in their files, read by several threads; in order.

    Args:
        rows: each with an image.
        how: the preparation, which refuses some kinds of images.
        bad: gets the rows whose images can't be read.
    """

    def content(image: Any) -> list[Any] | ValueError:
        try:
            return _content(image, how)
        except ValueError as error:
            return error

    with ThreadPoolExecutor() as threads:
        for part in chunks(rows, TOGETHER):
            with warnings.catch_warnings():  # here, since threads share them
                warnings.simplefilter("ignore")
                found = list(threads.map(content, [row.inputs[0] for row in part]))
            for row, result in zip(part, found, strict=True):
                if isinstance(result, ValueError):
                    bad.add(row.place, str(result), row.inputs[0])
                else:
                    yield row, result


def _content(image: Any, how: dict[str, Any]) -> list[Any]:
    """The bytes of an image that can be read.

    Raises:
        ValueError: it can't be.
    """
    source = stored.read(image)
    if isinstance(source, dict):
        source = source["bytes"]
    if isinstance(source, str):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise ValueError(f"can't be read: {error.strerror}") from error
    pictures.check_whole(source, how)
    if isinstance(source, bytes):
        return [source]
    return [f"{source.mode} {source.size}", source.tobytes()]
