"""A folder with a folder of images for each class, as a table of files and class names."""

from collections.abc import Iterator
from pathlib import Path

from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.tables import Row, Table

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    *(".jp2", ".avif"),
}


def table(folder: Path) -> Table:
    """The images below each of a folder's folders, with the folder's name as their label.

    Raises:
        ValueError: no folders with images in them.
    """
    kinds = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    files = {kind: sorted(_images(kind)) for kind in kinds}
    if not any(files.values()):
        shown = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"{folder} holds {shown}: wanted are tables (.csv, .jsonl, .parquet, …), or a folder "
            "of images for each class"
        )

    def read(bad: BadRows) -> Iterator[Row]:
        for kind, paths in files.items():
            for path in paths:
                yield str(path), {"image": str(path), "label": kind.name}

    return Table(str(folder), ["image", "label"], read, {})


def _images(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )
