"""Networks that no adapter was written for: the general ways to stage one."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from multiexit.backbones.base import Backbone
from multiexit.backbones.graphs import cuts
from multiexit.backbones.layers import recorded_module


def from_module(
    module: nn.Module,
    example: Tensor,
    layout: str | Sequence[str] | None = None,
    spec: dict[str, Any] | None = None,
) -> Backbone:
    """Stage a network by the first way that it can be staged by.

    Args:
        module: takes one tensor.
        example: one input row.
        layout: of the features; None where the layers tell it.
        spec: by which the network is made again; what tells how it is staged is put in.

    Raises:
        ValueError: a network that no way suits, with what would work.
    """
    try:
        return cuts.from_module(module, example, layout, spec)
    except ValueError as error:
        try:
            return recorded_module.from_module(module, example, layout, spec)
        except Exception as other:  # whatever a network says to what it is tried on
            reason = " ".join(str(other).split()).rstrip(".")
            raise ValueError(f"{error}. Nor by its layers: {reason}") from other


def stage(module: nn.Module, example: Tensor, spec: dict[str, Any]) -> Backbone:
    """Stage a network as `from_module` did before, as its spec says; compare nothing.

    Args:
        module: made again by the spec.
        example: one input row.
        spec: that of what `from_module` gave.

    Raises:
        ValueError: a spec that doesn't say it, or not of this network.
    """
    if "chain" in spec:
        return recorded_module.stage(module, example, spec)
    if "cuts" not in spec:
        raise ValueError(f"it isn't said how a {type(module).__name__} is cut into stages")
    return cuts.stage(module, example, spec.get("layout"), spec)
