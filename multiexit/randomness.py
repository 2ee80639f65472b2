"""The generators that training may draw from: torch's, numpy's and Python's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """The states of all random generators that training may draw from."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def set_states(states: dict[str, Any]) -> None:
    """Set what `states` read."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(states["python"])


def layer_states(device: torch.device) -> list[Any]:
    """The states of the generators that layers on a device draw from.

    They are the CPU's, numpy's and Python's, which HuBERT masks with, and the device's own.
    """
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), np.random.get_state(), random.getstate(), *own]


def set_layer_states(states: list[Any], device: torch.device) -> None:
    """Set what `layer_states` read."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[3], device)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU's generators are seeded; behind, they are where they were."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
