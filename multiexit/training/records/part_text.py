"""What a part of a run, a function or an object, says of itself: text that tells it from others."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
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
MANY = 10_000
"""Entries of a list or mapping; one of more is hashed as a whole."""

Place = tuple[int, str]
"""The id of a function or object, and the name of a value that it closes over or has."""


def part_text(
    part: Any, known: Iterable[object] = (), changing: Collection[Place] = frozenset()
) -> Any:
    """Plain values as they are; of all else a text, the same in every process.

    A function is told by its name, its defaults and what it closes over; a tensor, array or data
    set by its hash; a list, set or mapping by what it holds; another object by its type and
    attributes, those without an underscore, and objects among these by their types; a network by
    its class and weights.

    Args:
        part: to describe.
        known: what is described elsewhere, such as the trained model's parts; each by its type.
        changing: values that don't count, from `changes_below`.
    """
    if isinstance(part, PLAIN):
        return part

    def tell(place: Place, text: str) -> str:
        return "…" if place in changing else text

    return _text(part, frozenset(map(id, known)), False, tell)


@contextmanager
def changes_below(part: Any, known: Iterable[object] = ()) -> Iterator[set[Place]]:
    """The values below a part that the block changes, such as a log; filled at its end.

    Args:
        part: a function or object, which stays.
        known: as of `part_text`.
    """
    above = frozenset(map(id, known))
    before = _named(part, above)
    changing: set[Place] = set()
    yield changing
    changing |= {place for place, _ in before.items() ^ _named(part, above).items()}


def _named(part: Any, above: frozenset[int]) -> dict[Place, str]:
    """The texts of all named values below a part, each without those below itself."""
    texts = {}

    def tell(place: Place, text: str) -> str:
        texts[place] = text
        return ""

    _text(part, above, False, tell)
    return texts


def _text(
    value: Any, above: frozenset[int], inside: bool, tell: Callable[[Place, str], str]
) -> str:
    """Text of a value; `above` are the ids of what is named alone, and what it lies in.

    Args:
        inside: whether it is an attribute of an object.
        tell: makes of a named value's text what is said of it.
    """
    if isinstance(value, PLAIN):
        return repr(value)
    name = type(value).__qualname__
    if id(value) in above:
        return name
    above |= {id(value)}
    text_of = partial(_text, above=above, inside=inside, tell=tell)

    def arguments(values: Mapping[Any, Any], inside: bool = inside, always: bool = False) -> str:
        texts = [
            f"{key}={tell((id(value), str(key)), _text(item, above, inside, tell))}"
            for key, item in values.items()
        ]
        return f"({', '.join(texts)})" if texts or always else ""

    if inspect.isfunction(value):
        return value.__qualname__ + arguments(_closed_over(value))
    if isinstance(value, partial):
        values = {**dict(enumerate(value.args)), **value.keywords}
        return f"partial({text_of(value.func)}){arguments(values)}"
    if isinstance(value, MethodType):
        return f"{text_of(value.__self__)}.{value.__func__.__qualname__}"
    if isinstance(value, nn.Module):
        tensors = (*value.named_parameters(), *value.named_buffers())
        state = [(key, t) for key, t in tensors if id(t) not in above]
        return f"{name}({fingerprint(state)})"
    many = isinstance(value, Mapping | list | tuple | Set) and len(value) > MANY
    if many or isinstance(value, Tensor | np.ndarray | Dataset | DataLoader):
        return f"{name}({fingerprint(value)})"
    if isinstance(value, Mapping):
        pairs = (f"{key!r}: {text_of(item)}" for key, item in value.items())
        return _short(name, f"{{{', '.join(pairs)}}}")
    if isinstance(value, list | tuple | Set):
        items = [text_of(item) for item in value]
        ordered = sorted(items) if isinstance(value, Set) else items
        return _short(name, f"{name}({', '.join(ordered)})")
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, (*WRITTEN, type)) or not hasattr(value, "__dict__"):
        return _without_addresses(repr(value))
    if dataclasses.is_dataclass(value):
        return name + arguments(vars(value), always=True)
    public = {key: item for key, item in sorted(vars(value).items()) if not key.startswith("_")}
    return name if inside else name + arguments(public, inside=True, always=True)


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
