"""Which rows make up which batch, and how a batch is read.

A run's order depends on (seed, epoch) alone, so that it is the same on every process and after a
restart. N rows of a set, B rows of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

Indices = list[int]
T = TypeVar("T")


def split_epoch(size: int, seed: int, epoch: int, halves: bool) -> tuple[Indices, Indices]:
    """A new random order of the rows; cut 5:5 into D1 and D2, or the whole as both.

    D1 has the odd row. Reference: LeeBERT, section 4.4 and footnote 2.
    """
    order = np.random.default_rng([seed, epoch]).permutation(size).tolist()
    if not halves:
        return order, order
    middle = (size + 1) // 2
    return order[:middle], order[middle:]


def group(
    order: Indices, batch_size: int, lengths: Sequence[int] | None, seed: int, epoch: int
) -> list[Indices]:
    """Cut an order into batches; where lengths are known, rows of like length go together.

    Stretches of 50 batches are sorted by length, cut, and the batches shuffled, so that little is
    padded and every epoch still differs.
    """
    if lengths is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches = []
    stretch = 50 * batch_size
    for start in range(0, len(order), stretch):
        near = sorted(order[start : start + stretch], key=lambda row: lengths[row], reverse=True)
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(batches))
    return [batches[i] for i in shuffled]


def shard(batches: list[Indices], rank: int, world: int) -> list[Indices]:
    """This process's part of each batch, all parts of one size (short ones start over)."""
    if world == 1:
        return batches
    parts = []
    for batch in batches:
        size = -(-len(batch) // world)
        padded = [batch[i % len(batch)] for i in range(size * world)]
        parts.append(padded[rank * size : (rank + 1) * size])
    return parts


def deal(batches: list[T], rank: int, world: int) -> list[T]:
    """This process's whole batches, as many as every other's (the first come again to even out)."""
    rounds = -(-len(batches) // world)
    return [batches[(turn * world + rank) % len(batches)] for turn in range(rounds)]


def collate_of(dataset: Any) -> Any:
    """The set's own `collate` (or that of the set it is a `Subset` of), or torch's."""
    if isinstance(dataset, Subset):
        return collate_of(dataset.dataset)
    return getattr(dataset, "collate", default_collate)


def lengths_of(dataset: Any) -> Sequence[int] | None:
    """The set's own `lengths`, tokens per row, or None."""
    if isinstance(dataset, Subset):
        lengths = lengths_of(dataset.dataset)
        return None if lengths is None else [lengths[row] for row in dataset.indices]
    return getattr(dataset, "lengths", None)


def loader(
    data: Dataset[Any] | Iterable[Any], batch_size: int, rank: int = 0, world: int = 1
) -> tuple[Iterable[Any], Indices | None]:
    """This process's batches of a data set, long rows first where lengths are known; their rows.

    What is not a `Dataset` is taken as batches already, all of them on every process; its rows are
    not known, so None.
    """
    if not isinstance(data, Dataset):
        return data, None
    size, lengths = len(data), lengths_of(data)  # type: ignore[arg-type]
    order = list(range(size))
    if lengths is not None:
        order.sort(key=lambda row: lengths[row], reverse=True)
    batches = deal(group(order, batch_size, None, 0, 0), rank, world)
    # A generator of its own: a loader's iterator would draw a seed from the global one.
    read = DataLoader(
        data, batch_sampler=batches, collate_fn=collate_of(data), generator=torch.Generator()
    )
    return read, [row for batch in batches for row in batch]


def in_order(data: Dataset[Any] | Iterable[Any], batch_size: int) -> Iterable[Any]:
    """Batches of a data set in its own order; what is not a `Dataset` is taken as batches."""
    if not isinstance(data, Dataset):
        return data
    return DataLoader(data, batch_size, collate_fn=collate_of(data), generator=torch.Generator())


def unpack(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """A batch as positional inputs, named inputs and labels.

    Raises:
        ValueError: neither a pair `(inputs, labels)` nor a mapping with `"labels"`.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        return (), {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return (batch[0],), {}, batch[1]
    raise ValueError(
        "a batch is (inputs, labels) or a dict with 'labels', and its labels are a tensor [B]; got "
        + (f"keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__)
    )


def unpack_inputs(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named inputs of a batch whose labels, if it has any, don't matter."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping) and "labels" not in batch:
        return (), dict(batch)
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return tuple(batch), {}
    args, inputs, _ = unpack(batch)
    return args, inputs


def num_rows(batch: Any) -> int:
    """How many rows a batch has: its labels, or else its longest tensor, tell; or 1."""
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        return len(batch["labels"])
    if isinstance(batch, tuple | list | Mapping):
        values = batch.values() if isinstance(batch, Mapping) else batch
        return max((num_rows(value) for value in values), default=1)
    return len(batch) if isinstance(batch, Tensor) and batch.ndim else 1


def shares(some: Sequence[Any]) -> list[float]:
    """Each batch's share of the rows of all."""
    rows = [num_rows(batch) for batch in some]
    return [count / sum(rows) for count in rows]


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    some: list[T] = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def move(tree: Any, device: Any) -> Any:
    """The same structure with its tensors on a device, which is not waited for."""

    def there(tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
            tensor = tensor.pin_memory()  # from other memory the copy would wait
        return tensor.to(device, non_blocking=True)

    return _each(tree, there)


def channels_last(tree: Any) -> Any:
    """The same structure with its images [B, C, H, W] laid out with the channels innermost."""

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return _each(tree, laid_out)


def _each(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _each(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_each(value, change) for value in tree)
    return tree
