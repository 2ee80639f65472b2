"""What a forward writes to its own module, which the pieces of its graph would leave out."""

import operator
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_VIEWS = ("data", "detach", "view", "getitem")
_AUGMENTED = ("setitem", "iadd", "isub", "imul", "itruediv")


class Unfollowed(ValueError):
    """A forward that can't be followed.

    Args:
        why: what it does.
        works: what works in its place.
    """

    def __init__(self, why: str, works: str):
        super().__init__(why)
        self.works = works


def _refusal(what: str) -> Unfollowed:
    return Unfollowed(
        f"it {what}, which its stages would leave out",
        "What works: let a module of its own do that, through which the tensor goes",
    )


class Watch(TorchDispatchMode):
    """Refuses, inside, what writes to a parameter, buffer or other tensor of a module."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.names = {
            _storage(tensor): f"{prefix}.{name}".lstrip(".")
            for prefix, part in module.named_modules()
            for name, tensor in {**vars(part), **part._buffers, **part._parameters}.items()
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                for tensor in tree_leaves(given):
                    if isinstance(tensor, Tensor) and _storage(tensor) in self.names:
                        raise _refusal(f"writes to {self.names[_storage(tensor)]}")
        return func(*args, **kwargs)

    def check(self, target: Any, args: tuple[Any, ...]) -> None:
        """Refuse an operation of a graph that writes to what is there before the input comes.

        Raises:
            Unfollowed: it does.
        """
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if not args or not (in_place or name.strip("_") in _AUGMENTED):
            return
        node = args[0]
        while isinstance(node, fx.Node) and _is_view(node):
            node = node.args[0]
        if isinstance(node, fx.Node) and node.op == "get_attr":
            name = str(node.target)
            tensor = operator.attrgetter(name)(self.module)
            if isinstance(tensor, Tensor):  # a parameter has a name, whatever stands for it here
                name = self.names.get(_storage(tensor), "a tensor that is there before the input")
            raise _refusal(f"writes to {name}")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def refuse_unread(node: fx.Node, layer: nn.Module | None) -> None:
    """Refuse a layer that keeps something, learns nothing, and gives what nobody reads.

    Raises:
        Unfollowed: it is one.
    """
    if layer is None or node.users:
        return
    keeps, learns = (next(t, None) is not None for t in (layer.buffers(), layer.parameters()))
    if keeps and not learns:
        raise _refusal(f"runs {node.target} for what that keeps")


def _is_view(node: fx.Node) -> bool:
    what = node.args[1] if node.target is getattr else node.target
    return getattr(what, "__name__", what) in _VIEWS


@contextmanager
def state_refused(module: nn.Module) -> Iterator[None]:
    """Refuse a forward inside that changes what its module keeps from one call to the next.

    What a forward sets anew, a size of its input or a list that it then fills, isn't kept.

    Raises:
        Unfollowed: another number or buffer, or a list that isn't what it was.
    """
    own, buffers = dict(vars(module)), dict(module._buffers)
    contents = {name: [*v] for name, v in own.items() if isinstance(v, list)}
    yield
    for name, value in {**own, **buffers}.items():
        now = module._buffers.get(name) if name in buffers else vars(module).get(name)
        if isinstance(value, list):
            changed = now is value and [*map(id, value)] != [*map(id, contents[name])]
        elif isinstance(value, int | float):  # one of the input's is a Proxy here
            changed = isinstance(now, int | float) and repr(now) != repr(value)
        else:
            changed = name in buffers and now is not value
        if changed:
            raise _refusal(f"writes to {name}")


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Whatever a forward inside sets, attributes, lists and dicts are as before at the end."""
    kept = [(vars(part), dict(vars(part))) for part in module.modules()]
    plain = (list, dict, OrderedDict)
    inner = [(v, v.copy()) for _, own in kept for v in own.values() if type(v) in plain]
    try:
        yield
    finally:
        for now, before in [*kept, *inner]:
            if isinstance(now, list):
                now[:] = before
            else:
                now.clear()
                now.update(before)
