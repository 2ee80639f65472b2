"""Files and folders that are written whole or not at all: aside first, then renamed."""

import glob
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_all(writers: dict[Path, Callable[[Path], Any]]) -> None:
    """Write each file beside its place, flush them to the disk, rename them all: all or nothing.

    They get the permissions that the user's umask gives, whatever their writers do.

    Raises:
        OSError: the disk is full or can't be written; what was there before stays.
    """
    temporary = {path: _aside(path) for path in writers}
    try:
        for path, writer in writers.items():
            aside = temporary[path]
            aside.touch()
            mode = stat.S_IMODE(aside.stat().st_mode)
            writer(aside)
            aside.chmod(mode)
            _flush(aside)
        for path, aside in temporary.items():
            os.replace(aside, path)
    except SafetensorError as error:  # its own name for a failed write
        names = ", ".join(str(path) for path in writers)
        raise OSError(f"could not write {names}: {error}") from error
    finally:
        for aside in temporary.values():
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(
    path: Path, aside: Path | None = None, replaced: Path | None = None
) -> Iterator[Path]:
    """A folder that is filled aside, then flushed to the disk and renamed: all of it or nothing.

    Args:
        path: where it appears.
        aside: where it is filled, on the same disk; None is beside it. What is there, of a process
            that was ended, is removed first.
        replaced: where the folder that it replaces lies between the renames, removed alike; None
            where there mustn't be one.

    Yields:
        The folder to fill, empty.

    Raises:
        OSError: the disk is full or can't be written, or there is a folder that isn't to be
            replaced; what was there before stays.
    """
    aside = _aside(path) if aside is None else aside
    others = (aside,) if replaced is None else (aside, replaced)
    _remove(*others)
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _flush(file)
        if replaced is not None and path.exists():
            path.rename(replaced)
        aside.rename(path)
    finally:
        if replaced is not None and replaced.exists() and not path.exists():
            replaced.rename(path)
        _remove(*others)


LEFT = 3600.0
"""Seconds after which what lies aside may be a leftover: elsewhere a number is another process."""


def _aside(path: Path) -> Path:
    """Where this process writes what is to be at a path; what ended ones left there is removed."""
    path = path.absolute()
    start = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        pid = left.name.removeprefix(start).partition(".")[0]
        if pid.isdecimal() and not _runs(int(pid)) and _age(left) > LEFT:
            _remove(left)
    return path.with_name(f"{start}{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _age(path: Path) -> float:
    """Seconds since a file or folder was changed; 0 of one that has gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _runs(pid: int) -> bool:
    """Whether a process of this machine is still there, as far as it can be asked."""
    if os.name == "nt":  # where asking ends it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _flush(file: Path) -> None:
    """Let a file's bytes come to the disk before it is renamed."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """`write_all` for one file."""
    write_all({path: writer})


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file."""
    write(path, lambda target: save_file(tensors, target))
