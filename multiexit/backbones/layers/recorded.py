"""Any network whose trunk is a chain of layers: its own forward, taken apart.

Letters: B batch rows, T tokens, H width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.layers import shell as shells
from multiexit.backbones.layers.forward_calls import LayerChain
from multiexit.backbones.layers.shell import Given, Made
from multiexit.backbones.running import like_parameters

PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, type(None))
"""What a layer may be called with beside tensors, and lists and dicts of all these."""

Path = tuple[Any, ...]
"""The layer's number, then `0` and a place or `1` and a name, and on into lists and dicts; or the
layer's number, `GIVES`, and the place in what it gives beside the feature."""

GIVES = "gives"


class PerRow(NamedTuple):
    """Stands for a tensor with a row per row, in `carry["rows"]`."""

    name: str


class Folded(NamedTuple):
    """Stands for a tensor [B·n, …] with n rows per row; `carry["rows"]` has it as [B, n, …]."""

    name: str


class ForAll(NamedTuple):
    """Stands for a tensor that all rows share; `carry["rows"]` has it once for each row."""

    name: str


STAND_INS = {"row": PerRow, "folded": Folded, "all": ForAll}


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


class RecordedBackbone(Backbone):
    """Stages are a network's own layers, called as its own forward calls them.

    `start` runs the forward with layers that write down what they are given, which costs
    embeddings and masks alone; stage i then runs the layers, and the feature is
    `f_i = norm(x_{i+1})`, where norm is what the network applies behind its last layer.

    The submodules are shared with the network, not copied.

    Args:
        shell: the network with recorders in place of its layers (`shell.make_shell`).
        layers: the layers, in order.
        chain: which of them end a stage.
        kinds: by path of an argument, whether it has a row per row (`"row"`) or several of them
            (`"folded"`), is the same for all rows but of the batch's length (`"all"`), or always
            the same (`"fixed"`).
        norm: what comes behind the last layer, and belongs to each feature.
        example: inputs of one row, by name.
        facts: as `Backbone` takes them.
    """

    def __init__(
        self,
        shell: nn.Module,
        layers: Sequence[nn.Module],
        chain: LayerChain,
        kinds: Mapping[Path, str],
        norm: nn.Module | None,
        example: Mapping[str, Tensor],
        **facts: Any,
    ):
        super().__init__(**facts)
        self.shell = shell
        self.layers = nn.ModuleList(layers)
        self.chain = chain
        self.norm = nn.Identity() if norm is None else norm
        self._kinds = dict(kinds)
        self._example = dict(example)

    def begin(self, inputs: Mapping[str, Any]) -> Carry:
        """The carry before the first layer, from inputs by name."""
        given = shells.record(self.shell, inputs)
        rows, plan = self._planned(given)
        return {"x": given[0].x, "rows": rows, "plan": plan}

    def _planned(self, given: Sequence[Given]) -> tuple[dict[str, Tensor], "CallPlan"]:
        """The rows' tensors by name, and the plan with their stand-ins."""
        B = len(given[0].x)
        rows: dict[str, Tensor] = {}
        names: dict[int, str] = {}

        def stand_in(path: Path, leaf: Tensor | Made) -> Any:
            if isinstance(leaf, Made):
                path = (leaf.layer, GIVES, leaf.place)
            kind = self._kinds.get(path) or _kind_of_mask(path, leaf, B)
            if isinstance(leaf, Made):
                return STAND_INS[kind](spelt(path))
            if kind == "fixed":
                return leaf
            name = names.setdefault(id(leaf), spelt(path))
            if name not in rows:
                rows[name] = _by_row(leaf, kind, B)
            return STAND_INS[kind](name)

        calls = {
            call.layer: (call.place, *mapped((call.args, call.kwargs), stand_in, (call.layer,)))
            for call in given
        }
        return rows, CallPlan(calls)

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        x, rows, plan = carry["x"], dict(carry["rows"]), carry["plan"]
        first = self.chain.ends[index - 1] + 1 if index else 0
        called = [p for p in range(first, self.chain.ends[index] + 1) if p in plan.calls]
        for place in called:
            result = self._run(place, x, rows, plan)
            x = shells.feature_of(result)
            self._keep(place, result, rows, len(x))
        return {**carry, "x": x, "rows": rows}, self.norm(x)

    def _run(self, place: int, x: Tensor, rows: Mapping[str, Tensor], plan: CallPlan) -> Any:
        """A layer's result."""
        at, args, kwargs = _filled(plan.calls[place], rows)
        if isinstance(at, str):
            return self.layers[place](*args, **{**kwargs, at: x})
        return self.layers[place](*args[:at], x, *args[at + 1 :], **kwargs)

    def _keep(self, place: int, result: Any, rows: dict[str, Tensor], B: int) -> None:
        """Keep what later layers are called with of what this one gave."""
        for path, kind in self._kinds.items():
            if path[:2] == (place, GIVES):
                tensor = shells.result_at(result, path[2])
                rows[spelt(path)] = _by_row(tensor, kind, B)

    def stage_module(self, index: int) -> nn.Module:
        first = self.chain.ends[index - 1] + 1 if index else 0
        last = self.chain.ends[index]
        return self.layers[last] if first == last else self.layers[first : last + 1]

    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        return {
            name: like_parameters(tensor, self).expand(batch, *tensor.shape[1:])
            for name, tensor in self._example.items()
        }


def kinds_of(runs: Sequence[tuple[int, Any, Sequence[tuple[Path, Tensor]]]]) -> dict[Path, str]:
    """Which of the tensors that layers are called with have a row per row.

    Args:
        runs: for several batches the number of rows, a mark that batches of one length have in
            common, and the tensors by path.

    Returns:
        By path `"row"`; `"all"` for what all rows share and depends on their length; `"fixed"`.

    Raises:
        ValueError: a tensor that depends on the batch otherwise than by its first dimension.
    """
    seen: dict[Path, list[tuple[int, Any, Tensor]]] = {}
    for B, length, tensors in runs:
        for path, tensor in tensors:
            seen.setdefault(path, []).append((B, length, tensor))
    return {path: _kind(path, notes) for path, notes in seen.items()}


def _kind_of_mask(path: Path, tensor: Any, B: int) -> str:
    """The kind of a mask [B or 1, heads or 1, T, T] that is made in some cases only."""
    if not isinstance(tensor, Tensor) or tensor.ndim != 4 or tensor.shape[0] not in (1, B):
        raise ValueError(
            f"layer {path[0]} is called with a tensor ({spelt(path)}) that it wasn't called with "
            "when the network was wrapped"
        )
    return "row" if tensor.shape[0] == B else "all"


def _kind(path: Path, notes: Sequence[tuple[int, Any, Tensor]]) -> str:
    batches = {B for B, _, _ in notes}
    if len(batches) > 1 and all(tensor.ndim and len(tensor) == B for B, _, tensor in notes):
        return "row"
    folds = {_fold(B, tensor) for B, _, tensor in notes}
    if len(batches) > 1 and len(folds) == 1 and folds != {0}:
        return "folded"
    shapes: dict[Any, set[torch.Size]] = {}
    for _, length, tensor in notes:
        shapes.setdefault(length, set()).add(tensor.shape)
    if len(batches) < 2 or any(len(same) > 1 for same in shapes.values()):
        raise ValueError(
            f"layer {path[0]} is called with a tensor ({spelt(path)}) that depends on the batch "
            "otherwise than by its first dimension"
        )
    return "all" if len(set[Any].union(*shapes.values())) > 1 else "fixed"


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


# Trees of what a layer is called with


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


def _filled(tree: Any, rows: Mapping[str, Tensor]) -> Any:
    """The tree with the rows' tensors in place of their stand-ins."""
    if isinstance(tree, PerRow):
        return rows[tree.name]
    if isinstance(tree, Folded):
        return rows[tree.name].flatten(0, 1)
    if isinstance(tree, ForAll):
        return rows[tree.name][0]
    if isinstance(tree, Mapping):
        return {key: _filled(value, rows) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [_filled(value, rows) for value in tree]
        return values if isinstance(tree, list) else tuple(values)
    return tree


def _by_row(tensor: Tensor, kind: str, B: int) -> Tensor:
    """A tensor of a kind as [B, …]."""
    if kind == "row":
        return tensor
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
