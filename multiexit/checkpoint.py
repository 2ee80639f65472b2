"""A run's whole state on disk: tensors as safetensors, the rest as JSON, in one renamed folder."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

NAME = "checkpoint"
FORMAT = 1


def save(folder: Path, state: Any) -> None:
    """Write a state (nested dicts, lists, tuples, tensors, plain values) to `folder/checkpoint`.

    It is written beside the old one, which goes only when the new one is whole.

    Raises:
        OSError: the disk is full; the old checkpoint stays.
    """
    new, old, gone = folder / f".{NAME}-new", folder / NAME, folder / f".{NAME}-old"
    if gone.exists() and not old.exists():  # stopped between the two renames below
        gone.rename(old)
    for leftover in (new, gone):
        shutil.rmtree(leftover, ignore_errors=True)
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors)
    try:
        new.mkdir(parents=True)
        save_file(tensors, new / "state.safetensors")
        (new / "state.json").write_text(json.dumps({"format": FORMAT, "state": tree}))
        if old.exists():
            old.rename(gone)
        new.rename(old)
    except SafetensorError as error:
        raise OSError(f"could not write a checkpoint to {folder}: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(gone, ignore_errors=True)


def load(folder: Path) -> Any | None:
    """The state that `save` wrote, or None if there is none.

    Raises:
        ValueError: a checkpoint that is damaged or of another version.
    """
    path = folder / NAME
    if not path.exists() and (folder / f".{NAME}-old").exists():
        path = folder / f".{NAME}-old"  # stopped between the two renames
    if not path.exists():
        return None
    try:
        tree = json.loads((path / "state.json").read_text())
        tensors = load_file(path / "state.safetensors")
        if tree.get("format") != FORMAT:
            raise ValueError(f"format {tree.get('format')!r}, this version reads {FORMAT}")
        return _unpack(tree["state"], tensors)
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint in {path} can't be read: {error}") from error


def random_states() -> dict[str, Any]:
    """The states of all random generators that training may draw from."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` read."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(states["python"])


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
