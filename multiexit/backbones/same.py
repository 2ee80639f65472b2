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
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from multiexit.backbones import adapters
from multiexit.backbones.base import Backbone

_IGNORED = {  # of nn.Module, and what tells of weights or of how memory is saved, not of a network
    *vars(nn.Module()),
    *("pretrained_cfg", "pretrained_model_args", "default_cfg", "_model_args", "_traits"),
    *("feature_info", "weight_init_mode", "fix_init", "num_classes", "_is_hf_initialized"),
    *("grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func"),
    *("_compiled_call_impl", "_example", "_pretrained", "spec", "config"),
    *("undescribed", "_overwritten"),
    "layer_idx",  # a place in a decoder's cache
    "peft_config",  # says what its adapters are, which are modules
    "attention_bias_cache",  # of timm: what was worked out in the last run
    *("_flat_weights", "_flat_weight_refs"),  # of a recurrent layer: its parameters once more
}
_INITS = ("torch.nn.init", "transformers.initialization")  # which takes the first one's place
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def difference(remade: nn.Module, original: nn.Module) -> str:
    """The first difference between two networks, in words; nothing if they are the same.

    Values of parameters and of saved buffers aren't compared: these are loaded.
    """
    mine, theirs = (dict(m.named_modules(remove_duplicate=False)) for m in (remade, original))
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        if name not in mine or name not in theirs:
            return f"{name!r} is in one of them only"
        mismatch = _module_difference(mine[name], theirs[name], top=not name)
        if mismatch:
            return f"{name or 'the backbone'}: {mismatch}"
    if _shared_parameters(remade) != _shared_parameters(original):
        return "they share other parameters"
    return ""


def rebuild_difference(backbone: Backbone, rebuild: Callable[[dict[str, Any]], Backbone]) -> str:
    """The difference between a backbone and what its spec makes, in words; empty where none is."""
    spec = adapters.described(backbone)
    assert spec is not None
    if changed := _changed_setting(backbone, spec):
        return f"its configuration's {changed} is another one than when it was wrapped"
    try:
        with without_init():
            remade = rebuild(spec)
    except Exception as error:  # whatever a library says to what it can't make
        return f"it can't be made again: {error}"
    mismatch = difference(remade, backbone)
    mine, theirs = remade.classifier, backbone.classifier
    if mismatch or mine is None or theirs is None:
        return mismatch or ("" if mine is theirs else "its own head can't be made again")
    mismatch = difference(mine, theirs)
    return f"its own head, {mismatch}" if mismatch else ""


def _changed_setting(backbone: Backbone, spec: dict[str, Any]) -> str | None:
    """The first setting of transformers that was changed since the network was wrapped."""
    config = getattr(getattr(backbone, "shell", None), "config", None)
    if config is None or "config" not in spec:
        return None
    now = config.to_dict()
    keys = [k for k in now if k in spec["config"] and k not in ("id2label", "label2id", "dtype")]
    return next((key for key in keys if now[key] != spec["config"][key]), None)


@contextmanager
def without_init() -> Iterator[None]:
    """Inside, the weights of networks that are made aren't drawn, and no warning is shown."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _SkipInit():
        warnings.simplefilter("ignore")
        yield


class _SkipInit(TorchFunctionMode):
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


def _module_difference(remade: nn.Module, original: nn.Module, top: bool) -> str:
    """A difference between two modules, without what is in their children.

    The backbone itself may be one that runs the same layers otherwise in training.
    """
    if not top and class_of(remade) is not class_of(original):
        return f"a {class_of(original).__name__}, made again a {class_of(remade).__name__}"
    for kind in ("_parameters", "_buffers"):
        mine, theirs = getattr(remade, kind), getattr(original, kind)
        if mine.keys() != theirs.keys():
            return f"has {[*theirs]}, made again {[*mine]}"
        for name, tensor in mine.items():
            mismatch = _tensor_difference(
                tensor, theirs[name], name in remade._non_persistent_buffers_set
            )
            if mismatch:
                return f"{name} {mismatch}"
    if _hooks(remade) != _hooks(original):
        return "has hooks"
    mine, theirs = settings(remade), settings(original)
    names = mine.keys() & theirs.keys() if top else mine.keys() | theirs.keys()
    for name in sorted(names):
        a, b = mine.get(name, _ABSENT), theirs.get(name, _ABSENT)
        if not _equal(a, b):
            return f"{name} is {b!r:.60}, made again {a!r:.60}"
    return ""


_ABSENT = "absent"


def class_of(module: nn.Module) -> type:
    """A module's class, also where FSDP2 or a parametrisation made a subclass of it."""
    if isinstance(module, fx.GraphModule):
        return fx.GraphModule
    kind = type(module)
    if is_parametrized(module):
        return kind.__mro__[1]
    sharded = any(base.__name__ == "FSDPModule" for base in kind.__mro__)
    return kind.__mro__[2] if sharded else kind


def _hooks(module: nn.Module) -> int:
    """The number of a module's hooks, without those of training alone.

    These are of training on many devices, and what transformers and peft put on embeddings when
    gradients are checkpointed.
    """
    hooks = [hook for name in _HOOKS for hook in getattr(module, name).values()]
    return sum(
        "torch.distributed" not in getattr(hook, "__module__", "")
        and "make_inputs_require_grad" not in getattr(hook, "__qualname__", "")
        for hook in hooks
    )


def settings(module: nn.Module) -> dict[str, Any]:
    """A module's attributes that are settings, by name."""
    if isinstance(module, fx.GraphModule):
        return {"code": module.code}
    ignored = {*_IGNORED, "kwargs"} if adapters.is_adapter(module) else _IGNORED
    if hasattr(module, "base_model_prefix"):  # transformers' notes of how a network was loaded
        ignored = {*ignored, *(name for name in vars(module) if name.startswith("_"))}
    return {
        name: value
        for name, value in vars(module).items()
        if name not in ignored and "_fsdp" not in name and "composable_api" not in name
    }


def _tensor_difference(remade: Tensor | None, original: Tensor | None, values: bool) -> str:
    if remade is None or original is None:
        return "" if remade is original else "is in one of them only"
    if remade.shape != original.shape:
        return f"has shape {tuple(original.shape)}, made again {tuple(remade.shape)}"
    if not values or original.is_meta or remade.is_meta:
        return ""
    # A network in half precision has its buffers so too.
    same = torch.equal(remade.to(original.device, original.dtype), original.detach())
    return "" if same else "has other values"


def _shared_parameters(module: nn.Module) -> set[frozenset[str]]:
    """Groups of names that stand for one parameter."""
    groups: dict[int, set[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(p), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def _equal(left: Any, right: Any) -> bool:
    """Whether two settings are the same: plain values, nested, functions and other objects."""
    if left is right:
        return True
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return False
        if left.is_meta or right.is_meta:
            return left.shape == right.shape
        return left.shape == right.shape and torch.equal(left, right.to(left.device))
    if isinstance(left, nn.Module) or isinstance(right, nn.Module):  # one outside of the tree
        both = isinstance(left, nn.Module) and isinstance(right, nn.Module)
        return both and not difference(left, right)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)  # a rate that was worked out from others
    if type(left) is not type(right):
        return isinstance(left, int | float) and isinstance(right, int | float) and left == right
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, functools.partial):
        parts = [(p.func, p.args, p.keywords) for p in (left, right)]
        return _equal(*parts)
    if isinstance(left, MethodType):
        return left.__func__ is right.__func__
    if isinstance(left, FunctionType):
        return _equal(_function_parts(left), _function_parts(right))
    if isinstance(left, (set, frozenset, str, bytes, int, float, complex, type)):
        return left == right
    try:
        return bool(left == right) or _equal(vars(left), vars(right))
    except Exception:  # what can't be compared isn't known to be the same
        return False


def _function_parts(function: FunctionType) -> Any:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [function.__code__.co_code, function.__defaults__, cells]
