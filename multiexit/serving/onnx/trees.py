"""Nested dicts of tensors, and the same tensors by name: `{"a": {"b": t}}` has `a.b`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

Tree = dict[str, Any]


class Place(NamedTuple):
    """The place of a tensor in a nested dict."""

    name: str


def form(tree: Any, name: str = "") -> Any:
    """A nested dict with a `Place` for each of its tensors."""
    if isinstance(tree, Tensor):
        return Place(name)
    if not isinstance(tree, Mapping):
        return tree
    return {key: form(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}


def flat(tree: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a nested dict, by name, as they are.

    >>> flat({"a": {"b": 1.5, "c": Tensor([2.0])}})
    {'a.c': tensor([2.])}
    """
    if isinstance(tree, Tensor):
        return {name: tree}
    if not isinstance(tree, Mapping):
        return {}
    parts = (flat(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items())
    return {name: tensor for part in parts for name, tensor in part.items()}


def filled(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested dict of a form, with tensors in their places."""
    if isinstance(form, Place):
        return tensors[form.name]
    if not isinstance(form, Mapping):
        return form
    return {key: filled(value, tensors) for key, value in form.items()}
