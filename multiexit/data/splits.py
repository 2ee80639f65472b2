"""Parts of a split: held out, or the folds of a cross-validation.

Letters: N rows of a split.
"""

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from multiexit.arguments import check_share


class Split(Protocol):
    """The methods of a split that `holdout` needs; `TextDataset` and `ImageDataset` have them."""

    labels: Tensor

    def __len__(self) -> int: ...

    def subset(self, indices: Sequence[int] | Tensor) -> Self:
        """The rows `indices`, in that order, as a split of the same type."""
        ...

    def for_evaluation(self) -> Self:
        """The same rows without random augmentation."""
        ...


AnySplit = TypeVar("AnySplit", bound=Split)


def holdout(split: AnySplit, fraction: float, seed: int = 0) -> tuple[AnySplit, AnySplit]:
    """Hold a part of a split out, for validation or for calibration.

    Classes keep their shares: of each class's n rows, `round(fraction * n)` are held out. Float
    labels (regression) are drawn plainly. The same seed gives the same rows; both parts keep the
    order of the split.

    Args:
        split: a `TextDataset`, an `ImageDataset`, or anything with the methods of `Split`.
        fraction: the share that is held out, between 0 and 1, both excluded.
        seed: of the draw; torch's global generator is neither used nor changed.

    Returns:
        The rest and the held-out part, which is never augmented.

    Raises:
        ValueError: a fraction outside (0, 1), or one that leaves a part empty.

    Example:
        >>> import torch
        >>> from multiexit.data.images import ImageDataset
        >>> from multiexit.data.splits import holdout
        >>> images, labels = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), [0] * 6 + [1] * 4
        >>> rest, held_out = holdout(ImageDataset(images, labels, (0.5,), (0.25,)), 0.5)
        >>> rest.labels.tolist(), held_out.labels.tolist()
        ([0, 0, 0, 1, 1], [0, 0, 0, 1, 1])
    """
    rest, held = draw(split.labels, fraction, seed)
    if not len(rest) or not len(held):
        raise ValueError(
            f"fraction={fraction!r} of {len(split)} rows, class by class, leaves {len(rest)} and "
            f"{len(held)} rows; both parts need at least one"
        )
    return split.subset(rest), split.subset(held).for_evaluation()


def draw(labels_N: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows that `holdout` leaves, and those that it holds out: rising numbers, int64."""
    check_share("the fraction to hold out", fraction, "(0, 1)")
    classes = [None] if labels_N.is_floating_point() else labels_N.unique().tolist()
    generator = torch.Generator().manual_seed(seed)
    held_N = torch.zeros(len(labels_N), dtype=torch.bool)
    for label in classes:
        rows = torch.arange(len(labels_N)) if label is None else (labels_N == label).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator)
        held_N[rows[order[: round(fraction * len(rows))]]] = True
    return (~held_N).nonzero()[:, 0], held_N.nonzero()[:, 0]


def fold(split: AnySplit, index: int, folds: int, seed: int = 0) -> tuple[AnySplit, AnySplit]:
    """Hold out one of the parts of a cross-validation.

    The held-out parts of all `index` are disjoint and make up the split; classes keep their shares
    in each. Float labels (regression) are drawn plainly.

    Args:
        split: as for `holdout`.
        index: which part is held out, 0..folds-1.
        folds: how many parts; with 1 a fifth is held out.
        seed: of the draw.

    Returns:
        The rest and the held-out part, which is never augmented.

    Raises:
        ValueError: an index that isn't there, or more folds than rows.

    Example:
        >>> import torch
        >>> from multiexit.data.images import ImageDataset
        >>> from multiexit.data.splits import fold
        >>> images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
        >>> data = ImageDataset(images, [0, 1, 0, 1, 0, 1], (0.5,), (0.25,))
        >>> [fold(data, index, folds=3)[1].labels.sort().values.tolist() for index in range(3)]
        [[0, 1], [0, 1], [0, 1]]
    """
    if not 0 <= index < folds <= len(split):
        raise ValueError(f"no fold {index} of {folds} over {len(split)} rows")
    if folds == 1:
        return holdout(split, 0.2, seed)
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(split), generator=generator)
    if not split.labels.is_floating_point():  # class after class, so that dealing spreads each
        order_N = order_N[split.labels[order_N].argsort(stable=True)]
    held_N = torch.zeros(len(split), dtype=torch.bool)
    held_N[order_N[index::folds]] = True
    rest, held = ((mask.nonzero()[:, 0]) for mask in (~held_N, held_N))
    return split.subset(rest), split.subset(held).for_evaluation()


def row_numbers(indices: Sequence[int] | Tensor, total: int) -> Tensor:
    """Row numbers as an int64 tensor [n].

    Args:
        indices: row numbers in 0..total-1, in any order, repeats allowed.
        total: how many rows there are.

    Raises:
        ValueError: a mask, a fraction, or a row that isn't there.
    """
    rows = torch.as_tensor(indices)
    if rows.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if rows.ndim != 1 or rows.dtype == torch.bool or rows.is_floating_point():
        raise ValueError(
            f"rows must be a flat list of whole numbers, got {rows.dtype} of shape "
            f"{tuple(rows.shape)}; for a mask give mask.nonzero()[:, 0]"
        )
    bad = rows[(rows < 0) | (rows >= total)]
    if len(bad):
        raise ValueError(f"row {int(bad[0])} is not there; rows go from 0 to {total - 1}")
    return rows.to(torch.int64)
