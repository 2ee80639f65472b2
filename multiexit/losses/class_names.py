"""A model's classes: how many there are, and what they are called.

Letters: C classes.
"""

import math
from collections.abc import Iterable, Mapping, Set
from numbers import Integral
from typing import Any

Name = str | int | float | bool


def count(num_classes: Any) -> int:
    """C as a plain number.

    Raises:
        ValueError: None, or no whole number from 1.
    """
    if num_classes is None:
        raise ValueError("say num_classes: the network has no head of its own that tells it")
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 1:
        raise ValueError(f"num_classes must be a whole number from 1, got {num_classes!r}")
    return int(num_classes)


def names(labels: Any, num_classes: int) -> list[Name] | None:
    """The classes' names in the order of their numbers, as plain data.

    Args:
        labels: a list, array or series of C names; or a mapping from numbers to names or from
            names to numbers, as `id2label` and `label2id` are; or None. Names are strings, or
            numbers where the classes are called so.
        num_classes: C.

    Raises:
        ValueError: a string, a set, another number of names, repeated or missing ones, or a
            mapping whose numbers aren't 0..C-1.

    >>> names({"pos": 1, "neg": 0}, 2)
    ['neg', 'pos']
    """
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        labels = _by_number(labels, num_classes)
    if isinstance(labels, str | bytes | Set) or not isinstance(labels, Iterable):
        what = "a set, which has no order" if isinstance(labels, Set) else repr(labels)
        raise ValueError(
            f"labels must be a list of {num_classes} names, or a mapping such as id2label; "
            f"got {what}"
        )
    listed = [_plain(name, index) for index, name in enumerate(labels)]
    if len(listed) != num_classes:
        raise ValueError(f"{len(listed)} label names for {num_classes} classes: {listed}")
    texts = [str(name) for name in listed]
    if repeated := sorted({name for name in texts if texts.count(name) > 1}):
        raise ValueError(f"labels must differ; {repeated} come more than once in {listed}")
    return listed


def _by_number(labels: Mapping[Any, Any], num_classes: int) -> list[Any]:
    """The names of an `id2label` or a `label2id`, in the order of their numbers."""
    numbers = list(range(num_classes))
    by_key = {_number(key): name for key, name in labels.items()}
    by_value = {
        int(number): name for name, number in labels.items() if isinstance(number, Integral)
    }
    readings = [
        [mapping[number] for number in numbers]
        for mapping in (by_key, by_value)
        if len(mapping) == len(labels) and set(mapping) == set(numbers)
    ]
    if not readings or any(list(map(str, readings[0])) != list(map(str, r)) for r in readings):
        why = "can be read either way" if readings else f"doesn't number the classes {numbers}"
        raise ValueError(
            f"labels={dict(labels)!r} {why}: map the numbers 0 to {num_classes - 1} to names, or "
            "names to these numbers, or give a list of names"
        )
    return readings[0]


def _number(key: Any) -> int | None:
    """A class number; JSON has them as strings."""
    if isinstance(key, Integral):
        return int(key)
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else None


def _plain(name: Any, index: int) -> Name:
    if isinstance(name, str):
        return str.__str__(name)  # numpy's and enumerations' are strings of their own kinds
    if hasattr(name, "item"):  # of numpy, and tensors
        name = name.item()
    if missing(name):
        raise ValueError(f"labels[{index}] is missing: every class needs a name")
    if not isinstance(name, int | float) or name in (math.inf, -math.inf):
        raise ValueError(f"labels[{index}] is {name!r}; a class's name is a string or a number")
    return name


def missing(value: Any) -> bool:
    """Whether a value is a gap in a table: None, NaN, or pandas' own NA and NaT."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError, RuntimeError):  # pandas' NA can't be compared, nor a tensor
        return type(value).__name__ == "NAType"
