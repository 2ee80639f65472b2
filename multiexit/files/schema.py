"""Checks of plain data from a file: small ones, put together to larger ones.

A check takes a key and the value under it, and raises ValueError with the key, the value
(shortened) and what would be right. `settings["exits"]` is checked under the key `exits`, what
lies in it under `exits[0]` or `backbone.kwargs.depth`.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[str, Any], None]

DEEPEST = 64
"""How deep plain data may be nested."""


def short(value: Any) -> str:
    """A value as it looks in a message."""
    return " ".join(reprlib.repr(value).split())


def wrong(key: str, value: Any, right: str) -> ValueError:
    """The one message of a value that won't do.

    Args:
        key: under which it lies.
        value: shown shortened.
        right: what it must be, in words.
    """
    return ValueError(f"{key or 'it'} is {short(value)}; it must be {right}")


def whole(low: int, high: int) -> Check:
    """A whole number from low to high."""

    def check(key: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise wrong(key, value, f"a whole number from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number from low to high."""
    within = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"

    def check(key: str, value: Any) -> None:
        finite = type(value) in (int, float) and abs(value) < math.inf
        if not finite or abs(value) > 1.7e308 or not low <= value <= high:
            raise wrong(key, value, f"a finite number{within}")

    return check


def anything(key: str, value: Any) -> None:
    """Any value, which others look into."""


def text(key: str, value: Any) -> None:
    """A string."""
    if not isinstance(value, str):
        raise wrong(key, value, "a string")


def flag(key: str, value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(key, value, "true or false")


def one_of(*allowed: Any) -> Check:
    """One of some values."""

    def check(key: str, value: Any) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            raise wrong(key, value, f"one of {list(allowed)}")

    return check


def optional(inner: Check) -> Check:
    """Null, or what another check takes."""

    def check(key: str, value: Any) -> None:
        if value is not None:
            inner(key, value)

    return check


def either(first: Check, second: Check) -> Check:
    """A list that the second check takes, or anything else that the first does."""

    def check(key: str, value: Any) -> None:
        (second if isinstance(value, list | tuple) else first)(key, value)

    return check


def listed(entry_check: Check, least: int = 0, most: int = 1_000_000) -> Check:
    """A list of such values."""

    def check(key: str, value: Any) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise wrong(key, value, f"a list of {least} to {most} entries")
        for index, entry in enumerate(value):
            entry_check(f"{key}[{index}]", entry)

    return check


def table(
    needed: Mapping[str, Check],
    others: Mapping[str, Check] | None = None,
    rest: Check | None = None,
) -> Check:
    """A table with these keys.

    Args:
        needed: what must be there.
        others: what may be there.
        rest: for any other key; None refuses them.
    """
    checks = {**needed, **(others or {})}

    def check(key: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise wrong(key, value, f"a table with {', '.join(needed) or 'names as keys'}")
        missing = [name for name in needed if name not in value]
        if missing:
            raise ValueError(f"{key or 'it'} lacks {', '.join(missing)}")
        for name, entry in value.items():
            entry_check = checks.get(name, rest)
            if entry_check is None:
                raise ValueError(
                    f"{key or 'it'} has {short(name)}, which is not known here; known are "
                    f"{', '.join(sorted(checks))}"
                )
            entry_check(f"{key}.{str(name)[:80]}".lstrip("."), entry)

    return check


def plain(key: str, value: Any, depth: int = 0) -> None:
    """Null, true or false, a number, a string, or lists and tables of these."""
    if depth > DEEPEST:
        raise ValueError(f"{key[:80]}… is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if not isinstance(name, str | int):
                raise wrong(f"a key in {key}", name, "a string")
            plain(f"{key}.{str(name)[:80]}", entry, depth + 1)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            plain(f"{key}[{index}]", entry, depth + 1)
    elif type(value) in (int, float):
        number()(key, value)
    elif value is not None and not isinstance(value, bool | str):
        raise wrong(key, value, "plain: a number, a string, true, false, null, or lists of these")
