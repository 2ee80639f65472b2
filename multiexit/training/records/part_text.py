"""What a part of a run, a function or an object, says of itself: text that tells it from others."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping, Set
from functools import partial
from types import MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from multiexit.data.fingerprint import WRITTEN, fingerprint

PLAIN = str | int | float | None
LONGEST = 200
"""Letters of a list or mapping; of a longer one the text is its hash."""


def part_text(part: Any, known: Iterable[object] = ()) -> Any:
    """Plain values as they are; of all else a text, the same in every process.

    A function is told by its name, its defaults and what it closes over; a tensor, array or data
    set by its hash; a list, set or mapping by what it holds; another object by its type and
    attributes, those without an underscore, and objects among these by their types; a network by
    its class and weights.

    Args:
        part: to describe.
        known: what is described elsewhere, such as the trained model's parts; each by its type.
    """
    if isinstance(part, PLAIN):
        return part
    return _text(part, frozenset(map(id, known)), False)


def _text(value: Any, above: frozenset[int], inside: bool) -> str:
    """Text of a value; `above` are the ids of what is named alone, and what it lies in.

    Args:
        inside: whether it is an attribute of an object.
    """
    if isinstance(value, PLAIN):
        return repr(value)
    name = type(value).__qualname__
    if id(value) in above:
        return name
    above |= {id(value)}
    if inspect.isfunction(value):
        return value.__qualname__ + _arguments(_closed_over(value), above, inside)
    if isinstance(value, partial):
        values = {**dict(enumerate(value.args)), **value.keywords}
        return f"partial({_text(value.func, above, inside)}){_arguments(values, above, inside)}"
    if isinstance(value, MethodType):
        return f"{_text(value.__self__, above, inside)}.{value.__func__.__qualname__}"
    if isinstance(value, nn.Module):
        tensors = (*value.named_parameters(), *value.named_buffers())
        state = [(key, t) for key, t in tensors if id(t) not in above and not t.is_meta]
        return f"{name}({fingerprint(state)})"
    if isinstance(value, Tensor | np.ndarray | Dataset | DataLoader):
        return f"{name}({fingerprint(value)})"
    if isinstance(value, Mapping):
        pairs = (f"{key!r}: {_text(item, above, inside)}" for key, item in value.items())
        return _short(name, f"{{{', '.join(pairs)}}}")
    if isinstance(value, list | tuple | Set):
        items = [_text(item, above, inside) for item in value]
        ordered = sorted(items) if isinstance(value, Set) else items
        return _short(name, f"{name}({', '.join(ordered)})")
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, (*WRITTEN, type)) or not hasattr(value, "__dict__"):
        return _without_addresses(repr(value))
    if dataclasses.is_dataclass(value):
        return name + _arguments(vars(value), above, inside, always=True)
    public = {key: item for key, item in sorted(vars(value).items()) if not key.startswith("_")}
    return name if inside else name + _arguments(public, above, True, always=True)


def _arguments(
    values: Mapping[Any, Any], above: frozenset[int], inside: bool, always: bool = False
) -> str:
    texts = [f"{name}={_text(value, above, inside)}" for name, value in values.items()]
    return f"({', '.join(texts)})" if texts or always else ""


def _closed_over(function: Any) -> dict[str, Any]:
    """A function's defaults, and the values that it closes over."""
    parameters = inspect.signature(function).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not p.empty}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # nothing yet
            continue
    return values


def _short(name: str, text: str) -> str:
    return text if len(text) <= LONGEST else f"{name}({fingerprint(text)})"


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
