"""A folder with a folder of images for each class, as a table of files and class names."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.table import Row, Table
from multiexit.files.paths import entries, hidden

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    *(".jp2", ".avif"),
}


def table(folder: Path) -> Table:
    """The images below each of a folder's folders, at any depth, with its name as their label.

    Links are followed. What is hidden doesn't count; other files are told in the notes.

    Raises:
        ValueError: no folders with images in them.
    """
    there = entries(folder)
    kinds = [path for path in there if path.is_dir()]
    files: dict[str, list[str]] = {}
    others: list[str] = [str(path) for path in there if not path.is_dir()]
    for kind in kinds:
        found = sorted(_files(kind))
        files[kind.name] = [name for name in found if _is_image(name)]
        others += [name for name in found if not _is_image(name)]
    if not any(files.values()):
        shown = ", ".join(path.name for path in there[:5]) or "nothing"
        raise ValueError(
            f"{folder} holds {shown}: wanted are tables (.csv, .jsonl, .parquet, …), or a folder "
            "of images for each class"
        )

    def read(bad: BadRows) -> Iterator[Row]:
        for kind, names in files.items():
            for name in names:
                yield name, {"image": name, "label": kind}

    empty = [kind for kind, names in files.items() if not names]
    return Table(str(folder), ["image", "label"], read, {}, _notes(folder, others, empty))


def images(folder: Path) -> list[str]:
    """The images in a folder and below it, in the order of `table`.

    Raises:
        ValueError: none.
    """
    parts = (sorted(_files(path)) if path.is_dir() else [str(path)] for path in entries(folder))
    found = [name for part in parts for name in part if _is_image(name)]
    if not found:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def _notes(folder: Path, others: list[str], empty: list[str]) -> tuple[str, ...]:
    notes = []
    if others:
        kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in others)
        shown = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common(5))
        notes.append(
            f"{folder}: {len(others)} files are left alone ({shown}), such as {others[0]}: images "
            "lie in the folder of their class"
        )
    if empty:
        notes.append(f"{folder}: no images in {', '.join(empty[:8])}")
    return tuple(notes)


def _files(folder: Path) -> Iterator[str]:
    """The files below a folder, those of folders that are links too, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:  # a link to a folder above it, or beside it
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not hidden(name))
        yield from (
            os.path.join(place, name)
            for name in names
            if not hidden(name) and not os.path.isdir(os.path.join(place, name))
        )


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and Path(name).is_file()
