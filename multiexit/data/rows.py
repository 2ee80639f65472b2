"""A training set as the loop reads it: rows by index, in an order of the loop's own."""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multiexit import losses
from multiexit.data.batches import Indices, collate_of, group, lengths_of, shard, split_epoch
from multiexit.data.images import on_device
from multiexit.randomness import seeded


class Rows:
    """A data set and how its rows become batches.

    Args:
        source: a `Dataset`, or a `DataLoader`, of which the set and the collate function are taken.
        num_classes: labels are checked against it, where the set has them as `labels`; None where
            labels don't matter.
        device: where a set of images is to live; None leaves it.

    Raises:
        ValueError: something else, fewer than two rows, or labels outside the classes.
    """

    def __init__(
        self,
        source: Dataset[Any] | DataLoader[Any],
        num_classes: int | None,
        device: torch.device | None = None,
    ):
        dataset: Any = source.dataset if isinstance(source, DataLoader) else source
        by_index = isinstance(source, Dataset | DataLoader) and hasattr(dataset, "__len__")
        if not by_index:
            raise ValueError(
                "train must be a torch Dataset or DataLoader whose rows can be counted and taken "
                f"by index (they are split anew each epoch); got {type(dataset).__name__}"
            )
        labels = getattr(dataset, "labels", None)
        if isinstance(labels, Tensor) and num_classes is not None:
            losses.check_labels(labels, num_classes, "the training set")
        self.dataset = dataset if device is None else on_device(dataset, device)
        self.collate = source.collate_fn if isinstance(source, DataLoader) else collate_of(dataset)
        self.lengths = lengths_of(dataset)
        if len(self) < 2:
            raise ValueError(f"a training set needs at least 2 rows, got {len(self)}")

    def __len__(self) -> int:
        return len(self.dataset)

    def epoch(
        self, seed: int, epoch: int, halves: bool, batch_size: int, rank: int, world: int
    ) -> tuple[list[Indices], list[Indices]]:
        """This process's batches of D1 and of D2 in an epoch; `batch_size` rows on each process."""
        first, second = split_epoch(len(self), seed, epoch, halves)
        made = (
            group(rows, batch_size * world, self.lengths, seed, epoch) for rows in (first, second)
        )
        one, two = (shard(some, rank, world) for some in made)
        return one, two

    def fetch(self, rows: Indices, seed: tuple[int, ...]) -> Any:
        """One batch, as a `DataLoader` would make it; what is drawn for it comes from the seed."""
        drawn = np.random.SeedSequence(seed).generate_state(1)[0]
        many = getattr(self.dataset, "__getitems__", None)
        with seeded(int(drawn)):
            return self.collate(many(rows) if many else [self.dataset[row] for row in rows])

    def feed(
        self, order: list[Indices], workers: int, seed: tuple[int, ...], start: int = 0
    ) -> Iterator[Any]:
        """The batches of an order from number `start` on, one after another.

        What is drawn at random for a batch comes from the seed and the batch's number alone,
        whoever prepares it and wherever an epoch was interrupted.
        """
        return iter(
            DataLoader(
                _Seeded(self, order, seed),
                batch_size=None,
                sampler=range(start, len(order)),
                collate_fn=_as_it_is,
                num_workers=workers,
                worker_init_fn=_outlast_signals,
                # Its own: making an iterator must not draw from the run's.
                generator=torch.Generator(),
            )
        )


class _Seeded(Dataset[Any]):
    """Batches by number, made with generators seeded for each."""

    def __init__(self, rows: Rows, order: list[Indices], seed: tuple[int, ...]):
        self.rows, self.order, self.seed = rows, order, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Any:
        return self.rows.fetch(self.order[number], (*self.seed, number))


def _as_it_is(batch: Any) -> Any:
    return batch


def _outlast_signals(worker: int) -> None:
    """Signals to a whole group of processes are the trainer's to answer, with workers alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))
