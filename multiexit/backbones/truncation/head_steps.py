"""Steps of a network's head, one after another, so that two heads can be compared."""

from torch import nn

from multiexit.backbones.classifier import FirstToken, Pool
from multiexit.backbones.layers.tails import Tail

Step = str | nn.Module
"""A module; or by name how tokens are pooled, or a function."""


def steps(read: nn.Module, linear: nn.Module) -> list[Step]:
    """The steps of `linear(read(feature))`, without what does nothing in evaluation.

    Args:
        read, linear: of a `NetworkHead`.
    """
    if isinstance(read, Pool):
        return [read.pool, linear]
    before: list[Step] = [read]
    if isinstance(read, FirstToken):
        before = ["first", *read.layers]
    elif isinstance(read, Tail):
        modules = iter(read.parts)
        before = [next(modules) if name is None else name for name in read.order]
    acting = [step for step in before if not isinstance(step, nn.Dropout | nn.Identity)]
    return [*("tanh" if isinstance(step, nn.Tanh) else step for step in acting), linear]


def spelt(steps: list[Step]) -> str:
    """The steps in words: two heads of the same ones differ in weights and settings alone."""
    return ", ".join(step if isinstance(step, str) else type(step).__name__ for step in steps)
