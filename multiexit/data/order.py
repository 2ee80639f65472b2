"""The order of rows in an epoch: shuffled, grouped by length, dealt to processes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Indices = list[int]
Item = TypeVar("Item")


def split_epoch(size: int, seed: int, epoch: int, halves: bool) -> tuple[Indices, Indices]:
    """A new random order of the rows; cut 5:5 into D1 and D2, or the whole as both.

    D1 has the odd row. Reference: LeeBERT, section 4.4 and footnote 2.

    Args:
        size: how many rows there are.
        seed, epoch: what the order is drawn from.
        halves: whether to cut it.

    Returns:
        The rows of D1, and of D2.

    >>> first, second = split_epoch(5, seed=0, epoch=0, halves=True)
    >>> len(first), sorted(first + second)
    (3, [0, 1, 2, 3, 4])
    """
    order = np.random.default_rng([seed, epoch]).permutation(size).tolist()
    if not halves:
        return order, order
    middle = (size + 1) // 2
    return order[:middle], order[middle:]


def balance(rows: Indices, classes_N: np.ndarray, seed: int, epoch: int) -> Indices:
    """As many rows again, of which each class has the same number (or one more), in random order.

    A class with fewer rows than that has them several times, none twice more than another; of one
    with more rows a part is drawn. (Drawn with replacement, as by torch's `WeightedRandomSampler`,
    classes were equally frequent on average alone.)

    Args:
        rows: what is drawn from.
        classes_N: the class of every row of the set.
        seed, epoch: what the draw goes by.

    >>> drawn = balance([0, 1, 2, 3, 4, 5], np.array([0, 0, 0, 0, 0, 1]), seed=0, epoch=0)
    >>> len(drawn), drawn.count(5)
    (6, 3)
    """
    generator = np.random.default_rng([seed, epoch, 4])
    shuffled_N = generator.permutation(rows)
    by_class_N = shuffled_N[np.argsort(classes_N[shuffled_N], kind="stable")]
    _, firsts = np.unique(classes_N[by_class_N], return_index=True)
    parts = np.split(by_class_N, firsts[1:])
    share, rest = divmod(len(rows), len(parts))
    more = generator.permutation(len(parts)) < rest
    drawn = [np.resize(part, share + one) for part, one in zip(parts, more, strict=True)]
    return generator.permutation(np.concatenate(drawn)).tolist()


def group(
    order: Indices, batch_size: int, lengths: Sequence[int] | None, seed: int, epoch: int
) -> list[Indices]:
    """Cut an order into batches; where lengths are known, rows of like length go together.

    Stretches of 50 batches are sorted by length, cut, and the batches shuffled, so that little is
    padded and every epoch still differs.

    Args:
        order: the rows.
        batch_size: rows per batch; the last may have fewer.
        lengths: tokens of every row of the set, or None, which keeps the order.
        seed, epoch: what the batches' order is drawn from.

    >>> group([0, 1, 2, 3, 4], 2, None, seed=0, epoch=0)
    [[0, 1], [2, 3], [4]]
    """
    if lengths is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches = []
    stretch = 50 * batch_size
    for start in range(0, len(order), stretch):
        rows = sorted(order[start : start + stretch], key=lambda row: lengths[row], reverse=True)
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(batches))
    return [batches[i] for i in shuffled]


def shard(batches: list[Indices], rank: int, world: int) -> list[Indices]:
    """This process's part of each batch, all parts of one size (short ones start over).

    Args:
        batches: of all processes together.
        rank, world: this process, of how many.

    >>> shard([[0, 1, 2, 3], [4]], rank=1, world=2)
    [[2, 3], [4]]
    """
    if world == 1:
        return batches
    parts = []
    for batch in batches:
        size = -(-len(batch) // world)
        padded = [batch[i % len(batch)] for i in range(size * world)]
        parts.append(padded[rank * size : (rank + 1) * size])
    return parts


def deal(batches: list[Item], rank: int, world: int) -> list[Item]:
    """This process's whole batches, as many as every other's (the first come again to even out).

    Args:
        batches: of all processes.
        rank, world: this process, of how many.

    >>> deal(["a", "b", "c"], rank=1, world=2)
    ['b', 'a']
    """
    rounds = -(-len(batches) // world)
    return [batches[(turn * world + rank) % len(batches)] for turn in range(rounds)]


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
