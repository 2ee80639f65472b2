"""A network whose layers write down what they are called with, in place of running.

Its own forward then computes what comes before the layers, and what each of them is given beside
the feature: masks, positions, relative biases, whatever its version of its library makes.

Letters: B batch rows, T tokens.
"""

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from multiexit.backbones.layers.forward_calls import Call

_LOG = threading.local()


class Ended(Exception):
    """All layers have been called: what a network does behind them isn't run."""


class Made(NamedTuple):
    """Stands for what a layer gives beside the feature, until it has run."""

    layer: int
    place: Any


class Given(NamedTuple):
    """The arguments of a layer's call.

    Args:
        layer: its number in the chain.
        place: of the feature among the arguments, a number or a name.
        x: the feature as it is before the first layer.
        args, kwargs: the rest, with None in the feature's place.
    """

    layer: int
    place: int | str
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recorder(nn.Module):
    """Stands where a layer was; gives the feature back as it came, or a blank of another shape.

    Args:
        layer: the layer, whose attributes a network may read.
        index: of the layer in the chain.
        last: whether it is the last one.
        input, result: what the layer read and gave once, for the form of what it gives.
    """

    def __init__(self, layer: nn.Module, index: int, last: bool, input: Tensor, result: Any):
        super().__init__()
        self._layer = (layer,)  # in a tuple: its parameters are the chain's
        self.index, self.last = index, last
        self.form = _form(result)
        shape = feature_of(result).shape
        self.shape = None if shape == input.shape else shape[1:]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = _given(self.index, args, kwargs)
        _LOG.calls.append(given)
        if self.last:
            raise Ended
        x = given.x if self.shape is None else given.x.new_zeros(len(given.x), *self.shape)
        return _filled(self.form, x, self.index)


@dataclass(frozen=True)
class _Form:
    """A layer's result: the kind of its container, and per place whether there is a tensor."""

    kind: type | None  # None: the feature itself
    first: Any
    tensors: tuple[Any, ...]
    size: tuple[Any, ...]


def _form(result: Any) -> _Form:
    if isinstance(result, Tensor):
        return _Form(None, 0, (), ())
    items = dict(result) if isinstance(result, Mapping) else dict(enumerate(result))
    places = [place for place, value in items.items() if isinstance(value, Tensor)]
    kind = dict if isinstance(result, Mapping) else tuple
    return _Form(kind, places[0], tuple(places[1:]), tuple(items))


def _filled(form: _Form, x: Tensor, index: int) -> Any:
    if form.kind is None:
        return x
    items = dict.fromkeys(form.size)
    items |= {place: Made(index, place) for place in form.tensors}
    items[form.first] = x
    return items if form.kind is dict else tuple(items.values())


def _given(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    for place, value in [*enumerate(args), *kwargs.items()]:
        if isinstance(value, Tensor):
            rest = {**dict(enumerate(args)), **kwargs, place: None}
            named = {name: value for name, value in rest.items() if isinstance(name, str)}
            return Given(layer, place, value, tuple(rest[i] for i in range(len(args))), named)
    raise ValueError("a layer is called without a tensor, so it can't be taken out of its network")


def result_at(result: Any, place: Any) -> Any:
    """The tensor at a place of what a layer gave."""
    return result if isinstance(result, Tensor) else result[place]


def feature_of(result: Any) -> Tensor:
    """The feature in what a layer gives: its first tensor."""
    if isinstance(result, Tensor):
        return result
    values = result.values() if isinstance(result, Mapping) else result
    return next(value for value in values if isinstance(value, Tensor))


def make_shell(module: nn.Module, layers: Sequence[Call], late: set[str]) -> nn.Module:
    """A copy of a network that shares all its parts but its layers, which are recorders.

    Args:
        module: the network, which stays as it is.
        layers: one call of each layer, in order.
        late: names of the modules that run behind the last layer only; they are left out.
    """
    recorders: dict[str, nn.Module] = {}
    for index, layer in enumerate(layers):
        assert layer.input is not None
        last = index + 1 == len(layers)
        part = module.get_submodule(layer.name)
        recorders[layer.name] = Recorder(part, index, last, layer.input, layer.result)
    return _copy(module, "", recorders, late)


def _copy(module: nn.Module, name: str, recorders: Mapping[str, nn.Module], late: set[str]) -> Any:
    """The module itself where nothing in it changes, else a shallow copy of it."""
    if name in recorders:
        return recorders[name]
    if name in late:
        return nn.Identity()
    prefix = f"{name}." if name else ""
    if not any(other.startswith(prefix) for other in [*recorders, *late]):
        return module
    shell = copy.copy(module)
    shell._modules = {
        key: None if child is None else _copy(child, f"{prefix}{key}", recorders, late)
        for key, child in module._modules.items()
    }
    return shell


def record(shell: nn.Module, inputs: Mapping[str, Any]) -> list[Given]:
    """Run what comes before the layers.

    Args:
        shell: of `make_shell`.
        inputs: by name.

    Returns:
        What each layer is called with; in training some may be left out, as LayerDrop does.

    Raises:
        ValueError: layers that aren't called.
    """
    before = getattr(_LOG, "calls", None)
    _LOG.calls = calls = []
    try:
        for _ in range(1000 if shell.training else 1):
            shell(**inputs)
            if calls:
                break  # else LayerDrop left all of them out, and draws again
    except Ended:
        pass
    finally:
        _LOG.calls = before
    if not calls or not (shell.training or calls[-1].layer + 1 == len(calls)):
        raise ValueError("its forward doesn't run all of its layers each time")
    return calls
