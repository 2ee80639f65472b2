"""A recipe's own options, checked by its function's signature."""

import inspect
import math
import types
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from multiexit.arguments import unknown


def check_options(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a recipe doesn't have, and values of another kind than its signature's.

    Args:
        name: the recipe's.
        make: its function.
        options: by name.

    Raises:
        ValueError: it names the option, the value, and what would be right.
    """
    kinds = get_type_hints(make)
    names = list(inspect.signature(make).parameters)
    for option, value in options.items():
        if option not in names:
            raise unknown(f"option of recipe {name!r} called", option, names or ["none"])
        if not _fits(value, kinds[option]):
            raise ValueError(
                f"{option} of recipe {name!r} must be {_kind_text(kinds[option])}, got {value!r}"
            )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated kind; True is no number."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(one, get_args(kind)[0]) for one in value)
    if get_origin(kind) is Callable or kind is Callable:
        return callable(value)
    if get_origin(kind) is not None:
        return callable(value) or not isinstance(value, str | int | float | list | tuple | dict)
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _kind_text(kind: Any) -> str:
    """An annotated kind in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_kind_text, get_args(kind))))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "several numbers"
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a name"}
    if kind is type(None):
        return "none"
    return words.get(kind) or getattr(kind, "__name__", str(kind))
