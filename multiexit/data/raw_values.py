"""Texts and labels as users have them, in lists, arrays or series, as what a split keeps.

Letters: N rows.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from multiexit.losses.class_names import missing


def numbers(labels: Any, name: str = "labels") -> Tensor:
    """Labels as a tensor [N], or of several a row [N, C]: whole ones int64, fractions float32.

    Booleans are whole numbers.

    Args:
        labels: a list, array, or series with any index; of a tensor only the shape is looked at.
        name: what to call them in a message.

    Raises:
        ValueError: a string, a gap, or anything else that is no finite number, named by its row.
    """
    if isinstance(labels, Tensor) and not labels.is_complex():  # gaps are found where they matter
        if labels.ndim not in (1, 2):
            raise _not_numbers(name, tuple(labels.shape))
        return labels.to(torch.float32 if labels.is_floating_point() else torch.int64)
    listed = _as_list(labels, name, "number", dims=2)
    places = [(f"{name}[{row}]", value) for row, value in enumerate(listed)]
    columns = None
    if listed and all(_is_row(value) for value in listed):
        columns = len(listed[0])
        if any(len(value) != columns for value in listed):
            lengths = sorted({len(value) for value in listed})
            raise ValueError(f"{name} has rows of {lengths} numbers; all must have as many")
        places = [
            (f"{place}[{column}]", number)
            for place, value in places
            for column, number in enumerate(value)
        ]
    for place, value in places:
        if missing(value):
            raise ValueError(f"{place} is missing: every row needs a label")
        if isinstance(value, str | bytes):
            raise ValueError(
                f"{place} is {value!r}: give class numbers from 0, such as "
                f"[classes.index(name) for name in {name}], or scores"
            )
        if isinstance(value, Sequence):
            shape = (len(listed), *(() if columns is None else (columns,)), len(value))
            raise _not_numbers(name, shape)
        if not isinstance(value, Real) or value in (float("inf"), float("-inf")):
            raise ValueError(f"{place} is {value!r}; a label is a finite number")
        if isinstance(value, Integral) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{place} is {value!r}, more than 64 bits hold")
    whole = all(isinstance(value, Integral) for _, value in places)
    return torch.tensor(listed, dtype=torch.int64 if whole else torch.float32)


def _is_row(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _not_numbers(name: str, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"{name} must be one number a row, [N], or several, [N, C]; got shape {shape}"
    )


def strings(texts: Any, name: str = "texts") -> list[str]:
    """Texts as a list of strings that a tokenizer can read.

    Args:
        texts: a list, array, or series with any index.
        name: what to call them in a message.

    Raises:
        ValueError: one string alone, or an entry that is none or holds half a character, named by
            its row.
    """
    if isinstance(texts, str):
        raise ValueError(f"{name} is one string; give a list of strings, such as [{texts!r}]")
    listed = _as_list(texts, name, "string")
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{row}] is {text!r}; every entry must be a string")
        if not text.isascii() and (surrogate := _lone_surrogate(text)):
            raise ValueError(
                f"{name}[{row}] holds {surrogate!r}, half a character (a lone surrogate): mend "
                "it, or put U+FFFD in its place"
            )
    return [str.__str__(text) for text in listed]


def _as_list(values: Any, name: str, what: str, dims: int = 1) -> list[Any]:
    if isinstance(values, Mapping | Set | str | bytes) or not isinstance(values, Iterable):
        raise ValueError(
            f"{name} must be a list of {what}s, one a row, got {type(values).__name__}"
        )
    if len(shape := getattr(values, "shape", (1,))) not in (1, dims):
        raise ValueError(f"{name} must be one {what} a text, got shape {tuple(shape)}")
    to_list: Any = getattr(values, "tolist", None)  # of arrays and series: Python's own numbers
    listed = list(values) if to_list is None else to_list()
    return [value.tolist() if hasattr(value, "tolist") else value for value in listed]


def _lone_surrogate(text: str) -> str | None:
    """The first lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None
