"""A training set as the loop reads it: rows by index, in the loop's own order or a sampler's."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from multiexit.data import loaders
from multiexit.data.batches import collate_by, collate_of, is_rows, labels_of, lengths_of
from multiexit.data.images import on_device
from multiexit.data.order import Indices, group, shard, split_epoch
from multiexit.losses.labels import check_labels
from multiexit.randomness import seeded


class Rows:
    """A data set and how its rows become batches.

    Args:
        source: a `Dataset`, or a `DataLoader`, of which the set, the sampler or batch sampler, the
            batch size, `drop_last`, the collate function and what it says of workers are kept.
        num_classes: labels are checked against it, where the set has them as `labels`; None where
            labels don't matter.
        device: where a set of images is to live; None leaves it.
        known: makes a batch what the network takes, see `multiexit.data.columns`.

    Raises:
        ValueError: something else, fewer than two rows, labels outside the classes, or a setting of
            the loader that can't be kept.
    """

    def __init__(
        self,
        source: Dataset[Any] | DataLoader[Any],
        num_classes: int | None,
        device: torch.device | None = None,
        known: Callable[[Any], Any] = lambda batch: batch,
    ):
        loader = source if isinstance(source, DataLoader) else None
        dataset: Any = source.dataset if isinstance(source, DataLoader) else source
        loaders.check_counted(dataset)
        if loader is None and not is_rows(dataset):
            raise loaders.uncounted(dataset)
        if len(dataset) < 2:
            raise ValueError(f"a training set needs at least 2 rows, got {len(dataset)}")
        labels = labels_of(source)
        if labels is not None and num_classes is not None:
            check_labels(labels, num_classes, "the training set")
        if loader is not None:
            loaders.check(loader)
        self.dataset = dataset if device is None else on_device(dataset, device)
        self.collate = collate_by(loader) if loader is not None else collate_of(dataset)
        self.lengths = lengths_of(dataset)
        self.known = known
        self._loader = loader
        own = loader is None or loaders.shuffles(loader)
        self._drawn = None if own or loader is None else loaders.Drawn(loader)

    def __len__(self) -> int:
        return len(self.dataset)

    def epoch(
        self, seed: int, epoch: int, halves: bool, batch_size: int, rank: int, world: int
    ) -> tuple[list[Indices], list[Indices]]:
        """This process's batches of D1 and of D2 in an epoch; `batch_size` rows on each process.

        Raises:
            ValueError: what the loader's sampler draws is no epoch, or drop_last leaves nothing.
        """
        whole = loaders.only_whole(self._loader)
        if self._drawn is not None:
            drawn = self._drawn.epoch(seed, epoch, world)
            made = loaders.halves(drawn, epoch) if halves else (drawn, drawn)
        else:
            parts = split_epoch(len(self), seed, epoch, halves)
            size = batch_size * world
            made = [group(rows, size, self.lengths, seed, epoch) for rows in parts]
            if whole:
                made = [[some for some in batches if len(some) == size] for batches in made]
        if not all(made):
            raise ValueError(
                f"drop_last=True leaves no batch of {batch_size * world} rows"
                + (f" in each half of {len(self)}" if halves else f" of {len(self)}")
            )
        one, two = (shard(some, rank, world) for some in made)
        return one, two

    def fetch(self, rows: Indices, seed: tuple[int, ...]) -> Any:
        """One batch, as a `DataLoader` would make it; what is drawn for it comes from the seed."""
        return self.known(self.raw(rows, seed))

    def raw(self, rows: Indices, seed: tuple[int, ...]) -> Any:
        """A batch with all of its columns."""
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
        loader = self._loader
        init = None if loader is None else loader.worker_init_fn
        how = loaders.worker_settings(loader) if loader is not None and workers else {}
        read = DataLoader(
            _Seeded(self, order, seed),
            batch_size=None,
            sampler=range(start, len(order)),
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=partial(_begin_worker, init),
            # Its own: making an iterator must not draw from the run's.
            generator=torch.Generator(),
            **how,
        )
        return map(self.known, read)


class _Seeded(Dataset[Any]):
    """Batches by number, made with generators seeded for each."""

    def __init__(self, rows: Rows, order: list[Indices], seed: tuple[int, ...]):
        self.rows, self.order, self.seed = rows, order, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Any:
        return self.rows.raw(self.order[number], (*self.seed, number))


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(init: Callable[[int], Any] | None, worker: int) -> None:
    """What the loader's own `worker_init_fn` does, and then what the trainer needs.

    Signals to a whole group of processes are the trainer's to answer, with workers alive.
    """
    if init is not None:
        init(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.alarm(30))
