"""Files and folders that are written whole or not at all: aside first, then renamed."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_all(writers: dict[Path, Callable[[Path], Any]]) -> None:
    """Write each file beside its place, then rename them all: all or nothing.

    They get the permissions that the user's umask gives, whatever their writers do.

    Raises:
        OSError: the disk is full or can't be written; what was there before stays.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    try:
        for path, writer in writers.items():
            aside = temporary[path]
            aside.unlink(missing_ok=True)  # of a process that was ended
            aside.touch()
            mode = stat.S_IMODE(aside.stat().st_mode)
            writer(aside)
            aside.chmod(mode)
        for path, aside in temporary.items():
            os.replace(aside, path)
    except SafetensorError as error:  # its own name for a failed write
        names = ", ".join(str(path) for path in writers)
        raise OSError(f"could not write {names}: {error}") from error
    finally:
        for aside in temporary.values():
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, aside: Path, replaced: Path | None = None) -> Iterator[Path]:
    """A folder that is filled aside, then flushed to the disk and renamed: all of it or nothing.

    Args:
        path: where it appears.
        aside: where it is filled, on the same disk. What is there, of a process that was ended, is
            removed first.
        replaced: where the folder that it replaces lies between the renames, removed alike; None
            where there mustn't be one.

    Yields:
        The folder to fill, empty.

    Raises:
        OSError: the disk is full or can't be written, or there is a folder that isn't to be
            replaced; what was there before stays.
    """
    others = (aside,) if replaced is None else (aside, replaced)
    _remove(*others)
    try:
        aside.mkdir(parents=True)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        if replaced is not None and path.exists():
            path.rename(replaced)
        aside.rename(path)
    finally:
        if replaced is not None and replaced.exists() and not path.exists():
            replaced.rename(path)
        _remove(*others)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """`write_all` for one file."""
    write_all({path: writer})


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file."""
    write(path, lambda target: save_file(tensors, target))
