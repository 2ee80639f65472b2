"""Batches of data sets: how they are made, and how one is read.

A run's order depends on (seed, epoch) alone, so that it is the same on every process and after a
restart. N rows of a set, B rows of a batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)
from torch.utils.data import default_collate as torch_collate

from multiexit.data import hub
from multiexit.data.order import Indices, deal, group
from multiexit.losses.labels import IGNORED


def collate_of(dataset: Any) -> Any:
    """The set's own `collate` (or that of the sets it is a part or the sum of), or torch's.

    Raises:
        ValueError: sets put together whose rows are collated differently; a `collate` that takes
            more than rows.
    """
    if isinstance(dataset, Subset):
        return collate_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return _collate_of_all([collate_of(part) for part in dataset.datasets])
    if hub.from_hub(dataset):
        return hub.collate
    collate = getattr(dataset, "collate", default_collate)
    try:
        signature(collate).bind(())
    except TypeError as error:
        raise ValueError(
            f"collate of {type(dataset).__name__} must take a list of rows and nothing else "
            f"({error})"
        ) from error
    except ValueError:  # a builtin, which doesn't say
        pass
    return collate


def default_collate(rows: Any) -> Any:
    """Torch's own, which says what to do where rows don't fit together.

    Raises:
        ValueError: rows that don't.
    """
    try:
        return torch_collate(rows)
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"rows can't be put into one batch as they are ({' '.join(str(error).split())}): give "
            "a DataLoader with a collate_fn, or the set a `collate`"
        ) from error


def collate_by(loader: DataLoader[Any]) -> Any:
    """The function that makes a loader's batches: its `collate_fn`, or else the set's own."""
    collate_fn = loader.collate_fn
    return collate_of(loader.dataset) if collate_fn is torch_collate else collate_fn


def _collate_of_all(parts: Sequence[Any]) -> Any:
    def key(collate: Any) -> tuple[Any, ...]:
        tokenizer = getattr(getattr(collate, "__self__", None), "tokenizer", None)
        padding = ("pad_token_id", "pad_token_type_id", "padding_side")
        function = getattr(collate, "__func__", collate)
        return function, *(getattr(tokenizer, name, None) for name in padding)

    if any(key(part) != key(parts[0]) for part in parts):
        raise ValueError(
            "the parts of a ConcatDataset collate their rows differently: give a DataLoader with a "
            "collate_fn for all of them"
        )
    return parts[0]


def lengths_of(dataset: Any) -> Sequence[int] | None:
    """The set's own `lengths`, tokens per row, or None.

    Raises:
        ValueError: a method.
    """
    if isinstance(dataset, Subset):
        lengths = lengths_of(dataset.dataset)
        return None if lengths is None else [lengths[row] for row in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [lengths_of(part) for part in dataset.datasets]
        return None if None in parts else [length for lengths in parts for length in lengths or ()]
    lengths = getattr(dataset, "lengths", None)
    if callable(lengths):
        raise ValueError(
            f"lengths of {type(dataset).__name__} is a method, and must be a list of the tokens in "
            "each row: put @property above it"
        )
    return lengths


def labels_of(source: Any) -> Tensor | None:
    """A set's labels [N], or a loader's; None where they are known only when rows are read.

    They are the set's own `labels`, a column of `datasets`, or the second of a `TensorDataset`'s
    two tensors, where it is torch that makes its batches.
    """
    if not isinstance(source, DataLoader):
        return _labels(source, pairs=True)
    return _labels(source.dataset, pairs=source.collate_fn is torch_collate)


def _labels(dataset: Any, pairs: bool) -> Tensor | None:
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset, pairs)
        return None if labels is None else labels[torch.as_tensor(dataset.indices).long()]
    if isinstance(dataset, ConcatDataset):
        parts = [_labels(part, pairs) for part in dataset.datasets]
        return None if any(labels is None for labels in parts) else torch.cat(parts)  # type: ignore[arg-type]
    if hub.from_hub(dataset):
        return hub.labels(dataset)
    if pairs and type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return dataset.tensors[1]
    labels = getattr(dataset, "labels", None)
    return labels if isinstance(labels, Tensor) else None


def is_rows(data: Any) -> bool:
    """Whether something gives rows, of torch or of `datasets`; if not, it gives batches."""
    return isinstance(data, Dataset) or hub.from_hub(data)


def is_indexable(data: Any) -> bool:
    """Whether it gives rows that can be counted and taken by their numbers."""
    return is_rows(data) and hasattr(data, "__len__") and not isinstance(data, IterableDataset)


def loader(
    data: Any, batch_size: int, rank: int = 0, world: int = 1
) -> tuple[Iterable[Any], Indices | None]:
    """This process's batches of a data set, long rows first where lengths are known; their rows.

    What is not a `Dataset` is taken as batches already, all of them on every process; its rows are
    not known, so None. So are those of an `IterableDataset`.

    Args:
        data: a data set, or an iterable of batches.
        batch_size: rows per batch, where `data` doesn't say.
        rank, world: this process, of how many.

    Returns:
        The batches, and the rows in their order.
    """
    if not is_indexable(data):
        return in_order(data, batch_size), None
    size, lengths = len(data), lengths_of(data)
    order = list(range(size))
    if lengths is not None:
        order.sort(key=lambda row: lengths[row], reverse=True)
    batches = deal(group(order, batch_size, None, 0, 0), rank, world)
    # A generator of its own: a loader's iterator would draw a seed from the global one.
    data_loader = DataLoader(
        data, batch_sampler=batches, collate_fn=collate_of(data), generator=torch.Generator()
    )
    return data_loader, [row for batch in batches for row in batch]


def in_order(data: Any, batch_size: int) -> Iterable[Any]:
    """Batches of a data set in its own order; what is not a `Dataset` is taken as batches."""
    if isinstance(data, DataLoader):
        data_loader = copy(data)
        data_loader.collate_fn = collate_by(data)
        return data_loader
    if not is_rows(data):
        return data
    return DataLoader(data, batch_size, collate_fn=collate_of(data), generator=torch.Generator())


def as_mapping(batch: Any) -> Any:
    """A pair `({…}, labels)` as one mapping, and a column `label` or `label_ids` as `labels`."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
        return {**batch[0], "labels": batch[1]}
    if isinstance(batch, Mapping) and "labels" not in batch:
        column = next((name for name in hub.LABELS if name in batch), None)
        if column is None:
            return batch
        return {"labels" if name == column else name: value for name, value in batch.items()}
    return batch


def unpack(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """A batch as positional inputs, named inputs and labels [B].

    Raises:
        ValueError: neither a pair `(inputs, labels)` nor a mapping with `"labels"`.
    """
    batch = as_mapping(batch)
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        return (), {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return (batch[0],), {}, batch[1]
    got = f"keys {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        labels = batch[1]
    if isinstance(labels, tuple | list) and labels and isinstance(labels[0], str):
        got = f"words such as {labels[0]!r}: give class numbers, classes.index(name)"
    if isinstance(batch, tuple | list) and len(batch) > 2:
        got = (
            f"{len(batch)} parts: several inputs go by name, as in a dict; weights of rows aren't "
            "read (TrainConfig's class_weights and sampling weigh classes)"
        )
    if any(hasattr(x, "__array__") and not isinstance(x, Tensor) for x in (batch, labels)):
        got = "an array: make tensors of arrays, torch.from_numpy(x)"
    raise ValueError(
        "a batch is (inputs, labels) or a dict with 'labels', and its labels are a tensor [B]; got "
        + got
    )


def has_labels(batch: Any) -> bool:
    """Whether a batch has labels; -1 everywhere, as of texts without any, are none."""
    batch = as_mapping(batch)
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    else:
        labels = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    whole = isinstance(labels, Tensor) and labels.dtype == torch.int64
    return labels is not None and not (whole and bool((labels == -1).all()))


def unpack_inputs(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named inputs of a batch whose labels, if it has any, don't matter."""
    batch = as_mapping(batch)
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping) and "labels" not in batch:
        return (), dict(batch)
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return tuple(batch), {}
    args, inputs, _ = unpack(batch)
    return args, inputs


def num_rows(batch: Any) -> int:
    """The number of a batch's rows: its labels, or else its longest tensor, tell; or 1."""
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        return len(batch["labels"])
    if isinstance(batch, tuple | list | Mapping):
        values = batch.values() if isinstance(batch, Mapping) else batch
        return max((num_rows(value) for value in values), default=1)
    return len(batch) if isinstance(batch, Tensor) and batch.ndim else 1


def move(tree: Any, device: Any) -> Any:
    """The same structure with its tensors on a device, which is not waited for.

    Raises:
        ValueError: a tensor of the meta device.
    """

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_meta and torch.device(device).type != "meta":
            raise ValueError("a tensor of the batch is on the meta device, so it has no values")
        if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
            tensor = tensor.pin_memory()  # from other memory the copy would wait
        return tensor.to(device, non_blocking=True)

    return map_tensors(tree, moved)


def channels_last(tree: Any) -> Any:
    """The same structure with its images [B, C, H, W] laid out with the channels innermost."""

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return map_tensors(tree, laid_out)


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure, of dicts, tuples and lists, with each of its tensors changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(value, change) for value in tree)
    return tree


def with_shares(
    batches: Sequence[Any], count: Callable[[Any], int] = num_rows
) -> list[tuple[Any, float]]:
    """Batches, each with its share of the rows of all, or of what else counts in their means."""
    counts = [count(batch) for batch in batches]
    total = max(1, sum(counts))
    return [(batch, count / total) for batch, count in zip(batches, counts, strict=True)]


def num_learned_tokens(batch: Any) -> int:
    """The number of a batch's tokens that have a label; without labels all that are asked for."""
    if not isinstance(batch, Mapping):
        return num_rows(batch)
    labels = batch.get("labels")
    if isinstance(labels, Tensor):
        return int((labels != IGNORED).sum())
    masks = [batch[name] for name in ("answer_mask", "attention_mask") if name in batch]
    if not masks:
        return num_rows(batch)
    return int(torch.stack([mask.bool() for mask in masks]).all(0).sum())
