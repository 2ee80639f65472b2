"""A network's inputs: checked, and cut where all rows are padding.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
MASK = "attention_mask"


def named(
    wanted: Mapping[str, dict[str, Any]], args: Sequence[Any], inputs: Mapping[str, Any]
) -> Arrays:
    """Inputs by name, as arrays.

    Args:
        wanted: of each input `dtype`, `shape` with "B" and "T" for any size, and for indices
            `below`, the number of entries of what they point into.
        args: inputs in the order of `wanted`.
        inputs: inputs by name.

    Raises:
        ValueError: names, types, shapes or values that the network wasn't exported for.
    """
    if len(args) > len(wanted):
        raise ValueError(f"{len(args)} inputs for a network that takes {list(wanted)}")
    given = {**dict(zip(wanted, args, strict=False)), **inputs}
    if set(given) != set(wanted):
        raise ValueError(f"this network takes the inputs {list(wanted)}; got {list(given)}")
    arrays = {name: np.asarray(given[name]) for name in wanted}
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        want = wanted[name]
        fits = str(array.dtype) == want["dtype"] and array.ndim == len(want["shape"])
        for size, expected in zip(array.shape, want["shape"], strict=False):
            if isinstance(expected, str):
                expected = sizes.setdefault(expected, size)
            fits = fits and size == expected
        if not fits:
            shape = ", ".join(map(str, want["shape"]))
            known = "".join(f", {letter} = {size}" for letter, size in sizes.items())
            raise ValueError(
                f"{name} must be {want['dtype']} of shape [{shape}]{known}; got {array.dtype} "
                f"{list(array.shape)}"
            )
        if name == MASK and (other := array[(array != 0) & (array != 1)]).size:
            raise ValueError(f"{name} must be 1 for tokens and 0 for padding; got {other[0]}")
        below = want.get("below")
        if below is not None and array.size and not 0 <= array.min() <= array.max() < below:
            raise ValueError(
                f"{name} must be in 0..{below - 1}; got values from {array.min()} to {array.max()}"
            )
    return arrays


def trim(arrays: Arrays, wanted: Mapping[str, dict[str, Any]], limit: int | None) -> Arrays:
    """Cut what stands to the right of every row's last token.

    Args:
        arrays, wanted: as from and for `named`.
        limit: how many tokens the network can take.

    Raises:
        ValueError: more tokens than that, or none.
    """
    if MASK not in wanted or wanted[MASK]["shape"] != ["B", "T"]:
        return arrays
    mask_BT = arrays[MASK]
    if not mask_BT.shape[1]:
        raise ValueError("these rows have no tokens at all: T must be at least 1")
    used = np.flatnonzero((mask_BT != 0).any(0))
    length = int(used[-1]) + 1 if len(used) else 1
    if limit is not None and length > limit:
        raise ValueError(f"rows of {length} tokens; this network takes at most {limit}")
    return {
        name: array[:, :length] if wanted[name]["shape"][1:2] == ["T"] else array
        for name, array in arrays.items()
    }
