"""A policy's numbers, and the last exit that a row may take, for each row of a batch.

Letters: M exits, B batch rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from multiexit_runner.inputs import Arrays
from multiexit_runner.naming import unknown
from multiexit_runner.settings import check_knob, check_range

Knobs = Mapping[str, int | float]
"""Numbers by name, whole ones as int."""

Ranges = Mapping[str, Sequence[float]]
"""The lowest and the highest that numbers may be, by name."""

TYPES: dict[type, Any] = {int: np.int64, float: np.float32}


def check_numbers(standing: Knobs, ranges: Ranges, given: Mapping[str, Any]) -> None:
    """Refuse numbers that a policy can't take.

    Args:
        standing: its numbers.
        ranges: the lowest and highest that some may be, but for those that stand already.
        given: those in their place, each a number.

    Raises:
        ValueError: a name or number that won't do, with what would.
    """
    for name, number in given.items():
        if name not in standing:
            raise unknown("number", name, sorted(standing), there="this policy has")
        check_knob(name, standing[name], number)
        if number != standing[name]:
            check_range(name, ranges.get(name), number)


def narrowed(names: Iterable[str], *tables: Ranges) -> dict[str, list[float]]:
    """The lowest and highest that numbers may be by all tables, such as what the policy takes and
    what is on its scale; any where no table has them.

    >>> narrowed(["threshold"], {"threshold": [0, 9]}, {"threshold": [-0.1, 1.1]})
    {'threshold': [0, 1.1]}
    """
    pairs = {name: [table[name] for table in tables if name in table] for name in names}
    return {
        name: [max((low for low, _ in each), default=-inf), min((h for _, h in each), default=inf)]
        for name, each in pairs.items()
    }


def by_row(standing: Knobs, ranges: Ranges, given: Mapping[str, Any], rows: int) -> Arrays:
    """The policy's numbers as graphs take them, `policy.NAME` [B].

    Args:
        standing, ranges: as for `check_numbers`.
        given: in place of those that stand, by name: a number, or an array [B].
        rows: B.

    Raises:
        ValueError: as `check_numbers`; an array of another length; no numbers by name.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"knobs are numbers by name, such as {dict(standing)}; got {given!r:.80}")
    for name, numbers in given.items():
        numbers_B = np.asarray(numbers)
        if numbers_B.ndim and numbers_B.shape != (rows,):
            raise ValueError(
                f"{name} must be one number, or one for each of {rows} rows; got shape "
                f"{list(numbers_B.shape)}"
            )
        for number in {*numbers_B.ravel().tolist()}:
            check_numbers(standing, ranges, {name: number})
    return {
        f"policy.{name}": np.full(rows, given.get(name, number), TYPES[type(number)])
        for name, number in standing.items()
    }


def last_exits(num_exits: int, rows: int, max_exit: Any) -> np.ndarray:
    """Each row's last exit [B].

    Args:
        num_exits: M.
        rows: B.
        max_exit: an index for all, or one for each; None is the last there is.

    Raises:
        ValueError: no such exit.
    """
    last_B = np.asarray(num_exits - 1 if max_exit is None else max_exit)
    if last_B.dtype.kind not in "iu" or last_B.shape not in ((), (rows,)):
        raise ValueError(
            f"max_exit must be the index of an exit, or one for each of {rows} rows; got "
            f"{max_exit!r:.80}"
        )
    if rows and not 0 <= last_B.min() <= last_B.max() < num_exits:
        raise ValueError(f"max_exit must be from 0 to {num_exits - 1}; got {max_exit!r:.80}")
    return np.broadcast_to(last_B, (rows,))
