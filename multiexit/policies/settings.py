"""A policy's settings over the range in which its numbers make a difference.

The range is read from the policy's type: from what `multiexit.policies.number` says of a field, or
else from the field's own type. A policy of one's own is swept like those that are built in.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from itertools import product
from typing import Any, get_args

import torch

from multiexit.policies.base import ExitPolicy
from multiexit.policies.numbers import Bounds, Known, Number, nats
from multiexit.policies.registry import field_types

FEW = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Shares of a range, for a table to be read."""
MANY = tuple(torch.sigmoid(torch.linspace(-12, 12, 241, dtype=torch.float64)).tolist())
"""Shares that lie close together near both ends, to choose among."""
BEYOND = 0.01
"""By which share of a range its two ends lie outside it, where nobody or everyone stops."""

Policy = type[ExitPolicy] | ExitPolicy


def sweep_settings(policy: Policy, known: Known, shares: Sequence[float] = FEW) -> list[ExitPolicy]:
    """All its numbers that have a range, each with each, by rising numbers.

    The slow end, where nobody leaves early, and the fast end, where everyone leaves as early as
    the policy can, are among them.

    Args:
        policy: a class; of a policy, its first number is tried and the others stay.
        known: about the model.
        shares: of the range of fractions. Whole numbers come all, or doubling beside others.

    Raises:
        ValueError: nothing to choose, or a field that has neither a default nor a range.
    """
    if isinstance(policy, ExitPolicy):
        return _combinations(policy, fields(policy)[:1], known, shares)
    needed = _required_fields(policy)
    free = [f for f in fields(policy) if f in needed or _bounds(f, known) is not None]
    return _combinations(policy, free, known, shares)


def one_number(policy: Policy, known: Known, shares: Sequence[float] = MANY) -> list[ExitPolicy]:
    """Settings by rising number: of the one field without a default, or of a policy's first field.

    Args:
        policy: a class with one such field, or a policy.
        known: about the model.
        shares: of the range of fractions. Whole numbers come all.

    Raises:
        ValueError: a class with more than one number to choose, or nothing to choose.
    """
    if isinstance(policy, ExitPolicy):
        return _combinations(policy, fields(policy)[:1], known, shares)
    needed = _required_fields(policy)
    if len(needed) != 1:
        raise ValueError(
            f"{policy.__name__} has {len(needed)} numbers to choose, calibrate chooses one: give "
            f"the others defaults, or pass a {policy.__name__} that has them"
        )
    return _combinations(policy, needed, known, shares)


def _required_fields(kind: type[ExitPolicy]) -> list[Field[Any]]:
    """The fields without a default."""
    if not (isinstance(kind, type) and issubclass(kind, ExitPolicy)):
        raise ValueError(f"a policy or its class is wanted, such as MaxProb; got {kind!r}")
    return [f for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def _combinations(
    policy: Policy, free: Sequence[Field[Any]], known: Known, shares: Sequence[float]
) -> list[ExitPolicy]:
    kind: Any = type(policy) if isinstance(policy, ExitPolicy) else policy
    names = [f.name for f in free]
    fixed: dict[str, Any] = {}
    if isinstance(policy, ExitPolicy):
        fixed = {f.name: getattr(policy, f.name) for f in fields(kind) if f.name not in names}
    values = [_values(kind, f, known, shares, only_field=len(free) == 1) for f in free]
    policies: dict[ExitPolicy, None] = {}
    for numbers in product(*values) if values else ():
        with suppress(ValueError):  # a value the policy doesn't allow
            policies[kind(**dict(zip(names, numbers, strict=True)), **fixed)] = None
    if not policies:
        raise ValueError(f"{known.num_exits} exits leave nothing to choose for {kind.__name__}")
    return list(policies)


def _values(
    kind: type[ExitPolicy], f: Field[Any], known: Known, shares: Sequence[float], only_field: bool
) -> list[Any]:
    """The values of one field, rising."""
    field_type = field_types(kind)[f.name]
    types = {field_type, *get_args(field_type)}
    if field_type is bool:
        return [False, True]
    if not types & {int, float}:
        raise ValueError(
            f"{kind.__name__}'s {f.name} is no number, so it can't be tried over a range: give it "
            f"a default, or pass a {kind.__name__} that has it"
        )
    bounds = _bounds(f, known)
    if float in types:
        low, high = bounds or (0.0, max(1.0, nats(known)[1]))
        all_shares = [-BEYOND, *shares, 1 + BEYOND]
        return [_between(low, high, share) for share in all_shares]
    low, high = map(int, bounds or (0, known.num_exits))
    if only_field:
        return list(range(low, high + 1))
    return sorted({high, *(low + 2**k - 1 for k in range(31) if low + 2**k - 1 < high)})


def _between(low: float, high: float, share: float) -> float:
    """A share of a range, as one would type it: what lies up to the nearer end has two digits."""
    value = low + (high - low) * share
    apart = min(abs(value - low), abs(high - value))
    return round(value, 1 - math.floor(math.log10(apart))) if apart else value


def _bounds(f: Field[Any], known: Known) -> tuple[float, float] | None:
    bounds: Bounds = f.metadata[Number].bounds if Number in f.metadata else lambda known: None
    return bounds(known)
