"""A network's inputs: checked, and cut where all rows are padding.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
MASK = "attention_mask"


def named_arrays(
    specs: Mapping[str, dict[str, Any]], args: Sequence[Any], inputs: Mapping[str, Any]
) -> Arrays:
    """Inputs by name, as arrays.

    Args:
        specs: of each input `dtype`, `shape` with "B" and "T" for any size, and for indices
            `below`, the number of entries of what they point into.
        args: inputs in the order of `specs`.
        inputs: inputs by name.

    Raises:
        ValueError: names, types, shapes or values that the network wasn't exported for.
    """
    if len(args) > len(specs):
        raise ValueError(f"{len(args)} inputs for a network that takes {list(specs)}")
    by_name = {**dict(zip(specs, args, strict=False)), **inputs}
    if set(by_name) != set(specs):
        raise ValueError(f"this network takes the inputs {list(specs)}; got {list(by_name)}")
    arrays = {name: np.asarray(by_name[name]) for name in specs}
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        spec = specs[name]
        fits = array.dtype == spec["dtype"] and array.ndim == len(spec["shape"])
        for size, expected in zip(array.shape, spec["shape"], strict=False):
            if isinstance(expected, str):
                expected = sizes.setdefault(expected, size)
            fits = fits and size == expected
        if not fits:
            shape = ", ".join(map(str, spec["shape"]))
            sizes_text = "".join(f", {letter} = {size}" for letter, size in sizes.items())
            raise ValueError(
                f"{name} must be {spec['dtype']} of shape [{shape}]{sizes_text}; got {array.dtype} "
                f"{list(array.shape)}"
            )
        if name == MASK and (other := array[(array != 0) & (array != 1)]).size:
            raise ValueError(f"{name} must be 1 for tokens and 0 for padding; got {other[0]}")
        below = spec.get("below")
        if below is not None and array.size and not 0 <= array.min() <= array.max() < below:
            raise ValueError(
                f"{name} must be in 0..{below - 1}; got values from {array.min()} to {array.max()}"
            )
    return arrays


def trim(arrays: Arrays, specs: Mapping[str, dict[str, Any]], limit: int | None) -> Arrays:
    """Cut what stands to the right of every row's last token.

    Args:
        arrays, specs: as from and for `named_arrays`.
        limit: how many tokens the network can take.

    Raises:
        ValueError: more tokens than that, or none.
    """
    if MASK not in specs or specs[MASK]["shape"] != ["B", "T"]:
        return arrays
    mask_BT = arrays[MASK]
    if not mask_BT.shape[1]:
        raise ValueError("these rows have no tokens at all: T must be at least 1")
    token_columns = np.flatnonzero((mask_BT != 0).any(0))
    length = int(token_columns[-1]) + 1 if len(token_columns) else 1
    if limit is not None and length > limit:
        raise ValueError(f"rows of {length} tokens; this network takes at most {limit}")
    return {
        name: array[:, :length] if specs[name]["shape"][1:2] == ["T"] else array
        for name, array in arrays.items()
    }
