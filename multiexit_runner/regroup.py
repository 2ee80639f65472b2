"""Rows of several batches, put together so that deep graphs run full too.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiexit_runner.inputs import MASK, Arrays


@dataclass(slots=True)
class Group:
    """Rows on their way: their next exit, their places in the answer, and what graphs read."""

    exit: int
    rows_B: np.ndarray
    arrays: Arrays

    @property
    def running(self) -> int:
        """How many rows: those that stop leave at once."""
        return len(self.rows_B)

    def take(self, chosen_B: np.ndarray) -> "Group":
        """Some of the rows."""
        return Group(
            self.exit,
            self.rows_B[chosen_B],
            {name: array[chosen_B] for name, array in self.arrays.items()},
        )


def merge(groups: Sequence[Group]) -> Group:
    """Groups at the same exit as one."""
    rows_B = np.concatenate([group.rows_B for group in groups])
    return Group(groups[0].exit, rows_B, join([group.arrays for group in groups]))


def shape_key(group: Group) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What groups must share to be merged: the shapes of their arrays but for the rows."""
    return tuple((name, array.shape[1:]) for name, array in group.arrays.items())


def join(batches: Sequence[Arrays]) -> Arrays:
    """Batches one under another."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def pad(batches: Sequence[Arrays], specs: Mapping[str, dict[str, Any]]) -> list[Arrays]:
    """Batches of text filled up with zeros to the longest of them."""
    text_names = {name for name in batches[0] if specs[name]["shape"][1:2] == ["T"]}
    length = max((batch[name].shape[1] for batch in batches for name in text_names), default=0)

    def fill(name: str, array: np.ndarray) -> np.ndarray:
        if name not in text_names:
            return array
        return np.pad(array, [(0, 0), (0, length - array.shape[1]), *[(0, 0)] * (array.ndim - 2)])

    return [{name: fill(name, array) for name, array in batch.items()} for batch in batches]


def long_first(arrays: Arrays, rows: int) -> np.ndarray:
    """The order of rows by their last token, the longest first; of what is no text, its own."""
    if MASK not in arrays or arrays[MASK].ndim != 2:
        return np.arange(rows)
    places_T = np.arange(1, arrays[MASK].shape[1] + 1)
    length_B = (places_T * (arrays[MASK] != 0)).max(1)
    return np.argsort(-length_B, kind="stable")
