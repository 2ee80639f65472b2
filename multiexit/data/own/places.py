"""Where a user's data lies: the tables or images of each split."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from multiexit.data.own import arrow, tables
from multiexit.data.own.table import Table, joined
from multiexit.data.own.tables import SUFFIXES
from multiexit.files.paths import entries

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Names of files and folders by split."""


def splits(source: Any, validation: Any = None, test: Any = None) -> dict[str, Table]:
    """The tables of a source by split: `"train"`, and `"validation"` and `"test"` where there are.

    Args:
        source: a file; a folder of files, of folders by split, or of a folder of images per class;
            a folder that `datasets` saved; the name of a set on the hub, with `:CONFIG` behind it
            where it has several; or rows in memory, one table or a mapping of tables by split.
        validation, test: a file or rows of that split.

    Raises:
        ValueError: nothing there, no training set, or what is no table.
    """
    found = _splits(source)
    for name, given in (("validation", validation), ("test", test)):
        if given is not None:
            found[name] = _one(given, name)
    if "train" not in found:
        name = source if isinstance(source, str | Path) else "data"
        raise ValueError(f"{name}: no training set; there is {', '.join(found)}")
    return found


def _one(source: Any, split: str) -> Table:
    found = _splits(source)
    if len(found) > 1:
        raise ValueError(f"{split}={source} has the splits {list(found)}: name one file or table")
    return next(iter(found.values()))


def _splits(source: Any) -> dict[str, Table]:
    if not isinstance(source, str | Path):
        return _in_memory(source)
    if not str(source).strip():
        raise ValueError("an empty name, where a file, a folder or a set of the hub is wanted")
    path = Path(source).expanduser()
    if path.is_file():
        return {"train": tables.from_file(path)}
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() in SUFFIXES or str(source).startswith((".", "/", "~")):
        raise ValueError(f"{source}: no such file or folder")
    return _on_hub(str(source))


def _in_memory(data: Any) -> dict[str, Table]:
    if isinstance(data, dict) and data and all(map(arrow.is_set, data.values())):
        return _of_datasets(data, "data")
    by_split = {name: split for split, names in NAMES.items() for name in names}
    if isinstance(data, dict) and data and all(str(key) in by_split for key in data):
        return {
            by_split[str(key)]: tables.from_memory(rows, str(key)) for key, rows in data.items()
        }
    return {"train": tables.from_memory(data)}


def _in_folder(folder: Path) -> dict[str, Table]:
    names = {path.name for path in folder.iterdir()}
    if names & {"dataset_dict.json", "dataset_info.json", "state.json"}:
        return _saved_by_datasets(folder)
    found = {}
    there = entries(folder)
    used: set[Path] = set()
    for split, aliases in NAMES.items():
        folders = [folder / alias for alias in aliases if (folder / alias).is_dir()]
        files = [p for p in there if p.suffix.lower() in SUFFIXES and _alias(p) in aliases]
        if len(folders) + len({_alias(path) for path in files}) > 1:
            several = ", ".join(path.name for path in [*folders, *files])
            raise ValueError(f"{folder} has {several}, each of which could be {split}: keep one")
        if folders:
            found[split] = _whole_folder(folders[0], split)
        elif files:
            found[split] = _joined(files, split)
        used |= {*folders, *files}
    if "train" not in found:
        return found or {"train": _whole_folder(folder)}
    if left := [path for path in there if path not in used]:
        found["train"] = _noted(found["train"], f"{folder}: {_shown(left)} left alone")
    return found


def _noted(table: Table, note: str) -> Table:
    return replace(table, notes=(*table.notes, note))


def _alias(path: Path) -> str:
    """The word that a file's name begins with, which may be that of a split."""
    return path.stem.lower().replace(".", "-").replace("_", "-").split("-")[0]


def _joined(files: list[Path], split: str) -> Table:
    """Files as one table; which ones is said, as some may not have been meant."""
    table = joined([tables.from_file(path) for path in files])
    if len(files) == 1:
        return table
    return _noted(table, f"{split} is {len(files)} files of {files[0].parent}: {_shown(files)}")


def _shown(paths: list[Path]) -> str:
    """The names of files and folders, the first few of them."""
    return ", ".join(path.name for path in paths[:5]) + ", …" * (len(paths) > 5)


def _whole_folder(folder: Path, split: str = "train") -> Table:
    """A folder's tables as one, or its folders of images by class."""
    from multiexit.data.own import image_folders

    there = entries(folder)
    files = [path for path in there if path.suffix.lower() in SUFFIXES]
    if not files:
        return image_folders.table(folder)
    kinds = {path.suffix.lower() for path in files}
    if len(kinds) > 1:
        raise ValueError(f"{folder} has files of several kinds, {sorted(kinds)}: name one")
    table, folders = _joined(files, split), [path for path in there if path.is_dir()]
    if not folders:
        return table
    read, beside = _shown(files), _shown(folders)
    return _noted(table, f"{folder}: {read} is read; of {beside} only what it names")


def _saved_by_datasets(folder: Path) -> dict[str, Table]:
    import datasets

    try:
        data: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow's and the library's own, of all kinds
        raise ValueError(f"{folder}: not a folder that `datasets` saved whole: {error}") from error
    return _of_datasets(data, str(folder))


def _on_hub(name: str) -> dict[str, Table]:
    import datasets

    path, _, config = name.partition(":")
    try:
        data: Any = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library's own, of all kinds
        raise ValueError(
            f"{name} is no file or folder here, and no data set of the hub that can be read: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return _of_datasets(data, name)


def _of_datasets(data: Any, name: str) -> dict[str, Table]:
    if not isinstance(data, dict):
        return {"train": arrow.from_datasets(data, name)}
    by_split = {alias: split for split, aliases in NAMES.items() for alias in aliases}
    found = {
        by_split.get(str(key), str(key)): arrow.from_datasets(rows, f"{name} {key}")
        for key, rows in data.items()
    }
    left = [split for split in found if split not in NAMES]
    if "train" in found and left:
        found = {split: table for split, table in found.items() if split not in left}
        note = f"{name}: the splits {', '.join(left)} are left alone"
        found["train"] = _noted(found["train"], note)
    return found
