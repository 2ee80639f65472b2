"""A run's whole state on disk: tensors as safetensors, the rest as JSON, in a renamed folder each.

`OUTPUT/checkpoints/phase-00-step-0001200/` and so on: the latest few, and that of the best epoch.
Each has the checksums of its files.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from multiexit.files import schema, weights
from multiexit.files.json_files import read_table
from multiexit.files.sums import check_sums, write_sums
from multiexit.files.writing import whole_folder, write_tensors
from multiexit_runner.user_line import user_level

FOLDER = "checkpoints"
FORMAT = 1


def name_of(phase: int, step: int) -> str:
    """The name of the checkpoint after so many steps of a phase."""
    return f"phase-{phase:02d}-step-{step:07d}"


def names(output: Path) -> list[str]:
    """The checkpoints of a run, the latest last."""
    folders = (output / FOLDER).glob("phase-*")
    return sorted((path.name for path in folders), key=_numbers)


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def save(output: Path, name: str, state: Any, keep: Collection[str] = ()) -> None:
    """Write a state (nested dicts, lists, tuples, tensors, plain values) as a checkpoint.

    It is written beside the others; only when it is whole do those go that aren't to be kept.

    Args:
        output: the run's folder.
        name: of the checkpoint.
        state: what it holds.
        keep: names of those that stay beside it.

    Raises:
        OSError: the disk is full; the others stay.
    """
    folder = output / FOLDER
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors)
    # One of the same name is of a run before this one, or damaged.
    with whole_folder(folder / name, folder / ".new", folder / ".gone") as new:
        write_tensors(new / "state.safetensors", tensors)
        text = json.dumps({"format": FORMAT, "state": tree})
        (new / "state.json").write_text(text, encoding="utf-8")
        write_sums(new)
    for other in names(output):
        if other not in (name, *keep):
            shutil.rmtree(folder / other, ignore_errors=True)


def load(
    output: Path, check: Callable[[str, Any], None] = lambda key, state: None
) -> tuple[str, Any] | None:
    """The name and state of the latest checkpoint that can be read, or None if there is none.

    Warns where a later one is damaged.

    Args:
        output: the run's folder.
        check: refuses a state that is no run's, by a ValueError.

    Raises:
        ValueError: all are damaged, or of another version.
    """
    broken: list[ValueError] = []
    for name in reversed(names(output)):
        try:
            state = _read(output / FOLDER / name, check)
        except ValueError as error:
            broken.append(error)
            continue
        if broken:
            warnings.warn(f"{broken[0]}; going on from {name}, before it", stacklevel=user_level())
        return name, state
    if broken:
        raise broken[0]
    return None


def _read(path: Path, check: Callable[[str, Any], None]) -> Any:
    try:
        check_sums(path)
        tree = read_table(path / "state.json", "state", _STATE, format=FORMAT, finite=False)
        state = _unpack(tree["state"], weights.tensors(path / "state.safetensors"))
        check("state", state)
        return state
    except (OSError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, LookupError) else error
        raise ValueError(f"the checkpoint in {path} can't be read: {reason}") from error


_STATE = schema.table({"format": schema.anything, "state": schema.anything})


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {"tensor": key}
    if isinstance(value, dict):  # as pairs: keys need not be strings
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return tensors[inner]
        if kind == "tuple":
            return tuple(_unpack(item, tensors) for item in inner)
        return {key: _unpack(item, tensors) for key, item in inner}
    return value
