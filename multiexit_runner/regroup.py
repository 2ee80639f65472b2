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

    def take(self, chosen_B: np.ndarray) -> "Group":
        """Some of the rows."""
        return Group(
            self.exit,
            self.rows_B[chosen_B],
            {name: array[chosen_B] for name, array in self.arrays.items()},
        )


class Waiting:
    """Groups that wait at exits until they fill a batch.

    Args:
        num_exits: how many exits there are.
        batch_size: rows that make a full one.
    """

    def __init__(self, num_exits: int, batch_size: int):
        self.batch_size = batch_size
        self.groups: list[dict[Any, list[Group]]] = [{} for _ in range(num_exits)]

    def add(self, group: Group) -> None:
        """Let rows wait with those whose arrays differ in the number of rows alone."""
        shapes = tuple((name, array.shape[1:]) for name, array in group.arrays.items())
        self.groups[group.exit].setdefault(shapes, []).append(group)

    def full(self) -> Group | None:
        """The deepest rows that fill a batch, or None."""
        for by_shape in reversed(self.groups):
            for shapes, groups in by_shape.items():
                if sum(len(group.rows_B) for group in groups) >= self.batch_size:
                    return _merged(by_shape.pop(shapes))
        return None

    def any(self) -> Group | None:
        """The shallowest rows, so that they meet those that wait deeper; None if there are none."""
        for by_shape in self.groups:
            for shapes in by_shape:
                return _merged(by_shape.pop(shapes))
        return None


def _merged(groups: Sequence[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    rows_B = np.concatenate([group.rows_B for group in groups])
    return Group(groups[0].exit, rows_B, join([group.arrays for group in groups]))


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
