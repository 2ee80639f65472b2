"""Answers beside the file that they are for, until it is whole: a command that was killed goes on.

`answers.csv.part` has a line that says which job it is of, then one for each part of the rows.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

try:
    import fcntl
except ImportError:  # pragma: no cover (on systems without it, commands aren't kept apart)
    fcntl = None

SUFFIX = ".part"


class Part(NamedTuple):
    """Rows that were answered together.

    Args:
        digest: of what was read.
        answers: in order, each by its columns; a string is why its row was left out.
    """

    digest: str
    answers: list[dict[str, Any] | str]


class PartFile:
    """The parts that a file holds.

    Args:
        file: to be read and added to.
        start: where its parts begin, in bytes.

    Attributes:
        rows: of the parts that were read or added.
    """

    def __init__(self, file: BinaryIO, start: int):
        self._file, self._start = file, start
        self.rows = 0

    def __iter__(self) -> Iterator[Part]:
        """The parts in order. What isn't whole, and all behind it, is cut off."""
        rows, end = 0, self._start
        self._file.seek(end)
        while line := self._file.readline():
            part = _part(line)
            if part is None:
                self._file.truncate(end)
                return
            end += len(line)
            rows += len(part.answers)
            self.rows = max(self.rows, rows)
            yield part

    def add(self, part: Part) -> None:
        """Write another part."""
        self._file.write(json.dumps(part).encode() + b"\n")
        self._file.flush()
        self.rows += len(part.answers)


@contextmanager
def kept(output: Path, job: Mapping[str, Any]) -> Iterator[PartFile]:
    """The part file of an output, held by this command; removed when all went well.

    Args:
        output: the file that the answers are for.
        job: what answers hang on, plain data by name.

    Raises:
        ValueError: answers of another job, a file of another kind, or another command at it.
    """
    from multiexit.data.own.notes import say
    from multiexit.files.paths import regular_file

    path = output.with_name(output.name + SUFFIX)
    if path.exists():
        regular_file(path)
    with _held(path) as file:
        header = json.dumps(job).encode() + b"\n"
        file.seek(0)
        first = file.readline()
        if not header.startswith(first):
            raise ValueError(f"{path} {_other(first, job)}: remove it to begin anew")
        if first != header:  # new, or cut short
            file.truncate(0)
            file.write(header)
            file.flush()
        parts = PartFile(file, len(header))
        try:
            yield parts
        except BaseException:
            if parts.rows:
                say(f"{parts.rows} rows are kept in {path}: the same command goes on behind them")
            else:
                path.unlink(missing_ok=True)
            raise
        if fcntl is not None:
            path.unlink(missing_ok=True)
    if fcntl is None:  # where an open file can't be removed
        path.unlink(missing_ok=True)


def _part(line: bytes) -> Part | None:
    """The part in a line; None where it isn't whole."""
    try:
        part = Part(*json.loads(line))
    except (ValueError, TypeError):
        return None
    return part if line.endswith(b"\n") else None


def _other(first: bytes, job: Mapping[str, Any]) -> str:
    """What else a file holds, by its first line."""
    try:
        old = dict(json.loads(first))
    except (ValueError, TypeError):
        return "is of another kind"
    for name, value in json.loads(json.dumps(job)).items():
        if old.get(name) != value and name == "model":
            return "holds answers of another model, or of this one before its files changed"
        if old.get(name) != value:
            return f"holds answers with {name} {old.get(name)}, which is {value} now"
    return "is of another version"


def _held(path: Path) -> BinaryIO:
    """The file of a path, open; no other command has it until it is closed, however this ends."""
    while True:
        file = path.open("a+b")
        _lock(file, path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # whose it was has just removed it


def _lock(file: BinaryIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise ValueError(f"{path} is being written by another command: let it end") from error
