"""Reading what is typed on the command line: exits, options, inputs, model folders."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from multiexit.files.paths import check_folder, check_new, regular_file


def device() -> Any:
    """This process's GPU, if there is one."""
    import torch

    from multiexit.runtime import processes

    return processes().device if torch.cuda.is_available() else "cpu"


def model_folder(run: Path) -> Path:
    """The folder of the model in a run's folder, or that folder itself."""
    from multiexit.model.folder import of_run

    return of_run(run)


def new_folder(option: str, path: Path) -> None:
    """Refuse a folder that is to be written, where there is one or none can be made.

    Raises:
        ValueError: with its name.
    """
    check_new(path)
    check_folder(option, path)


def tokenizer(name: str | Path) -> Any:
    """The tokenizer of a hub name or folder, that reads texts; ValueError if there is none."""
    from multiexit.backbones.transformers.configs import load_tokenizer

    library, colon, _ = str(name).partition(":")
    if (colon and library in ("timm", "torchvision")) or str(name).startswith("cifar-resnet-"):
        kind = f"{library} networks read" if colon else f"{name} reads"
        raise ValueError(
            f"these rows are texts, and {kind} images: give --backbone a hub name or folder of a "
            "transformer"
        )
    return load_tokenizer(name)


def lines(files: list[str] | None) -> Iterator[str]:
    """The lines of UTF-8 text files, or of stdin, whatever the locale and the ends of lines are.

    Raises:
        ValueError: bytes that are no UTF-8, named by file and line.
    """
    if not files or files == ["-"]:
        if sys.stdin is None:
            raise ValueError("stdin is closed: name a file of lines")
        # What stands in for stdin may have text alone.
        raw = getattr(sys.stdin, "buffer", None)
        yield from _decoded(_lines_at_hand(raw) if raw else map(str.encode, sys.stdin), "stdin")
        return
    for name in files:
        if not name.startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/")):  # of the shell
            regular_file(name)
        with Path(name).open("rb") as file:
            yield from _decoded(file, name)


def _lines_at_hand(file: BinaryIO) -> Iterator[bytes]:
    """Lines as they come, without the file's lock: who waits with it keeps Python from ending."""
    try:
        number = file.fileno()
    except OSError:  # a file in memory
        yield from file
        return
    rest = b""
    while chunk := os.read(number, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _decoded(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is no UTF-8 text: byte 0x{line[error.start]:02x} in line {number}"
            ) from error
        yield from text.removesuffix("\n").removesuffix("\r").split("\r")


def exits(text: str) -> Any:
    """`all`, `4`, `3,7,11` or `0.25,0.5,1.0`, as `MultiExitModel` takes it."""
    if text == "all":
        return text
    try:
        numbers = [float(part) if "." in part else int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"can't read --exits {text!r}: all, 4, 3,7,11 or 0.25,0.5,1.0") from error
    one_number = "," not in text and isinstance(numbers[0], int)
    return numbers[0] if one_number else numbers


def whole_numbers(option: str, text: str) -> list[int]:
    """`1,8,32` as numbers, from 1 and rising."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"can't read {option} {text!r}: write whole numbers, 1,8,32") from error
    if numbers[0] < 1 or any(later <= earlier for earlier, later in pairwise(numbers)):
        raise ValueError(f"{option} are whole numbers from 1 that rise, 1,8,32; got {text!r}")
    return numbers


def weights(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers with commas between them, "1,2.5,1"; None for "balanced", which rows decide."""
    if text in (None, "balanced"):
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{option} is a number from 0 for each class, as 1,2.5,1, or balanced; got {text!r}"
        ) from None


PYTHON = {"True": "true", "False": "false", "None": "null"}
"""Constants as Python writes them, in JSON."""


def options(pairs: list[str], option: str = "--option") -> dict[str, Any]:
    """`NAME=VALUE` pairs; a value that is JSON, or one of Python's constants, is read as such."""
    return {name: _value(text) for name, text in _pairs(option, pairs)}


def space(pairs: list[str]) -> dict[str, Any]:
    """`NAME=A,B,C`, `NAME=LOW..HIGH` and `NAME=LOW..HIGH:log` as a space to search."""
    from multiexit.training.search.space import Choices, Range

    dimensions: dict[str, Any] = {}
    for name, text in _pairs("--space", pairs):
        ends, colon, scale = text.partition(":")
        low, dots, high = ends.partition("..")
        if not dots:
            parts = text.split(",")
            if not all(part.strip() for part in parts):
                raise ValueError(f"can't read --space {name}={text}: a value is empty")
            dimensions[name] = Choices(tuple(map(_value, parts)))
            continue
        numbers = [_value(low), _value(high)]
        if any(type(n) not in (int, float) for n in numbers) or (colon and scale != "log"):
            raise ValueError(
                f"can't read --space {name}={text}: write A,B,C or LOW..HIGH or LOW..HIGH:log"
            )
        dimensions[name] = Range(*numbers, log=bool(colon))
    return dimensions


def _pairs(option: str, pairs: list[str]) -> Iterator[tuple[str, str]]:
    names = set()
    for pair in pairs:
        typed_name, equals, text = pair.partition("=")
        name = typed_name.strip().replace("-", "_")
        if not equals or not name or not text.strip():
            raise ValueError(f"can't read {option} {pair!r}: write NAME=VALUE")
        if name in names:
            raise ValueError(f"{option} {name} is given twice: give it once")
        names.add(name)
        yield name, text


def _value(text: str) -> Any:
    try:
        value = json.loads(PYTHON.get(text, text))
    except (ValueError, RecursionError):  # no JSON, or a number of thousands of digits
        return text
    return tuple(value) if isinstance(value, list) else value
