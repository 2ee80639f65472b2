"""A network with some of its parts only, which it shares with the whole."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn


def part_of(
    module: nn.Module,
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
    parameters: bool = False,
) -> Any:
    """A shallow copy that has the same methods and settings, and shares the parts that it has.

    Args:
        module: the whole, which stays as it is.
        only: the names of the children to have; None is all.
        without: the names of children not to have.
        parameters: whether it has the module's own parameters and buffers, too.
    """
    part = copy.copy(module)
    part._modules = {
        name: child
        for name, child in module._modules.items()
        if (only is None or name in only) and name not in without
    }
    part._parameters = dict(module._parameters) if parameters else {}
    part._buffers = dict(module._buffers) if parameters else {}
    return part
