"""The folder that `multiexit.export` writes: settings, graphs, checksums.

`SHA256SUMS` lists all the other files, as `sha256sum --check` reads them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

FORMAT = 1
SETTINGS = "export.json"
SUMS = "SHA256SUMS"


def read(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder and its settings, after every file was checked.

    Raises:
        ValueError: no such folder, a file that is missing or was changed, or another format.
    """
    path = Path(folder)
    if not (path / SUMS).is_file():
        raise ValueError(f"no {SUMS} in {path}: not a folder that multiexit.export wrote")
    lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in {SETTINGS: None, **sums}:
        if not (path / name).is_file():
            raise ValueError(f"{path / name} is missing: export the model again")
        if name not in sums or checksum(path / name) != sums[name]:
            raise ValueError(
                f"{path / name} is not the file that was exported (its SHA-256 isn't the one in "
                f"{SUMS}): export the model again"
            )
    settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    if settings.get("format") != FORMAT:
        raise ValueError(
            f"{path / SETTINGS} has format {settings.get('format')!r}; this version reads "
            f"{FORMAT}: use the multiexit_runner of the version that wrote it"
        )
    return path, settings


def seal(folder: Path) -> None:
    """Write the checksums of all files in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{checksum(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
