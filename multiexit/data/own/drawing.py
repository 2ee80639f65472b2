"""A validation set drawn from the training rows, and what is said of how splits fit together."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from multiexit.data import splits
from multiexit.data.own.notes import Notes
from multiexit.data.own.rows import Rows
from multiexit.data.own.targets import Targets, written_otherwise


def draw(part: Rows, goal: Targets, share: float, seed: int, notes: Notes) -> tuple[Tensor, Tensor]:
    """The rows that stay for training, and those drawn for a validation set, class by class.

    Args:
        part: the training rows.
        goal: what their labels say.
        share, seed: of the draw.
        notes: is told how many are drawn, and which classes have none there.

    Raises:
        ValueError: too few rows to draw any, or to leave any.
    """
    rest, held = splits.draw(part.labels, share, seed)
    if not len(rest) or not len(held):
        raise ValueError(
            f"a validation set can't be drawn from {len(part)} rows{_largest(part, goal)}: a share "
            f"of {share:g} of them is {'none' if len(rest) else 'all'}. Give more rows, or "
            "rows of their own to validate on (validation=…, --validation-data)"
        )
    by_class = ", class by class," if goal.problem == "classification" else ""
    notes(
        f"no validation set: {len(held)} of {len(part)} rows are drawn for one{by_class} with seed "
        f"{seed}"
    )
    for name, rows in (("the training set", rest), ("the drawn validation set", held)):
        few = _lacking(part.labels[rows], goal)
        few = [c for c in few if c in {*part.labels.tolist()}]
        if few:
            assert goal.names is not None
            counts = [
                f"{goal.names[number]} ({int((part.labels == number).sum())} in all)"
                for number in few[:8]
            ]
            notes(f"{name} has no row of {', '.join(counts)}{', …' * (len(few) > 8)}: too few")
    _say_same("the drawn validation set", part.labels[held], goal, notes)
    again = int(np.isin(part.keys[held.numpy()], part.keys[rest.numpy()]).sum())
    if again:
        notes(f"{again} of {len(held)} drawn rows are in the training set too, with equal inputs")
    return rest, held


def say_lacks(rows: Mapping[str, Rows], goal: Targets, notes: Notes) -> None:
    """Name classes that a split lacks, and values that are all the same."""
    for split, part in rows.items():
        _say_same(split, part.labels, goal, notes)
        lacking = _lacking(part.labels, goal)
        if lacking and goal.names is not None:
            names = ", ".join(goal.names[number] for number in lacking[:8])
            notes(f"{split} has no row of {names}" + ", …" * (len(lacking) > 8))


def say_repeats(rows: Mapping[str, Rows], notes: Notes) -> None:
    """Say how many rows of a split are in the training set too."""
    for split, part in rows.items():
        if split == "train" or "train" not in rows:
            continue
        again = int(np.isin(part.keys, rows["train"].keys).sum())
        if again:
            notes(f"{again} of {len(part)} rows of {split} are in the training set too")


def _say_same(name: str, labels_N: Tensor, goal: Targets, notes: Notes) -> None:
    if goal.problem == "regression" and bool((labels_N == labels_N[0]).all()):
        notes(
            f"{name} has no label but {labels_N[0]:g} ({len(labels_N)} rows), of which "
            "correlations and R² say nothing"
        )


def _lacking(labels_N: Tensor, goal: Targets) -> list[int]:
    """The classes that have no row."""
    if goal.problem != "classification":
        return []
    return (torch.bincount(labels_N, minlength=goal.num_classes) == 0).nonzero()[:, 0].tolist()


def _largest(part: Rows, goal: Targets) -> str:
    """How many rows the classes have."""
    if goal.problem != "classification" or goal.names is None:
        return ""
    counts = torch.bincount(part.labels, minlength=goal.num_classes)
    number = int(counts.argmax())
    why = written_otherwise(goal.names)
    return f", of which class {goal.names[number]!r} has most, {int(counts[number])}{why}"
