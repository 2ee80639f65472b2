"""Checksums of a folder, as `sha256sum --check` reads them."""

import hashlib
from pathlib import Path

from multiexit.files.paths import regular_file

SUMS = "SHA256SUMS"
READ = (".json", ".safetensors", ".txt", ".model", ".onnx", ".npz")
"""Suffixes of the files that a model's or export's folder is read from."""


def write_sums(folder: Path) -> None:
    """Write the checksums of all files in a folder, as `sha256sum --check` reads them."""
    lines = [f"{_checksum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def folder_sums(folder: Path) -> str:
    """One checksum of all files of a model's folder: its weights, settings and tokenizer.

    Other files may come and go there: what isn't read with the model doesn't count.
    """
    names = sorted(path.name for path in folder.iterdir() if path.suffix in READ)
    lines = "".join(f"{_checksum(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def check_sums(folder: Path) -> None:
    """Compare a folder's files with their checksums, if it has any.

    Raises:
        ValueError: a file that is not as it was written.
        OSError: one that can't be read.
    """
    if not (folder / SUMS).exists():  # of an older version
        return
    for line in regular_file(folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if path.parent != folder or _checksum(regular_file(path)) != digest:
            raise ValueError(f"{path.name[:80]} is not as it was written: its SHA-256 differs")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
