"""The folder that `multiexit.export` writes: settings, graphs, rows to check, checksums.

`SHA256SUMS` lists all the other files, as `sha256sum --check` reads them. Files go by plain names:
nothing outside the folder is opened, and nothing that isn't listed.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

SETTINGS = "export.json"
SUMS = "SHA256SUMS"
ROWS = "check.npz"
LARGEST = 2**31
"""Bytes of a file: what a graph can have."""


class Folder(NamedTuple):
    """Where it lies, and each file's SHA-256 by name."""

    path: Path
    sums: dict[str, str]


def read_folder(folder: str | Path) -> Folder:
    """A folder's list of files, all of which are there.

    Raises:
        ValueError: no such folder, or a list with names that won't do.
    """
    try:
        path = Path(folder).expanduser().resolve()
    except (TypeError, OSError, RuntimeError) as error:
        raise ValueError(f"{folder!r} is no folder: {error}") from error
    if not _exists(path):
        raise ValueError(f"no such folder: {path}")
    if not _exists(path / SUMS):
        raise ValueError(f"no {SUMS} in {path}: not a folder that `multiexit export` wrote")
    try:
        lines = _file_bytes(path, SUMS).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path / SUMS} is no UTF-8 text: {error}") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not is_plain_name(name) or name in sums:
            raise ValueError(
                f"{path / SUMS}: line {number} is {line[:120]!r}; it must be a SHA-256, two spaces "
                "and a plain file name of this folder, each once"
            )
        sums[name] = digest
    for name in (SETTINGS, ROWS, *sums):
        if not _exists(path / name):
            raise ValueError(f"{path / name} is missing: export the model again")
    return Folder(path, sums)


def read_file(folder: Folder, name: str) -> bytes:
    """The bytes of a file, which must be the one that was exported.

    Raises:
        ValueError: a file that isn't listed, that lies elsewhere, is no file, or was changed.
    """
    data = _file_bytes(folder.path, name)
    if hashlib.sha256(data).hexdigest() != folder.sums.get(name):
        raise ValueError(
            f"{folder.path / name} is not the file that was exported (its SHA-256 isn't the one in "
            f"{SUMS}): export the model again"
        )
    return data


def is_plain_name(name: object) -> bool:
    """Whether a name is that of a file in the folder itself."""
    if not isinstance(name, str) or name in (".", "..", SUMS):
        return False
    return re.fullmatch(r"[^/\\:\x00-\x1f]{1,255}", name) is not None


def seal(folder: Path) -> None:
    """Write the checksums of all files in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{hashlib.sha256(_file_bytes(folder, name)).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # names that the file system can't have
        return False


def _file_bytes(folder: Path, name: str) -> bytes:
    """The bytes of a regular file, which no link leads out of the folder for."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
        if real.parent != folder.resolve():
            raise ValueError(
                f"{path} is a link to {real}, outside of the folder: copy the files themselves "
                "(from a hub, download them with local_dir=…)"
            )
        if not real.is_file():
            raise ValueError(f"{path} is no regular file")
        if real.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {real.stat().st_size} bytes; {LARGEST} is the most")
        return real.read_bytes()
    except (OSError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
