"""What layers are called with beside the feature: trees, with the rows' tensors set apart.

Letters: B batch rows, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multiexit.backbones.layers.shell import Given, Made

PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, type(None))
"""What a layer may be called with beside tensors, and lists and dicts of all these."""

Path = tuple[Any, ...]
"""The layer's number, then `0` and a place or `1` and a name, and on into lists and dicts; or the
layer's number, `GIVES`, and the place in what it gives beside the feature."""

GIVES = "gives"


Kind = int | str
"""Of a tensor that layers are called with: which dimension its rows are; `"folded"` for several of
them per row; `"expanded"` for a row per row, or one for all, [B or 1, …]; `"all"` for what all rows
share and depends on their length; `"fixed"` for what is always the same."""


class PerRow(NamedTuple):
    """Stands for a tensor with a row per row; `carry["rows"]` has it with the rows first.

    Args:
        name: in `carry["rows"]`.
        dim: which dimension the rows are in the tensor.
    """

    name: str
    dim: int


class Folded(NamedTuple):
    """Stands for a tensor [B·n, …] with n rows per row; `carry["rows"]` has it as [B, n, …]."""

    name: str


class ForAll(NamedTuple):
    """Stands for a tensor that all rows share; `carry["rows"]` has it once for each row."""

    name: str


def stand_in(kind: Kind, name: str) -> PerRow | Folded | ForAll:
    """Make what stands for a tensor of this kind."""
    if isinstance(kind, int):
        return PerRow(name, kind)
    if kind == "expanded":
        return PerRow(name, 0)
    return Folded(name) if kind == "folded" else ForAll(name)


class CallPlan:
    """The layers' arguments beside the feature, with stand-ins for the rows' tensors.

    Plans of one structure are equal: rows with equal plans can go on together.

    Args:
        calls: by layer a tree: the feature's place, the arguments by place and by name; LayerDrop
            has layers that aren't called.
    """

    def __init__(self, calls: Mapping[int, Any]):
        self.calls = calls

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CallPlan) and _equal(self.calls, other.calls)

    def __hash__(self) -> int:
        return hash(len(self.calls))


def kinds_of(runs: Sequence[tuple[int, Any, Sequence[tuple[Path, Tensor]]]]) -> dict[Path, Kind]:
    """Which of the tensors that layers are called with have a row per row.

    Args:
        runs: for several batches the number of rows, a mark that batches of one length have in
            common, and the tensors by path.

    Returns:
        The kinds by path.

    Raises:
        ValueError: a tensor that depends on the batch otherwise than by one dimension.
    """
    seen: dict[Path, list[tuple[int, Any, Tensor]]] = {}
    for B, length, tensors in runs:
        for path, tensor in tensors:
            seen.setdefault(path, []).append((B, length, tensor))
    return {path: _kind(path, notes) for path, notes in seen.items()}


def kind_of_mask(path: Path, tensor: Any, B: int) -> Kind:
    """The kind of a mask [B or 1, heads or 1, T, T] that is made in some cases only.

    Raises:
        ValueError: anything else that layers weren't called with when the network was wrapped.
    """
    if not isinstance(tensor, Tensor) or tensor.ndim != 4 or tensor.shape[0] not in (1, B):
        raise new_argument(path)
    return 0 if tensor.shape[0] == B else "all"


def new_argument(path: Path) -> ValueError:
    """Make the error for what layers weren't called with when the network was wrapped."""
    return ValueError(
        f"layer {path[0]} is called with a tensor ({spelt(path)}) that it wasn't called with when "
        "the network was wrapped"
    )


def _kind(path: Path, notes: Sequence[tuple[int, Any, Tensor]]) -> Kind:
    batches = {B for B, _, _ in notes}
    dims = [dim for dim in range(min(t.ndim for *_, t in notes)) if _are_rows(dim, notes)]
    if len(batches) > 1 and dims[:1] == [0]:
        return 0
    folds = {_fold(B, tensor) for B, _, tensor in notes}
    if len(batches) > 1 and len(folds) == 1 and folds != {0}:
        return "folded"
    if len(batches) > 1 and dims:
        return dims[0]
    firsts = [(B, len(tensor) if tensor.ndim else 0) for B, _, tensor in notes]
    if {size for _, size in firsts} > {1} and all(size in (1, B) for B, size in firsts):
        return "expanded"
    shapes: dict[Any, set[torch.Size]] = {}
    for _, length, tensor in notes:
        shapes.setdefault(length, set()).add(tensor.shape)
    if len(batches) < 2 or any(len(same) > 1 for same in shapes.values()):
        raise ValueError(
            f"layer {path[0]} is called with a tensor ({spelt(path)}) that depends on the batch "
            "otherwise than by one dimension"
        )
    return "all" if len(set[Any].union(*shapes.values())) > 1 else "fixed"


def _are_rows(dim: int, notes: Sequence[tuple[int, Any, Tensor]]) -> bool:
    return all(tensor.shape[dim] == B for B, _, tensor in notes)


def _fold(B: int, tensor: Tensor) -> int:
    """The number of rows that a tensor has for each of B; 0 where that is no whole number."""
    return len(tensor) // B if tensor.ndim and len(tensor) % B == 0 else 0


def tensors_in(given: Sequence[Given]) -> list[tuple[Path, Tensor]]:
    """The tensors that layers are called with, by path."""
    tensors: list[tuple[Path, Tensor]] = []
    for call in given:
        mapped(
            (call.args, call.kwargs),
            lambda path, leaf: tensors.append((path, leaf)) if isinstance(leaf, Tensor) else None,
            (call.layer,),
        )
    return tensors


def made_in(given: Sequence[Given]) -> set[Made]:
    """The tensors that layers give beside the feature and others are called with."""
    made: set[Made] = set()
    for call in given:
        mapped(
            (call.args, call.kwargs),
            lambda path, leaf: made.add(leaf) if isinstance(leaf, Made) else None,
            (call.layer,),
        )
    return made


def mapped(tree: Any, stand_in: Callable[[Path, Any], Any], path: Path) -> Any:
    """The tree with something else in place of each tensor.

    Raises:
        ValueError: what can't be handed on from one stage to the next.
    """
    if isinstance(tree, Tensor | Made):
        return stand_in(path, tree)
    if isinstance(tree, Mapping):
        return {key: mapped(value, stand_in, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [mapped(value, stand_in, (*path, i)) for i, value in enumerate(tree)]
        return values if isinstance(tree, list) else tuple(values)
    if not isinstance(tree, PLAIN):
        raise ValueError(
            f"layer {path[0]} is called with a {type(tree).__name__} ({spelt(path)}), which can't "
            "be handed on from stage to stage"
        )
    return tree


def filled(tree: Any, rows: Mapping[str, Tensor]) -> Any:
    """The tree with the rows' tensors in place of their stand-ins."""
    if isinstance(tree, PerRow):
        tensor = rows[tree.name]
        return tensor.movedim(0, tree.dim) if tree.dim else tensor
    if isinstance(tree, Folded):
        return rows[tree.name].flatten(0, 1)
    if isinstance(tree, ForAll):
        return rows[tree.name][0]
    if isinstance(tree, Mapping):
        return {key: filled(value, rows) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [filled(value, rows) for value in tree]
        return values if isinstance(tree, list) else tuple(values)
    return tree


def by_row(tensor: Tensor, kind: Kind, B: int) -> Tensor:
    """Make a tensor of a kind one with the rows first, [B, …]."""
    if isinstance(kind, int):
        return tensor.movedim(kind, 0) if kind else tensor
    if kind == "expanded":
        return tensor.expand(B, *tensor.shape[1:])
    if kind == "folded":
        return tensor.unflatten(0, (B, -1))
    return tensor.unsqueeze(0).expand(B, *tensor.shape)


def _equal(one: Any, other: Any) -> bool:
    """Whether trees are equal; of fixed tensors, their shapes."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and one.dtype == other.dtype
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def spelt(path: Path) -> str:
    """A path as the name of a tensor: `3.attention_mask`."""
    layer, _, *rest = path
    return ".".join(map(str, (layer, *rest))) if path[1] != GIVES else f"{layer}.gives.{rest[0]}"
