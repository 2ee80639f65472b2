"""A library's network as it is: by the parts of its family, or by graph cuts; both compared."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from multiexit.backbones.base import Backbone
from multiexit.backbones.graphs import cuts
from multiexit.backbones.verify import check_answers


def stage_instance(
    model: Any,
    example: Tensor,
    spec: dict[str, Any] | None,
    layout: str | Sequence[str] | None,
    by_parts: Callable[[], Backbone] | None,
    last_feature: Callable[[Tensor], Tensor] | None = None,
) -> Backbone:
    """Stage a network of a library, with its own head as the backbone's classifier.

    Args:
        model: of the library.
        example: one input row.
        spec: by which the network is made again, or None.
        layout: of the features, for a network of no family where it can't be told.
        by_parts: stages one of a family; None is graph cuts.
        last_feature: what the network's own forward gives without a head, to compare one that has
            none.

    Raises:
        ValueError: a network that can't be staged, or one whose own forward does something else.
    """
    if by_parts is None:
        return cuts.from_module(model, example, layout, spec)
    if layout is not None:
        raise ValueError(f"{type(model).__name__} takes no layout=: its features' layout is known")
    backbone = by_parts()
    check_answers(backbone, model, last_feature)
    return backbone


def blocks_of(groups: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks of a ResNet's groups; a group that was replaced by one module is one block.

    One that was replaced by an `nn.Identity` has none.
    """
    blocks: list[nn.Module] = []
    for group in groups:
        if not isinstance(group, nn.Identity):
            blocks += group if isinstance(group, nn.Sequential) else [group]
    return blocks
