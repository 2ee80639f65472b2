"""Paths that a user gives: his home, links, and what is no file."""

import os
import stat
from pathlib import Path


def home(path: str | Path) -> Path | None:
    """A path with its `~` filled in; None where nobody says what the home folder is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no HOME, and a user that the system doesn't know
        return None


def user_path(path: str | Path) -> Path:
    """A path that a user gives to the library, `~` filled in as a shell does.

    Raises:
        ValueError: nobody says what the home folder is.
    """
    expanded = home(path)
    if expanded is None:
        raise ValueError(f"nobody says what the home folder is in {str(path)!r}: write it out")
    return expanded


def nearest(path: Path) -> Path:
    """A path, or of what is above it the first that is there."""
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return path


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what is hidden."""
    return sorted(path for path in folder.iterdir() if not hidden(path.name))


def hidden(name: str) -> bool:
    """Whether a file or folder is a system's own: hidden, or what macOS and Windows leave about."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def check_new(folder: Path) -> None:
    """Refuse a folder that is to be written, and is there already.

    Raises:
        ValueError: with its name.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already: remove it or name another folder")


def check_folder(what: str, folder: Path) -> None:
    """Refuse a folder that can be neither found nor made, or isn't to be written in.

    Args:
        what: names it, for the message.
        folder: it, or where it is to be.

    Raises:
        ValueError: with what stands in its way.
    """
    place = nearest(folder)
    if not place.is_dir():
        raise ValueError(f"{what} {str(folder)!r} can't be made: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{what} {str(folder)!r}: no permission to write in {place}")


def regular_file(path: str | Path, inside: Path | None = None) -> Path:
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


CACHE = Path("~/.cache/multiexit")
"""Where data lies that can be made or fetched again."""
