"""The tail of a network, behind its last layer: a norm and its head, found in one run.

Modules are seen as they are called. What happens between them (a token is taken, positions are
averaged, a function without a module) is found by trying what networks do there, and comparing.

Letters: B batch rows, T tokens, H width, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiexit.backbones.layers.forward_calls import Call
from multiexit.backbones.pooling import pool_feature

Step = Callable[[Tensor, Tensor | None], Tensor]

STEPS: dict[str, Step] = {
    "first": lambda x, valid_BT: x[:, 0],
    "last": lambda x, valid_BT: pool_feature(x, "last", valid_BT, "tokens"),
    "mean": lambda x, valid_BT: pool_feature(x, "mean", valid_BT, "tokens"),
    "mean-of-all": lambda x, valid_BT: x.mean(1),
    "mean-but-first": lambda x, valid_BT: x[:, 1:].mean(1),
    "first-and-mean": lambda x, valid_BT: torch.cat([x[:, 0], x[:, 1:].mean(1)], -1),
    "first-and-mean-behind-registers": lambda x, valid_BT: torch.cat(
        [x[:, 0], x[:, 5:].mean(1)],
        -1,  # DINOv2's registers are four
    ),
    "mean-of-first-two": lambda x, valid_BT: (x[:, 0] + x[:, 1]) / 2,
    "max-of-all": lambda x, valid_BT: x.amax(1),
    "last-of-all": lambda x, valid_BT: x[:, -1],
    "image-mean": lambda x, valid_BT: x.mean((2, 3)),
    "image-mean-kept": lambda x, valid_BT: x.mean((2, 3), keepdim=True),
    "channels-last-mean": lambda x, valid_BT: x.mean((1, 2)),
    "sequence-mean": lambda x, valid_BT: x.mean(2),
    "transposed": lambda x, valid_BT: x.transpose(1, 2),
    "channels-last": lambda x, valid_BT: x.permute(0, 2, 3, 1),
    "channels-first": lambda x, valid_BT: x.permute(0, 3, 1, 2),
    "flat": lambda x, valid_BT: x.flatten(1),
    "positions-flat": lambda x, valid_BT: x.flatten(2),
    "tanh": lambda x, valid_BT: x.tanh(),
    "relu": lambda x, valid_BT: x.relu(),
    "gelu": lambda x, valid_BT: F.gelu(x),
    "gelu-tanh": lambda x, valid_BT: F.gelu(x, approximate="tanh"),
    "silu": lambda x, valid_BT: F.silu(x),
}
"""What lies between modules, by the name that a description has of it: `step(x, valid_BT)`."""

POOLS = ("first", "last", "last-of-all", "mean", "mean-of-all")
"""Steps that take one token or average them, and may as well come before a linear layer."""


class Tail(nn.Module):
    """Modules and steps one after another, [B, …] → [B, D]; steps see which tokens are real.

    Args:
        parts: modules, and names of `STEPS`.
    """

    takes_valid = True

    def __init__(self, parts: Sequence[nn.Module | str]):
        super().__init__()
        self.order = [part if isinstance(part, str) else None for part in parts]
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))

    def forward(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        x, parts = feature, iter(self.parts)
        for name in self.order:
            x = next(parts)(x) if name is None else STEPS[name](x, valid_BT)
        return x


def find_tail(
    calls: Sequence[Call], x: Tensor, target: Tensor, valid_BT: Tensor | None
) -> list[str] | None:
    """The names of modules and steps that lead from one tensor to another; None if none do.

    Modules without modules in them are tried first; then the outermost ones.

    Args:
        calls: of the modules behind the last layer, in the order in which they began.
        x: the last layer's feature.
        target: what the network gives.
        valid_BT: which tokens are real.

    Returns:
        Names of modules with a dot before them, names of `STEPS` without.
    """
    inner = [c for c in calls if not any(_is_within(other, c) for other in calls)]
    outer = [c for c in calls if not any(_is_within(c, other) for other in calls)]
    for candidates in (inner, outer):
        names = _path(candidates, x, target, valid_BT)
        if names is not None:
            return names
    return None


def _path(
    calls: Sequence[Call], x: Tensor, target: Tensor, valid_BT: Tensor | None
) -> list[str] | None:
    """The path, from its end: the last call that gives the target, and so on for what that read."""
    for index in reversed(range(len(calls))):
        call = calls[index]
        if call.input is None or call.output is None:
            continue
        steps = _steps(call.output, target, valid_BT)
        before = None if steps is None else _path(calls[:index], x, call.input, valid_BT)
        if steps is not None and before is not None:
            return [*before, f".{call.name}", *steps]
    return _steps(x, target, valid_BT)


def _steps(x: Tensor, target: Tensor, valid_BT: Tensor | None) -> list[str] | None:
    """Find at most two steps that make one tensor the other."""
    valid = None if valid_BT is None else valid_BT.shape
    for names in _leading(x.shape, target.shape, valid):
        if _same(_tried(names, x, valid_BT), target):
            return list(names)
    return None


def _leading(
    shape: torch.Size, target: torch.Size, valid: torch.Size | None
) -> Iterator[tuple[str, ...]]:
    """The at most two steps that lead from a shape to another one, fewer first."""
    if shape == target:
        yield ()
    after = _shapes_after(shape, valid)
    yield from ((one,) for one, middle in after.items() if middle == target)
    for one, middle in after.items():
        seconds = _shapes_after(middle, valid).items()
        yield from ((one, two) for two, end in seconds if end == target)


@cache
def _shapes_after(shape: torch.Size, valid: torch.Size | None) -> dict[str, torch.Size]:
    """Shapes that a tensor of a shape has after each step that it can take."""
    x = torch.empty(shape, device="meta")
    valid_BT = None if valid is None else torch.empty(valid, dtype=torch.bool, device="meta")
    tried = {name: _tried([name], x, valid_BT) for name in STEPS}
    return {name: made.shape for name, made in tried.items() if made is not None}


def _tried(names: Sequence[str], x: Tensor, valid_BT: Tensor | None) -> Tensor | None:
    try:
        for name in names:
            x = STEPS[name](x, valid_BT)
    except (RuntimeError, IndexError, ValueError):  # of another rank
        return None
    return x


def _same(one: Tensor | None, other: Tensor) -> bool:
    if one is None or one.shape != other.shape or not one.is_floating_point():
        return False
    scale = other.detach().abs().max().item() if other.numel() else 0.0
    return bool((one.to(other.dtype) - other).abs().max().item() <= 2e-6 * scale)


def _is_within(inner: Call, outer: Call) -> bool:
    return outer.began < inner.began and inner.ended < outer.ended


def split_norm(names: Sequence[str], module: nn.Module) -> tuple[str | None, list[str]]:
    """The norm that a tail of the network begins with, if it does, and the rest."""
    if names and names[0].startswith(".") and is_norm(module.get_submodule(names[0][1:])):
        return names[0][1:], list(names[1:])
    return None, list(names)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is some kind of norm, by its class's name."""
    return "norm" in type(module).__name__.lower()


def split_last(names: Sequence[str], module: nn.Module) -> tuple[list[str], str] | None:
    """A tail's beginning and its last layer; tokens that are pooled behind it are pooled before.

    None where the tail has no module, or ends with something else.
    """
    names = list(names)
    pools_behind = len(names) > 1 and names[-1] in POOLS and names[-2].startswith(".")
    if pools_behind and isinstance(module.get_submodule(names[-2][1:]), nn.Linear):
        names[-2:] = [names[-1], names[-2]]
    if not names or not names[-1].startswith("."):
        return None
    return names[:-1], names[-1][1:]


def parts(names: Sequence[str], module: nn.Module) -> list[nn.Module | str]:
    """A tail's modules and steps by their names."""
    return [module.get_submodule(n[1:]) if n.startswith(".") else n for n in names]


def pooling(names: Sequence[str]) -> Iterator[str]:
    """The ways in which a tail pools tokens, by their names in `pool_feature`."""
    known: dict[str, Any] = {"first": "first", "last": "last", "last-of-all": "last"}
    for name in names:
        if not name.startswith("."):
            yield known.get(name, "mean")
