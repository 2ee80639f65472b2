"""How many rows of a user's data a model was trained on.

Letters: N rows.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from multiexit.data.fingerprint import fingerprint
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.loading import Found, Rows, read_split, tensor
from multiexit.data.own.targets import Targets
from multiexit.data.splits import holdout


@dataclass
class _Numbered:
    """The rows' numbers as a split, so that a validation set is drawn as it was in training."""

    labels: Tensor
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def subset(self, indices: Any) -> Self:
        rows = [int(index) for index in indices]
        return type(self)(self.labels[rows], [self.numbers[row] for row in rows])

    def for_evaluation(self) -> Self:
        return self


def rows_learned_from(
    found: Found,
    trained: Found,
    goal: Targets,
    share: float = 0.2,
    seed: int = 0,
    drawn_from: str | None = None,
) -> tuple[int, int]:
    """How many rows are among those that a model learned from, and how many there are.

    Texts are the same if they are written the same; images if they are the same file. Rows that
    were drawn for a validation set don't count, unless the training data has changed since.

    Args:
        found: the rows to count.
        trained: what the model was trained on.
        goal: the model's targets.
        share, seed, drawn_from: of the validation set's draw, as for
            `multiexit.data.own.loading.task_of`.
    """
    rows = _read(trained, "train", goal)
    learned = rows.inputs
    if list(trained.tables) == ["train"] and drawn_from == fingerprint([rows.inputs, rows.labels]):
        drawn = _Numbered(tensor(rows, goal), list(range(len(rows.labels))))
        learned = [rows.inputs[row] for row in holdout(drawn, share, seed)[0].numbers]
    key = _files if found.kind == "image" else _texts
    keys = {key(row) for row in learned}
    these = [row for split in found.tables for row in _read(found, split, goal).inputs]
    return sum(key(row) in keys for row in these), len(these)


def _read(found: Found, split: str, goal: Targets) -> Rows:
    """A split's rows; those that can't be used are left out."""
    table = found.tables[split]
    return read_split(table, found.columns, goal, None, BadRows(), lambda note: None)[0]


def _texts(row: list[Any]) -> tuple[str, ...]:
    return tuple(map(str, row))


def _files(row: list[Any]) -> Any:
    image = row[0]
    return os.path.realpath(image) if isinstance(image, str | Path) else repr(image)
