"""Batch norms whose statistics stay, or are fed once for a batch seen twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises by the batch as in training, and its running statistics stay."""
    norms = _batch_norms(model)
    tracking = [m.track_running_stats for m in norms]
    for m in norms:
        if m.training:
            m.track_running_stats = False
    try:
        yield
    finally:
        for m, tracked in zip(norms, tracking, strict=True):
            m.track_running_stats = tracked


class RepeatedStatistics:
    """Inside, BatchNorm does again what it did, but its running statistics move by 0.

    A class, since surgery goes backward, and in here, more than once.
    """

    def __init__(self, model: nn.Module):
        self._batch_norms = _batch_norms(model)

    def __enter__(self) -> None:
        self._saved = [(m.momentum, m.num_batches_tracked) for m in self._batch_norms]
        for m in self._batch_norms:
            m.momentum, m.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for m, saved in zip(self._batch_norms, self._saved, strict=True):
            m.momentum, m.num_batches_tracked = saved


def _batch_norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
