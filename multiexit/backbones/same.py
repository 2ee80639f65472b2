"""Whether a backbone's description makes the same network again.

Two networks are the same if their modules have the same names, classes, settings, hooks and
tensors: numbers that no weight tells of, such as how many heads an attention has, are settings.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from multiexit.backbones.base import Backbone

_OWN = {  # of nn.Module, and what tells of weights or of how memory is saved, not of a network
    *vars(nn.Module()),
    *("pretrained_cfg", "pretrained_model_args", "default_cfg", "_model_args", "_traits"),
    *("feature_info", "weight_init_mode", "fix_init", "num_classes", "_is_hf_initialized"),
    *("grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func"),
    *("_compiled_call_impl", "_example", "_pretrained", "spec", "config"),
    "layer_idx",  # a place in a decoder's cache
}
_INITS = ("torch.nn.init", "transformers.initialization")  # which takes the first one's place
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def difference(one: nn.Module, other: nn.Module) -> str:
    """The first difference between two networks, in words; nothing if they are the same.

    Values of parameters and of saved buffers aren't compared: these are loaded.
    """
    ones, others = (dict(m.named_modules(remove_duplicate=False)) for m in (one, other))
    for name in [*ones, *(name for name in others if name not in ones)]:
        if name not in ones or name not in others:
            return f"{name!r} is in one of them only"
        found = _of_modules(ones[name], others[name], top=not name)
        if found:
            return f"{name or 'the backbone'}: {found}"
    if _shared(one) != _shared(other):
        return "they share other parameters"
    return ""


def not_made_again(backbone: Backbone, rebuild: Callable[[dict[str, Any]], Backbone]) -> str:
    """How what a backbone's spec makes differs from the backbone; nothing if it doesn't."""
    assert backbone.spec is not None
    try:
        with unfilled():
            again = rebuild(backbone.spec)
    except Exception as error:  # whatever a library says to what it can't make
        return f"it can't be made again: {error}"
    found = difference(again, backbone)
    mine, theirs = again.classifier, backbone.classifier
    if found or mine is None or theirs is None:
        return found or ("" if mine is theirs else "its own head can't be made again")
    found = difference(mine, theirs)
    return f"its own head, {found}" if found else ""


@contextmanager
def unfilled() -> Iterator[None]:
    """Inside, the weights of networks that are made aren't drawn, and no warning is shown."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _Undrawn():
        warnings.simplefilter("ignore")
        yield


class _Undrawn(TorchFunctionMode):
    _DRAWS = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.random_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") in _INITS:
            return args[0] if args else kwargs["tensor"]
        name = getattr(func, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if func in self._DRAWS:
            args[0].detach().zero_()  # some draw again until every number lies in some range
            return args[0]
        if fills and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **kwargs)


def _of_modules(one: nn.Module, other: nn.Module, top: bool) -> str:
    """A difference between two modules, without what is in their children.

    The backbone itself may be one that runs the same layers otherwise in training.
    """
    if not top and _class(one) is not _class(other):
        return f"a {_class(other).__name__}, made again a {_class(one).__name__}"
    for kind in ("_parameters", "_buffers"):
        mine, theirs = getattr(one, kind), getattr(other, kind)
        if mine.keys() != theirs.keys():
            return f"has {[*theirs]}, made again {[*mine]}"
        for name, tensor in mine.items():
            found = _of_tensors(tensor, theirs[name], name in one._non_persistent_buffers_set)
            if found:
                return f"{name} {found}"
    if _hooks(one) != _hooks(other):
        return "has hooks"
    mine, theirs = _settings(one), _settings(other)
    names = mine.keys() & theirs.keys() if top else mine.keys() | theirs.keys()
    for name in sorted(names):
        a, b = mine.get(name, _ABSENT), theirs.get(name, _ABSENT)
        if not _equal(a, b):
            return f"{name} is {b!r:.60}, made again {a!r:.60}"
    return ""


_ABSENT = "absent"


def _class(module: nn.Module) -> type:
    """A module's class, also where FSDP2 made a subclass of it."""
    kind = type(module)
    sharded = any(base.__name__ == "FSDPModule" for base in kind.__mro__)
    return kind.__mro__[2] if sharded else kind


def _hooks(module: nn.Module) -> int:
    """How many hooks a module has, but those of training on many devices."""
    hooks = [hook for name in _HOOKS for hook in getattr(module, name).values()]
    return sum("torch.distributed" not in getattr(hook, "__module__", "") for hook in hooks)


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _OWN and "_fsdp" not in name and "composable_api" not in name
    }


def _of_tensors(one: Tensor | None, other: Tensor | None, values: bool) -> str:
    if one is None or other is None:
        return "" if one is other else "is in one of them only"
    if one.shape != other.shape:
        return f"has shape {tuple(other.shape)}, made again {tuple(one.shape)}"
    if not values or other.is_meta:
        return ""
    same = torch.equal(one, other.detach().to(one.device, one.dtype))
    return "" if same else "has other values"


def _shared(module: nn.Module) -> set[frozenset[str]]:
    """Groups of names that stand for one parameter."""
    groups: dict[int, set[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(p), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def _equal(one: Any, other: Any) -> bool:
    """Whether two settings are the same: plain values, nested, functions and other objects."""
    if one is other:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and torch.equal(one, other.to(one.device))
    if isinstance(one, nn.Module) or isinstance(other, nn.Module):  # one outside of the tree
        both = isinstance(one, nn.Module) and isinstance(other, nn.Module)
        return both and not difference(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)  # a rate that was worked out from others
    if type(one) is not type(other):
        return isinstance(one, int | float) and isinstance(other, int | float) and one == other
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, functools.partial):
        parts = [(p.func, p.args, p.keywords) for p in (one, other)]
        return _equal(*parts)
    if isinstance(one, MethodType):
        return one.__func__ is other.__func__
    if isinstance(one, FunctionType):
        return _equal(_of_function(one), _of_function(other))
    if isinstance(one, (set, frozenset, str, bytes, int, float, complex, type)):
        return one == other
    try:
        return bool(one == other) or _equal(vars(one), vars(other))
    except Exception:  # what can't be compared isn't known to be the same
        return False


def _of_function(function: FunctionType) -> Any:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [function.__code__.co_code, function.__defaults__, cells]
