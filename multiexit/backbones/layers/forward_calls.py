"""The calls of a network's modules in one run of its forward, and the chain of layers in them.

A chain is what a trunk loops over: modules that run once each, in order, where each reads the very
tensor that the one before it gave.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.runtime import evaluating

LISTS = (nn.ModuleList, nn.Sequential)


class Call(NamedTuple):
    """One call of a module.

    Args:
        name: of the module, in the network.
        input, output: the first tensor that it read, and the first that it gave; None of neither.
        read, gave: how often these had been written to in place by then.
        result: all that it gave.
        began, ended: its place among the beginnings and ends of all calls.
    """

    name: str
    input: Tensor | None
    output: Tensor | None
    read: int
    gave: int
    result: Any
    began: int
    ended: int


class LayerChain(NamedTuple):
    """The layers that run one after another.

    Args:
        layers: their names in the network.
        ends: places among `layers` where a stage ends; what lies between two ends is one stage.
    """

    layers: tuple[str, ...]
    ends: tuple[int, ...]


def trace(
    module: nn.Module, inputs: Mapping[str, Any], names: Collection[str] | None = None
) -> tuple[list[Call], Any]:
    """Run a network once, in evaluation mode, and write down the calls of its modules.

    Args:
        module: the network.
        inputs: by name.
        names: of the modules whose calls are written down; None for all.

    Returns:
        The calls in the order in which they ended, and what the network gave.
    """
    calls: list[Call] = []
    clock = iter(range(10**9))

    def noted(name: str, forward: Any) -> Any:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            began, x = next(clock), _first((args, kwargs))
            read = _writes(x)
            result = forward(*args, **kwargs)
            y = _first(result)
            calls.append(Call(name, x, y, read, _writes(y), result, began, next(clock)))
            return result

        return run

    # Some networks call `layer.forward`, of which hooks don't hear.
    own = {part: vars(part).get("forward") for part in module.modules()}
    try:
        for name, part in module.named_modules():
            if names is None or name in names:
                part.forward = noted(name, part.forward)
        with evaluating(module), torch.no_grad():
            output = module(**inputs)
    finally:
        for part, forward in own.items():
            vars(part).pop("forward", None)
            if forward is not None:
                part.forward = forward
    return calls, output


def find_chain(module: nn.Module, calls: Sequence[Call]) -> LayerChain | None:
    """The chain in a network's lists of modules, None where there is none.

    Lists whose names differ in numbers only, such as `stages.0.layers` and `stages.1.layers`, are
    taken together; modules that link two of their layers belong to the later one's stage.

    Of several chains, those with less than half as many weights as the largest are out. Then comes
    first the outermost whose layers all read and give tensors of one shape, as the blocks of a
    transformer do; where there is none, as in pyramids, layers of one class; then the longest.

    Args:
        module: the network.
        calls: of one run of it.
    """
    chains = [chain for names in _groups(module) if (chain := _chain(names, calls)) is not None]
    weights = [sum(p.numel() for p in _parameters(module, chain)) for chain in chains]
    shapes = {call.name: {_shape(call.input), _shape(call.output)} for call in calls}

    def rank(chain: LayerChain) -> tuple[bool, int, bool, int]:
        last = [chain.layers[end] for end in chain.ends]
        is_even = len({shape for name in last for shape in shapes[name]}) == 1
        is_alike = len({type(module.get_submodule(name)) for name in last}) == 1
        return is_even, -last[0].count(".") if is_even else 0, is_alike, len(last)

    large = [c for c, w in zip(chains, weights, strict=True) if 2 * w >= max(weights)]
    return max(large, key=rank, default=None)


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _parameters(module: nn.Module, chain: LayerChain) -> list[Tensor]:
    parameters = [p for name in chain.layers for p in module.get_submodule(name).parameters()]
    return list({id(p): p for p in parameters}.values())


def _groups(module: nn.Module) -> Iterator[list[str]]:
    """The names of the modules in each list, or in lists of the same name but for numbers."""
    groups: dict[str, list[str]] = {}
    for name, part in module.named_modules():
        if isinstance(part, LISTS):
            pattern = re.sub(r"(?<=\.)\d+|^\d+", "#", name)
            prefix = f"{name}." if name else ""
            groups.setdefault(pattern, []).extend(f"{prefix}{key}" for key in part._modules)
    yield from groups.values()


def _chain(names: Sequence[str], calls: Sequence[Call]) -> LayerChain | None:
    wanted = set(names)
    ordered = [call for call in calls if call.name in wanted]
    if not ordered or [call.name for call in ordered] != list(names):
        return None
    layers, ends = [ordered[0].name], [0]
    for one, two in pairwise(ordered):
        links = _links(one, two, calls)
        if links is None:
            return None
        layers += [*links, two.name]
        ends.append(len(layers) - 1)
    return LayerChain(tuple(layers), tuple(ends)) if len(set(layers)) == len(layers) else None


def _links(one: Call, two: Call, calls: Sequence[Call]) -> list[str] | None:
    """The outermost modules that, one after another, make one layer's output the next one's input.

    None where something else happens between the two.
    """
    between = [call for call in calls if one.ended < call.began and call.ended < two.began]
    between.sort(key=lambda call: call.began)
    links = []
    last = one
    while not _hands_on(last, two):
        following = [call for call in between if call.began > last.ended and _hands_on(last, call)]
        if not following:
            return None
        last = following[0]
        links.append(last.name)
    return links


def _hands_on(one: Call, two: Call) -> bool:
    """Whether a call read what another gave, as it was given."""
    passed = one.output is not None and one.output is two.input
    return passed and one.ended < two.began and one.gave == two.read


def _writes(tensor: Tensor | None) -> int:
    """The number of times that a tensor was written to in place."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _first(tree: Any) -> Tensor | None:
    """The first tensor in what a module reads or gives."""
    if isinstance(tree, Tensor):
        return tree
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return None
    return next((x for x in map(_first, tree) if x is not None), None)
