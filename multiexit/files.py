"""Files written aside and renamed, so that nothing is ever half there; and read with care."""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

CACHE = Path("~/.cache/multiexit")
"""Where data lies that can be made or fetched again."""

LARGEST_JSON = 2**30
"""Bytes."""

SUMS = "SHA256SUMS"


def home(path: str | Path) -> Path | None:
    """A path with its `~` filled in; None where nobody says what the home folder is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no HOME, and a user that the system doesn't know
        return None


def place(path: str | Path) -> Path:
    """A path that a user gives to the library, `~` filled in as a shell does.

    Raises:
        ValueError: nobody says what the home folder is.
    """
    found = home(path)
    if found is None:
        raise ValueError(f"nobody says what the home folder is in {str(path)!r}: write it out")
    return found


def regular(path: str | Path, inside: Path | None = None) -> Path:
    """The path of a file that can be read to its end.

    Args:
        path: what a user or a folder names.
        inside: the folder that it must lie in, links followed. The hub's cache counts as one
            folder: its snapshots link to the blobs beside them.

    Raises:
        ValueError: a folder, a pipe, a socket or a device; a link out of the folder.
        FileNotFoundError: nothing is there.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no regular file: give a file, not a folder, pipe or device")
    if inside is not None:
        folder = inside.resolve()
        within = [folder]
        if folder.parent.name == "snapshots":
            within.append(folder.parents[1] / "blobs")
        if not any(path.resolve().is_relative_to(allowed) for allowed in within):
            raise ValueError(
                f"{path} is a link to {path.resolve()}, outside its folder: copy the file there"
            )
    return path


def read_json(path: str | Path, inside: Path | None = None, finite: bool = True) -> Any:
    """The plain data of a JSON file.

    Args:
        path, inside: as in `regular`.
        finite: refuse NaN and infinities, which JSON doesn't know.

    Raises:
        ValueError: no regular file, or one that isn't JSON; a key that comes twice.
        OSError: it isn't there, or can't be read.
    """
    path = regular(path, inside)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, too many for what it is")
    options: dict[str, Any] = {"parse_constant": _no_constant} if finite else {}
    try:
        data = path.read_bytes().decode("utf-8-sig")
        return json.loads(data, object_pairs_hook=_unrepeated, **options)
    except RecursionError:
        raise ValueError(f"{path} is nested too deep to be read") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error


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
        for path, written in temporary.items():
            os.replace(written, path)
    except SafetensorError as error:  # its own name for a failed write
        raise OSError(f"could not write {[str(path) for path in writers]}: {error}") from error
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """`write_all` for one file."""
    write_all({path: writer})


def write_json(path: Path, data: Any) -> None:
    """Write plain data as a JSON file."""
    text = json.dumps(data, indent=1)
    write(path, lambda target: target.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file."""
    write(path, lambda target: save_file(tensors, target))


def seal(folder: Path) -> None:
    """Write the checksums of all files in a folder, as `sha256sum --check` reads them."""
    lines = [f"{_checksum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_seal(folder: Path) -> None:
    """Compare a folder's files with their checksums, if it has any.

    Raises:
        ValueError: a file that is not as it was written.
        OSError: one that can't be read.
    """
    if not (folder / SUMS).exists():  # of an older version
        return
    for line in regular(folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if path.parent != folder or _checksum(regular(path)) != digest:
            raise ValueError(f"{path.name[:80]} is not as it was written: its SHA-256 differs")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table whose keys are each there once."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)[:80]!r} is there twice")
    return made
