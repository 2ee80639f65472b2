"""Other numbers for the policy that an export's graphs hold."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from multiexit_runner.naming import OptionError
from multiexit_runner.runner import Runner

POLICIES = {"FixedExit": "fixed", "ProductOfExperts": "product"}
"""Policies that are typed otherwise than their class is called."""


def turned(runner: Runner, policy: Any) -> Runner:
    """The runner with other numbers in its policy, which it shares all else with.

    Args:
        runner: stays as it is.
        policy: as typed, `"max-prob=0.8"`; its numbers by name, with its class's name under
            `"class"` or without; or an exit policy of `multiexit`. None gives the runner itself.

    Raises:
        ValueError: another policy than the graphs hold, or numbers that it can't have.
    """
    if policy is None:
        return runner
    held, knobs = runner.settings["policy"], runner.knobs
    if is_dataclass(policy) and not isinstance(policy, type):
        policy = {"class": type(policy).__name__, **asdict(policy)}
    numbers: Any = policy
    if not isinstance(policy, Mapping):
        numbers = numbers_of(policy, held, knobs)
    elif "class" in policy:
        numbers = saved_numbers(policy, held, knobs)
    other = copy.copy(runner)
    other.set(**numbers)
    return other


def _typed(kind: Any) -> str:
    """A policy's class as it is typed."""
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in str(kind)).removeprefix("-")
    return POLICIES.get(str(kind), words)


def typed_policy(policy: Mapping[str, Any]) -> str:
    """A policy as it is typed.

    >>> typed_policy({"class": "MaxProb", "threshold": 0.9})
    'max-prob=0.9'
    """
    fields = [v for n, v in policy.items() if n not in ("class", "certificate") and v is not None]
    numbers = ["/".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in fields]
    return f"{_typed(policy.get('class'))}={','.join(numbers)}"


def _other(policy: Any, held: Mapping[str, Any], knobs: Mapping[str, Any]) -> ValueError:
    return OptionError(
        "{policy}={!r:.80}: these graphs hold the policy {}, whose numbers alone can be turned, "
        "{}; for another policy export again",
        *(policy, _typed(held.get("class")), sorted(knobs)),
    )


def numbers_of(text: Any, held: Mapping[str, Any], knobs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a policy that was typed.

    Args:
        text: as typed.
        held: the policy of the graphs.
        knobs: its numbers that can be turned.

    Raises:
        ValueError: another policy, or numbers that can't be read or turned.
    """
    fields = [name for name in held if name not in ("class", "certificate")]
    if not isinstance(text, str) or text.partition("=")[0] != _typed(held.get("class")):
        raise _other(text, held, knobs)
    numbers = text.partition("=")[2]
    example = f"{_typed(held.get('class'))}={','.join(f'{name.upper()}' for name in fields)}"
    wrong = f"can't read policy {text!r:.80}: numbers are wanted, as {example}"
    try:
        if "_" in numbers or not numbers.isascii():  # which Python's own would read
            raise ValueError("no plain number")
        read = [float(value) for value in numbers.split(",")]
    except ValueError as error:
        raise ValueError(wrong) from error
    if len(read) > len(fields):
        raise ValueError(wrong)
    return _free(dict(zip(fields, read, strict=False)), held, knobs, text)


def saved_numbers(
    policy: Mapping[str, Any], held: Mapping[str, Any], knobs: Mapping[str, Any]
) -> dict[str, float]:
    """The numbers of a policy as it is saved, with its class.

    Args:
        policy: as `multiexit.policies.registry.to_json` gives it.
        held, knobs: as for `numbers_of`.

    Raises:
        ValueError: another policy, or numbers that can't be turned.
    """
    numbers = {n: v for n, v in policy.items() if n not in ("class", "certificate")}
    if policy.get("class") != held.get("class"):
        asked, here = _typed(policy.get("class")), _typed(held.get("class"))
        raise ValueError(
            f"{asked} is asked for, as by the calibration table where that is of it, and these "
            f"graphs hold the policy {here}: export again, with --policy {typed_policy(policy)}"
        )
    return _free(numbers, held, knobs, policy["class"])


def _free(
    given: Mapping[str, Any], held: Mapping[str, Any], knobs: Mapping[str, Any], policy: Any
) -> dict[str, Any]:
    """Those that can be turned; the others must be as the graphs have them."""
    for name, number in given.items():
        fixed = held.get(name)
        fixed = tuple(fixed) if isinstance(fixed, list) else fixed
        if name not in knobs and fixed != (tuple(number) if isinstance(number, list) else number):
            raise OptionError(
                "{policy}={!r}: {} is fixed in these graphs, as {}: export again",
                *(policy, name, held.get(name)),
            )
    return {name: _like(knobs[name], number) for name, number in given.items() if name in knobs}


def _like(standing: float, number: Any) -> Any:
    """A whole number as one, where such a one stands: as typed it may have come as 2.0."""
    whole = isinstance(standing, int) and isinstance(number, float) and number.is_integer()
    return int(number) if whole else number
