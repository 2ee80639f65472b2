"""Modes of modules: evaluation for a while, train mode for what is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def quiet(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; outside, also after an error, every submodule has its own mode."""
    with as_found(*modules):
        for module in modules:
            module.eval()
        yield


@contextmanager
def as_found(*modules: nn.Module) -> Iterator[None]:
    """Whatever happens inside, modes and `requires_grad` are as before at the end."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    flags = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
        for p, trained in flags:
            if p.requires_grad != trained:
                p.requires_grad_(trained)


def train_mode(model: nn.Module) -> None:
    """Train mode, but for parts all of whose parameters are frozen: these are in evaluation.

    A part without parameters, such as dropout, goes with the smallest part around it that has some.
    """
    if any(True for _ in model.parameters()) and not any(
        p.requires_grad for p in model.parameters()
    ):
        model.eval()
        return
    model.training = True
    for child in model.children():
        train_mode(child)
