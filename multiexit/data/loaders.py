"""The settings of a user's `DataLoader` that the trainer keeps, and the order of its rows.

N rows of a set, B rows of a batch.
"""

from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
)

from multiexit.data.fingerprint import fingerprint
from multiexit.randomness import seeded

Batches = list[list[Any]]


def check(loader: DataLoader[Any]) -> None:
    """Refuse settings that training can't keep.

    Those that change no batch are not looked at: workers are started anew each epoch, whatever
    `persistent_workers` says, memory is pinned where there is a GPU, and batches come in order.

    Raises:
        ValueError: names the setting, and what to do.
    """
    batches: Any = loader.batch_sampler
    check_counted(loader.dataset)
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise ValueError(
            f"a {type(loader).__name__} makes its batches in a way of its own, as loaders do that "
            "accelerate has prepared: give a plain DataLoader, the trainer shares rows out itself"
        )
    if batches is None:
        raise ValueError(
            "batch_size=None says that rows are batches already, which can't be put into an order "
            "anew: give a DataLoader a batch_size"
        )
    samplers = (loader.sampler, getattr(batches, "sampler", None))
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise ValueError(
            "sampler=DistributedSampler: the trainer shares rows out among processes itself; leave "
            "it out and set shuffle=True"
        )
    _num_batches(loader)


def check_counted(dataset: Any) -> None:
    """Refuse a set that is a stream, by a ValueError."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise uncounted(dataset)


def uncounted(dataset: Any) -> ValueError:
    """The error for anything that is no set of rows."""
    return ValueError(
        "train must be a torch Dataset or DataLoader whose rows can be counted and taken by index "
        f"(they are split anew each epoch); got {type(dataset).__name__}: put tensors into a "
        "torch.utils.data.TensorDataset(inputs, labels), other rows into a Dataset of your own "
        "with __len__ and __getitem__"
    )


def settings(loader: DataLoader[Any]) -> dict[str, int]:
    """The trainer's settings that a loader has too.

    Raises:
        ValueError: as `check` does.
    """
    check(loader)
    settings = {"batch_size": _batch_size(loader)}
    return {**settings, "workers": loader.num_workers} if loader.num_workers else settings


def worker_settings(loader: DataLoader[Any]) -> dict[str, Any]:
    """A loader's settings of its workers, for another loader."""
    if not loader.num_workers:
        return {}
    names = ("timeout", "prefetch_factor", "multiprocessing_context")
    return {name: getattr(loader, name) for name in names}


def shuffles(loader: DataLoader[Any]) -> bool:
    """Whether rows come in any random order, so that it may be the trainer's."""
    sampler: Any = loader.sampler
    return (
        type(loader.batch_sampler) is BatchSampler
        and type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
        and sampler.generator is None
        and loader.generator is None
    )


def drops_last(loader: DataLoader[Any] | None) -> bool:
    """Whether a last batch that isn't full is left out."""
    return loader is not None and getattr(loader.batch_sampler, "drop_last", False)


class SamplerBatches:
    """The batches that a loader's own sampler draws, epoch by epoch, and again after a restart.

    What the sampler draws from torch's, numpy's and Python's generators comes from (seed, epoch).
    One with a generator or a state of its own starts as it was given, and is gone through from the
    first epoch on, so that epoch e has what the loader itself would give there.
    """

    def __init__(self, loader: DataLoader[Any]):
        self._loader = loader
        self._epoch = -1
        self._batches: Batches = []
        self._sampler_and_generator: Any = None
        self._start()

    def epoch(self, seed: int, epoch: int, world: int = 1) -> Batches:
        """Give the batches of an epoch, of all processes.

        Args:
            seed: what the sampler draws from, with the epoch.
            epoch: counted from 0.
            world: how many processes there are.

        Raises:
            ValueError: more or fewer batches than the sampler's length, an empty one, or a row that
                isn't there; a batch sampler of one's own on several processes.
        """
        if world > 1 and type(self._loader.batch_sampler) is not BatchSampler:
            raise ValueError(
                f"{_sampler_name(self._loader)} makes batches for one process, and there are "
                f"{world}: give batch_size and a sampler"
            )
        if epoch < self._epoch:
            self._start()
        while self._epoch < epoch:
            self._epoch += 1
            self._batches = self._draw(seed, self._epoch)
        if world == 1:
            return self._batches
        rows = [row for batch in self._batches for row in batch]
        size = _batch_size(self._loader) * world
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [batch for batch in batches if len(batch) == size or not drops_last(self._loader)]

    def _start(self) -> None:
        loader, self._epoch = self._loader, -1
        shared = {id(part): part for part in (loader.dataset, loader)}
        try:
            self._sampler_and_generator = deepcopy((loader.batch_sampler, loader.generator), shared)
        except Exception as error:
            raise ValueError(
                f"{_sampler_name(loader)} can't be copied, so a run couldn't be repeated: {error}"
            ) from error

    def _draw(self, seed: int, epoch: int) -> Batches:
        sampler, generator = self._sampler_and_generator
        name = _sampler_name(self._loader)
        expected = _num_batches(self._loader)
        draw_seed = np.random.SeedSequence((seed, epoch, 3)).generate_state(1)[0]
        with seeded(int(draw_seed)):
            if generator is not None:  # as a loader does first
                torch.empty((), dtype=torch.int64).random_(generator=generator)
            batches = [list(batch) for batch in islice(sampler, expected + 1)]
        if len(batches) != expected:
            drawn = "more" if len(batches) > expected else len(batches)
            raise ValueError(
                f"{name} says that it has {expected} batches, and drew {drawn} in epoch {epoch}: "
                "the length of a run must be known, so give it the right __len__"
            )
        rows = len(self._loader.dataset)  # type: ignore[arg-type]
        for row in (row for batch in batches for row in batch):
            if isinstance(row, int) and not -rows <= row < rows:
                raise ValueError(f"{name} drew row {row}; there are 0 to {rows - 1}")
        if not all(batches):
            raise ValueError(f"{name} drew an empty batch in epoch {epoch}")
        return batches


def halves(batches: Batches, epoch: int) -> tuple[Batches, Batches]:
    """Share batches out: of each two one for D1 and one for D2, in the next epoch swapped.

    An odd one goes to D1.

    Raises:
        ValueError: fewer than two.
    """
    if len(batches) < 2:
        raise ValueError(
            "this method cuts the training set in two, so it needs at least 2 batches an epoch, "
            f"got {len(batches)}: make batches smaller"
        )
    pairs = [batches[i : i + 2] for i in range(0, len(batches), 2)]
    turn = epoch % 2
    return [pair[turn % len(pair)] for pair in pairs], [
        pair[1 - turn] for pair in pairs if len(pair) == 2
    ]


def identity(loader: DataLoader[Any]) -> dict[str, Any]:
    """The mark of a loader's order: what its sampler draws first, and `drop_last`."""
    if shuffles(loader):
        return {"drop_last": True} if loader.drop_last else {}
    first = fingerprint(SamplerBatches(loader).epoch(0, 0))
    return {"sampler": _sampler_name(loader), "first epoch": first}


def _batch_size(loader: DataLoader[Any]) -> int:
    """B; of a batch sampler that tells none, that of its first batch."""
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if isinstance(size, int) and size > 0:
        return size
    return max(len(batch) for batch in SamplerBatches(loader).epoch(0, 0))


def _num_batches(loader: DataLoader[Any]) -> int:
    """The number of an epoch's batches."""
    try:
        num_batches = len(loader.batch_sampler)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"{_sampler_name(loader)} has no length, and the length of a run must be known: give "
            "it a __len__"
        ) from error
    if num_batches < 1:
        raise ValueError(
            f"{_sampler_name(loader)} gives no batch of {len(loader.dataset)} rows"  # type: ignore[arg-type]
            + (
                f" with batch_size={loader.batch_size} and drop_last=True"
                if loader.drop_last
                else ""
            )
        )
    return num_batches


def _sampler_name(loader: DataLoader[Any]) -> str:
    batches, sampler = loader.batch_sampler, loader.sampler
    if type(batches) is BatchSampler and loader.batch_size is not None:
        return f"sampler={type(sampler).__name__}"
    return f"batch_sampler={type(batches).__name__}"
