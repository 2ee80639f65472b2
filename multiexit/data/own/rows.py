"""A split's rows that can be used: read one by one, with what stays in memory of each.

Texts are not held: they are read again to be tokenised. Letters: N rows.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiexit.data.fingerprint import fingerprint
from multiexit.data.order import chunks
from multiexit.data.own import image_checks, targets
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.choosing import Columns
from multiexit.data.own.notes import Notes
from multiexit.data.own.table import Table
from multiexit.data.own.targets import Targets
from multiexit.data.own.usable import Usable, usable
from multiexit.data.token_cache import CHUNK, Chunk, Digest, Texts


@dataclass(frozen=True)
class Rows:
    """A split.

    Args:
        labels: [N] classes or values, or [N, C].
        keys: [N], 64 bits of what each row's inputs hold.
        digest: of all of that, in its order.
        texts: to be read again; None of images.
        images: N files' names, bytes, images of Pillow, or `Stored`; empty of texts.
    """

    labels: Tensor
    keys: np.ndarray
    digest: str
    texts: Texts | None
    images: list[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Sixteen digits that tell these rows, their order and their labels from others."""
        return fingerprint([self.digest, self.labels])


def find_targets(
    table: Table, columns: Columns, problem: str | None, bad: BadRows, notes: Notes
) -> Targets:
    """What the labels of a training set say, in one pass over it.

    Args:
        table: the training set.
        columns: to read.
        problem: as named by the user, or None.
        bad: whether rows that can't be used are refused; none is added.
        notes: is told what was guessed.

    Raises:
        ValueError: no rows, rows that can't be used where they are refused, labels that are none.
    """
    if len(columns.labels) > 1:
        if problem not in (None, "multi-label"):
            raise ValueError(
                f"{len(columns.labels)} columns of labels are each yes or no, which is "
                f"problem='multi-label'; got {problem!r}: name one column, or leave it out"
            )
        return targets.of_columns(columns.labels)
    found = BadRows()
    rows = usable(table, columns, None, found)
    values = [_shared(row.label) for row in rows]
    if bad.aside is None or not values:
        found.settle()
    if not values:
        raise ValueError(f"{table.name}: no rows")
    column = next(iter(columns.labels))
    goal, guess = targets.found(values, problem, table.classes.get(column))
    notes(guess)
    return goal


def read(
    table: Table, columns: Columns, goal: Targets, bad: BadRows, how: dict[str, Any] | None
) -> Rows:
    """Read a split.

    Args:
        table: of the split.
        columns: to read.
        goal: what labels say.
        bad: gets the rows that can't be used.
        how: the preparation of images, each of which is opened; None of texts.
    """
    digest, keys = Digest(), array("Q")
    labels: list[Any] = []
    images: list[Any] = []
    rows: Iterable[Usable] = usable(table, columns, goal, bad)
    contents: Iterable[tuple[Usable, list[Any]]]
    if how is None:
        contents = ((row, row.inputs) for row in rows)
    else:
        contents = image_checks.with_content(rows, how, bad)
    for row, content in contents:
        keys.append(int.from_bytes(digest.add(content)[:8], "little"))
        labels.append(row.label)
        if how is not None:
            images.append(row.inputs[0])
    whole = torch.int64 if goal.problem == "classification" else torch.float32
    texts = None
    if how is None:
        paired = columns.text_pair is not None

        def again() -> Iterator[Chunk]:
            for part in chunks(usable(table, columns, goal, BadRows()), CHUNK):
                first, *second = ([row.inputs[i] for row in part] for i in range(1 + paired))
                yield first, second[0] if paired else None

        texts = Texts(len(labels), paired, digest.hexdigest(), again)
    return Rows(
        torch.tensor(labels, dtype=whole),
        np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64),
        digest.hexdigest(),
        texts,
        images,
    )


def _shared(value: Any) -> Any:
    """A label that is equal to others as one and the same object: most are few words."""
    return sys.intern(value) if type(value) is str else value
