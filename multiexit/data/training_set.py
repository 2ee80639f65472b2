"""A training set as the loop reads it: rows by index, in the loop's own order or a sampler's."""

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multiexit.data import loaders
from multiexit.data.batches import collate_by, collate_of, is_rows, labels_of, lengths_of
from multiexit.data.images import on_device
from multiexit.data.order import Indices, balance, group, shard, split_epoch
from multiexit.losses.labels import check_labels
from multiexit.randomness import seeded


class TrainingSet:
    """A data set and how its rows become batches.

    Args:
        source: a `Dataset`, or a `DataLoader`, of which the set, the sampler or batch sampler, the
            batch size, `drop_last`, the collate function and what it says of workers are kept.
        num_classes: labels are checked against it, where the set has them as `labels`; None where
            labels don't matter.
        device: where a set of images is to live; None leaves it.
        select_columns: makes a batch what the network takes, see `multiexit.data.columns`.
        problem: what labels mean, a key of `multiexit.problems.PROBLEMS`.
        balanced: whether rows are drawn so that each class comes as often as every other.
        mixing: what mixes the rows of the batches that `feed` gives, see `multiexit.data.mixing`.

    Raises:
        ValueError: something else, fewer than two rows, labels outside the classes, or a setting of
            the loader that can't be kept; `balanced` with an order or labels that it can't go by.
    """

    def __init__(
        self,
        source: Dataset[Any] | DataLoader[Any],
        num_classes: int | None,
        device: torch.device | None = None,
        select_columns: Callable[[Any], Any] = lambda batch: batch,
        problem: str | None = None,
        balanced: bool = False,
        mixing: Callable[[Any], Any] | None = None,
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
            check_labels(labels, num_classes, "the training set", problem)
        if loader is not None:
            loaders.check(loader)
        self.dataset = dataset if device is None else on_device(dataset, device)
        self.collate = collate_by(loader) if loader is not None else collate_of(dataset)
        self.lengths = lengths_of(dataset)
        self.select_columns = select_columns
        self._loader = loader
        self._sampler_batches = None  # where the order is the trainer's own
        if loader is not None and not loaders.shuffles(loader):
            self._sampler_batches = loaders.SamplerBatches(loader)
        self._classes_N = self._classes(labels) if balanced else None
        self._mixing = mixing

    def _classes(self, labels: Tensor | None) -> np.ndarray:
        if self._sampler_batches is not None:
            raise ValueError(
                "sampling='balanced' draws the rows itself, and this DataLoader has an order of "
                "its own: give it shuffle=True and no sampler, or leave sampling out"
            )
        if labels is None or labels.ndim != 1:
            what = "none" if labels is None else f"shares of classes, {tuple(labels.shape)}"
            raise ValueError(
                "sampling='balanced' goes by each row's class, known before rows are read, in the "
                f"training set's `labels` [N]; it has {what}"
            )
        return labels.cpu().numpy()

    def __len__(self) -> int:
        return len(self.dataset)

    def epoch(
        self, seed: int, epoch: int, halves: bool, batch_size: int, rank: int, world: int
    ) -> tuple[list[Indices], list[Indices]]:
        """Cut an epoch into this process's batches of D1 and of D2.

        Args:
            seed, epoch: what the order is drawn from.
            halves: whether D1 and D2 are halves, or both the whole set.
            batch_size: rows per batch on each process.
            rank, world: this process, of how many.

        Returns:
            The rows of each batch of D1, and of D2.

        Raises:
            ValueError: what the loader's sampler draws is no epoch, or drop_last leaves nothing.
        """
        if self._sampler_batches is not None:
            order = self._sampler_batches.epoch(seed, epoch, world)
            orders = loaders.halves(order, epoch) if halves else (order, order)
        else:
            parts = split_epoch(len(self), seed, epoch, halves)
            if self._classes_N is not None:
                parts = [balance(rows, self._classes_N, seed, epoch) for rows in parts]
            size = batch_size * world
            orders = [group(rows, size, self.lengths, seed, epoch) for rows in parts]
            if loaders.drops_last(self._loader):
                orders = [[batch for batch in order if len(batch) == size] for order in orders]
        if not all(orders):
            raise ValueError(
                f"drop_last=True leaves no batch of {batch_size * world} rows"
                + (f" in each half of {len(self)}" if halves else f" of {len(self)}")
            )
        first, second = (shard(order, rank, world) for order in orders)
        return first, second

    def fetch(self, rows: Indices, seed: tuple[int, ...]) -> Any:
        """Make one batch, as a `DataLoader` would; what is drawn for it comes from the seed."""
        return self.select_columns(self.raw(rows, seed))

    def raw(self, rows: Indices, seed: tuple[int, ...], mixed: bool = False) -> Any:
        """Make a batch with all of its columns, and mix its rows if they are to be."""
        draw_seed = np.random.SeedSequence(seed).generate_state(1)[0]
        getitems = getattr(self.dataset, "__getitems__", None)
        with seeded(int(draw_seed)):
            batch = self.collate(
                getitems(rows) if getitems else [self.dataset[row] for row in rows]
            )
            return batch if self._mixing is None or not mixed else self._mixing(batch)

    def feed(
        self, order: list[Indices], workers: int, seed: tuple[int, ...], start: int = 0
    ) -> Iterator[Any]:
        """Give the batches of an order, one after another.

        What is drawn at random for a batch comes from the seed and the batch's number alone,
        whoever prepares it and wherever an epoch was interrupted.

        Args:
            order: the rows of each batch.
            workers: processes that prepare them; 0 is this one.
            seed: of what is drawn.
            start: the number of the first batch that is given.
        """
        loader = self._loader
        worker_init = None if loader is None else loader.worker_init_fn
        options = loaders.worker_settings(loader) if loader is not None and workers else {}
        batches = DataLoader(
            _SeededBatches(self, order, seed),
            batch_size=None,
            sampler=range(start, len(order)),
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=partial(_begin_worker, worker_init),
            # Its own: making an iterator must not draw from the run's.
            generator=torch.Generator(),
            **options,
        )
        return map(self.select_columns, batches)


class _SeededBatches(Dataset[Any]):
    """Batches by number, made with generators seeded for each."""

    def __init__(self, training_set: TrainingSet, order: list[Indices], seed: tuple[int, ...]):
        self.training_set, self.order, self.seed = training_set, order, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Any:
        return self.training_set.raw(self.order[number], (*self.seed, number), mixed=True)


def _unchanged(batch: Any) -> Any:
    return batch


def _begin_worker(worker_init: Callable[[int], Any] | None, worker: int) -> None:
    """Run the loader's own `worker_init_fn`, and then do what the trainer needs.

    Signals to a whole group of processes are the trainer's to answer, with workers alive.
    """
    if worker_init is not None:
        worker_init(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.alarm(30))
