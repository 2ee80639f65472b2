"""A hash of what a data set holds, to tell whether it is the same one."""

import json
from collections.abc import Mapping, Set
from datetime import date, time, timedelta
from enum import Enum
from hashlib import blake2b
from numbers import Number
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

WRITTEN = (Number, PurePath, date, time, timedelta, Enum, range, slice)
"""Types whose values are the same if they are written the same."""


def fingerprint(data: Any) -> str:
    """Sixteen hexadecimal digits of BLAKE2b over a data set's tensors, arrays, lists and settings.

    A `Dataset` holds what its `__getstate__` says, as for pickling: all its attributes, unless it
    leaves caches and counters out there. Bytes, sets, paths, dates and numbers of any kind count
    too. Of other objects, such as tokenizers and functions, the name of the type or function
    counts; of files, their names. The sets of the library `datasets` bring fingerprints of their
    own.
    """
    return _hex_digest(data, ())


def _add(digest: blake2b, value: Any, above: tuple[int, ...]) -> None:
    """Count a value; `above` are the ids of what it lies in, so that no circle is followed."""
    if id(value) in above:
        return
    inside = (*above, id(value))
    if isinstance(value, DataLoader):
        _add(digest, value.dataset, inside)
    elif isinstance(value, Tensor) and is_lazy(value):
        _note(digest, f"{value.dtype} without a shape")
    elif isinstance(value, Tensor) and value.is_nested:
        _add(digest, value.detach().unbind(), inside)
    elif isinstance(value, Tensor) and value.is_meta:
        _note(digest, f"{value.dtype} {tuple(value.shape)} without content")
    elif isinstance(value, Tensor) and value.layout != torch.strided:
        _note(digest, f"{value.layout} {tuple(value.shape)}")
        entries = value.detach().to_sparse().coalesce()
        _add(digest, (entries.indices(), entries.values()), inside)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        _note(digest, f"{value.dtype} {tuple(value.shape)}", flat.numpy())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        _note(digest, f"{value.dtype} {value.shape}", flat)
    elif isinstance(value, np.ndarray):
        _add(digest, value.tolist(), inside)
    elif isinstance(value, np.generic):
        _note(digest, str(value.dtype), value.tobytes())
    elif isinstance(value, bytes | bytearray):
        _note(digest, f"{len(value)} bytes", value)
    elif isinstance(value, Dataset):
        _add(digest, value.__getstate__(), inside)
    elif isinstance(getattr(value, "_fingerprint", None), str):
        _note(digest, value._fingerprint)
    elif (text := _as_json(value)) is not None:
        _note(digest, text)
    elif isinstance(value, Mapping | list | tuple):
        _note(digest, f"{len(value)} items")
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            _note(digest, str(key))
            _add(digest, item, inside)
    elif isinstance(value, Set):
        _note(digest, f"set {sorted(_hex_digest(item, inside) for item in value)}")
    elif isinstance(value, WRITTEN):
        _note(digest, repr(value))
    else:
        _note(digest, getattr(value, "__qualname__", None) or type(value).__qualname__)


def _hex_digest(value: Any, above: tuple[int, ...]) -> str:
    digest = blake2b(digest_size=8)
    _add(digest, value, above)
    return digest.hexdigest()


def _as_json(value: Any) -> str | None:
    """Numbers, strings and nested lists of them as text; None where there is anything else."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return None


def _note(digest: blake2b, text: str, content: Any = b"") -> None:
    digest.update(f"{len(text)} {text}".encode())
    digest.update(content)
