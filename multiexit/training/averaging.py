"""A moving average of a network's weights, which is judged and kept in their place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """An exponential moving average of what training moves; after step t = 0, 1, … of a phase

        θ̄ ← d·θ̄ + (1 − d)·θ    with d = min(decay, (1 + t) / (10 + t))

    θ are the trained parameters and all buffers of fractions, such as BatchNorm's statistics; what
    several modules share is one. It starts at the phase's first weights, which a run that is short
    for its decay forgets by the smaller d of the first steps, as in TensorFlow's and timm's.

    Args:
        model: on its device, with the gradients of what isn't trained switched off.
        decay: in (0, 1).

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> average = Average(model, decay=0.5)
        >>> for t in range(2):
        ...     _ = nn.init.ones_(model.weight)
        ...     average.update(t)
        >>> with average.used():  # d was 0.1 and 2 / 11
        ...     print(round(model.weight.item(), 4))
        0.9818
    """

    def __init__(self, model: nn.Module, decay: float):
        trained = [p for p in model.parameters() if p.requires_grad]
        fractions = [b for b in model.buffers() if b.is_floating_point() or b.is_complex()]
        self._own: list[Tensor] = [*trained, *fractions]
        self._decay = decay
        self._averages = _copies(self._own)

    def update(self, step: int) -> None:
        """Move the averages towards the present weights.

        Args:
            step: t.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averages, self._own, None)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the network has the averages; behind, its own weights again, to the last bit."""
        own = _copies(self._own)
        _fill(self._own, self._averages)
        try:
            yield
        finally:
            _fill(self._own, own)

    def state(self) -> list[Tensor]:
        """The averages."""
        return self._averages

    def load(self, averages: Sequence[Tensor] | None) -> None:
        """Take back what `state` gave; None begins anew at the present weights.

        Raises:
            ValueError, RuntimeError: they are of another network.
        """
        _fill(self._averages, self._own if averages is None else averages)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _fill(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
