"""What requests may ask of the policy, within what the operator allows."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import inf
from typing import Any, NamedTuple

from multiexit_runner.knobs import Ranges
from multiexit_runner.naming import OptionError, unknown
from multiexit_runner.server.dial import Setting
from multiexit_runner.server.options import Options, words
from multiexit_runner.server.served import Served


class Order(NamedTuple):
    """How a request's rows stop.

    Args:
        policy: as the network takes it.
        max_exit: where they leave at the latest.
        said: the policy, as typed.
        alone: whether rows leave by the service's policy, and by that alone.
        own: whether the request said the policy.
        expected: what the service expects of it, for the answer.
    """

    policy: Any
    max_exit: int
    said: str
    alone: bool = False
    own: bool = True
    expected: Mapping[str, float] = {}

    def turned(self, setting: Setting) -> "Order":
        """The order where a dial gives the policy.

        What is expected is of the mean over all rows, not of those that leave before a limit.
        """
        order = self._replace(policy=setting.policy, said=setting.said)
        if not self.alone:
            return order
        expected = {"expected_score": setting.score}
        if setting.loss_bound is not None:
            expected["loss_bound"] = setting.loss_bound
        return order._replace(expected=expected)


class Orders:
    """Makes orders of requests.

    Args:
        served: the network.
        options: of the operator.
        turned: a setting of the policy that is turned, as it is typed, whose threshold requests may
            give then; None where none is, and it is that of the service's own.

    Raises:
        ValueError: limits that can't be read.

    Attributes:
        default: the policy of requests without one, as the network takes it.
    """

    def __init__(self, served: Served, options: Options, turned: str | None = None):
        self.served, self._turned = served, turned
        self.limits = _limits(options.limits, [*served.turns, _stops(len(served.exits))])
        self.default = served.parse(None, {})
        if options.policy:
            served.parse(options.policy, {})  # refuses numbers far off their scale, as of requests

    def of(
        self,
        policy: str | None,
        threshold: float | None,
        max_exit: int | None,
        budget_ms: float | None,
    ) -> Order:
        """The order of a request.

        Raises:
            ValueError: what the network can't do, or the operator doesn't allow.
        """
        served = self.served
        last = len(served.exits) - 1
        if max_exit is not None and max_exit > last:
            raise ValueError(f"max_exit must be from 0 to {last}, got {max_exit}")
        stops = {"max_exit": max_exit, "budget_ms": budget_ms}
        stops = {name: stop for name, stop in stops.items() if stop is not None}
        self._check_limits(stops)
        max_exit = last if max_exit is None else max_exit
        if policy is None and threshold is None:
            return Order(self.default, max_exit, served.policy, not stops, own=False)
        if policy is not None and threshold is not None:
            raise ValueError("a request has a policy or a threshold, not both")
        if policy is not None and (kind := policy.partition("=")[0]) not in served.kinds:
            raise unknown("policy", kind, served.kinds, there="requests may name")
        numbers = {} if threshold is None else {"threshold": threshold}
        parsed = served.parse(policy or self._turned, numbers)
        self._check_limits(served.numbers(parsed))
        return Order(parsed, max_exit, served.typed(parsed))

    def _check_limits(self, numbers: Mapping[str, float]) -> None:
        for name, (low, high) in self.limits.items():
            if name in numbers and not low <= numbers[name] <= high:
                raise ValueError(
                    f"{name} must be from {low:g} to {high:g} here, got {numbers[name]}"
                )


def _stops(exits: int) -> Ranges:
    """What else than a policy makes rows leave: what its numbers may be."""
    return {"max_exit": (0, exits - 1), "budget_ms": (0, inf)}


def _limits(text: str, kinds: Sequence[Ranges]) -> dict[str, tuple[float, float]]:
    """Limits as they are typed, `threshold=0.7..1`, of numbers that these kinds have."""
    limits = {}
    for part in words(text):
        name, _, range_ = part.partition("=")
        if name in limits:
            raise OptionError("{limits} has {} twice: give it once", name)
        low, _, high = range_.partition("..")
        try:
            limits[name] = float(low), float(high)
        except ValueError as error:
            raise OptionError("{limits} must be like threshold=0.7..1, got {!r}", part) from error
        ranges = dict.fromkeys(tuple(kind[name]) for kind in kinds if name in kind)
        if not ranges:
            have = ", ".join(dict.fromkeys(chain.from_iterable(kinds)))
            raise OptionError("{limits}: {!r}, but requests may give {} here", part, have)
        low, high = limits[name]
        if not low <= high:
            raise OptionError("{limits}: {!r} leaves no number", part)
        if not any(low <= most and least <= high for least, most in ranges):
            may = " or ".join(f"from {least:g} to {most:g}" for least, most in ranges)
            raise OptionError("{limits}: {!r} leaves no number: it is {}", part, may)
    return limits
