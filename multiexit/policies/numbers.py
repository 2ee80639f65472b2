"""Rules for a policy's numbers: said beside each field, read by all who set or try them.

Letters: M exits, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # what a counter holds
HUGE = 3.4e38  # what a float32 holds
ROOM = 0.1  # by which share of a scale its ends may be passed, for nobody or everybody to leave


class Known(NamedTuple):
    """The facts of a model that say over which range a number makes a difference.

    Args:
        num_exits: M.
        num_classes: C, 1 for regression.
        apart: the largest change of a regression's value from one exit to the next.
    """

    num_exits: int
    num_classes: int
    apart: float = 1.0


Bounds = Callable[[Known], tuple[float, float] | None]
"""From where to where a number makes a difference; None where it has nothing to do."""


def unit(known: Known) -> tuple[float, float]:
    """0..1, as of shares and certainties."""
    return 0.0, 1.0


def probability(known: Known) -> tuple[float, float]:
    """1/C..1, where the largest of C probabilities lies."""
    return 1 / known.num_classes, 1.0


def nats(known: Known) -> tuple[float, float]:
    """0..log C, where the entropy of C probabilities lies."""
    return 0.0, math.log(known.num_classes)


@dataclass(frozen=True)
class Number:
    """The rule for one field.

    Args:
        bounds: the range that a sweep covers.
        whole: what to call whole numbers from `least` on; None for fractions.
        least: the smallest whole number; fractions must be above it, if it is given.
        per_exit: a tuple with one per exit will do too.
        within: a model whose bounds it is outside of is refused.
        scale: the range of what it is compared with, where that is known of any network.
    """

    bounds: Bounds
    whole: str | None = None
    least: int | None = None
    per_exit: bool = False
    within: bool = False
    scale: Bounds | None = None

    def check(self, name: str, value: Any) -> None:
        """Refuse what it may not be, whatever the model.

        Args:
            name: what the number is called in the message.
            value: the number, or a tuple.

        Raises:
            ValueError: with the name and the value.
        """
        if self.whole is not None:
            assert self.least is not None
            if type(value) is not int or not self.least <= value <= LARGEST:
                raise ValueError(
                    f"{name} must be {self.whole} from {self.least}, got {value!r:.80}"
                )
            return
        numbers = value if self.per_exit and isinstance(value, tuple) else (value,)
        if not numbers:
            raise ValueError(f"{name} must be a number, or one per exit; got none")
        for number in numbers:
            if type(number) not in (int, float) or not abs(number) < HUGE:
                raise ValueError(f"{name} must be a finite number, got {number!r:.80}")
            if self.least is not None and not number > self.least:
                raise ValueError(f"{name} must be above {self.least}, got {number!r:.80}")

    def limits(self, known: Known) -> tuple[float, float] | None:
        """Say between which values a model takes it, both included; None for any number."""
        bounds = self.bounds(known) if self.within else None
        if self.least is None:
            return bounds
        least = self.least if self.whole is not None else math.nextafter(self.least, math.inf)
        low, high = bounds or (least, LARGEST if self.whole is not None else HUGE)
        return max(low, least), high

    def on_scale(self, known: Known) -> tuple[float, float] | None:
        """Say between which values it may tell rows apart, and a little more; None for any."""
        if self.scale is None or (scale := self.scale(known)) is None:
            return None
        low, high = scale
        room = ROOM * (high - low)
        return float(f"{low - room:.4g}"), float(f"{high + room:.4g}")

    def check_fits(self, name: str, value: Any, known: Known) -> None:
        """Refuse what doesn't fit a model.

        Args:
            name: what the number is called in the message.
            value: the number, or a tuple.
            known: about the model.

        Raises:
            ValueError: a tuple of another length than exits, or a number that the model can't have.
        """
        M = known.num_exits
        if isinstance(value, tuple):
            if self.per_exit and len(value) not in (M, max(1, M - 1)):
                raise ValueError(
                    f"{name} has {len(value)} numbers, and the model has {M} exits: give one "
                    f"number for all exits, or {max(1, M - 1)} (the last exit needs none)"
                )
            return
        bounds = self.bounds(known) if self.within else None
        if bounds is None:
            return
        low, high = bounds
        if not low <= value <= high:
            raise ValueError(
                f"{name} must be within {low:g}..{high:g}, as the model has {M} exits; got {value}"
            )


def number(bounds: Bounds, default: Any = ..., **rules: Any) -> Any:
    """Make a dataclass field that says what its number may be, and over which range to sweep it.

    Args:
        bounds: from `Known` to the least and largest value that make a difference.
        default: of the field; it has none by default.
        rules: `whole`, `least`, `per_exit`, `within`, `scale` of
            `multiexit.policies.numbers.Number`.

    Returns:
        What `dataclasses.field` gives.

    Example:
        >>> from dataclasses import dataclass
        >>> import multiexit as mx
        >>> @dataclass(frozen=True)
        ... class Calm(mx.ExitPolicy):
        ...     threshold: float = mx.policies.number(lambda known: (0.0, 5.0))
        ...     def init(self, logits_BC):
        ...         return {}
        ...     def step(self, state, logits_BC):
        ...         return state, logits_BC.std(1) < self.threshold
        >>> Calm(float("nan"))
        Traceback (most recent call last):
        ValueError: threshold must be a finite number, got nan
    """
    metadata = {Number: Number(bounds, **rules)}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def plain(value: Any) -> Any:
    """Take a number of numpy or torch to Python's own, lists and arrays to tuples.

    Anything else stays as it is.
    """
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if type(value) in (list, tuple):
        return tuple(map(plain, value))
    if isinstance(value, Real) and not isinstance(value, int | float):
        return float(value)
    return value
