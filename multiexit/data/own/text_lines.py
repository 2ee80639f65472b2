"""The lines of a text file, in UTF-8 or UTF-16."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""The first bytes of a file in UTF-16, as Excel and PowerShell write it."""


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, without a byte-order mark.

    Raises:
        ValueError: bytes that are no UTF-8, named by their line, or no UTF-16.
    """
    with path.open("rb") as file:
        if file.read(2) in UTF16:
            file.seek(0)
            yield from _utf16_lines(path, file)
            return
        file.seek(0)
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


def _utf16_lines(path: Path, file: io.BufferedReader) -> Iterator[str]:
    with io.TextIOWrapper(file, encoding="utf-16", newline="") as lines:
        while True:
            try:
                line = next(lines, None)
            except UnicodeError as error:
                raise ValueError(
                    f"{path} begins as UTF-16 does, and goes on otherwise ({error}): save the "
                    "file as UTF-8"
                ) from error
            if line is None:
                return
            yield line
