"""The space of a search: what it may choose, by name."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Setting = dict[str, Any]
"""Values by name."""


@dataclass(frozen=True)
class Choices:
    """One of these values.

    Args:
        values: strings, numbers, true and false or None.

    Raises:
        ValueError: no values, or repeated ones.

    Example:
        >>> import multiexit as mx
        >>> mx.Choices((1e-5, 2e-5, 5e-5)).values
        (1e-05, 2e-05, 5e-05)
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choices need at least one value, got ()")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"choices repeat: {', '.join(map(str, self.values))}")


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; whole if both are.

    Args:
        low, high: the ends.
        log: draw evenly by magnitude.

    Raises:
        ValueError: ends that don't rise or aren't finite, or a magnitude of what isn't above 0.

    Example:
        >>> import multiexit as mx
        >>> mx.Range(1e-5, 1e-3, log=True).whole, mx.Range(1, 8).whole
        (False, True)
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range goes from low to high, got {self.low}..{self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range by magnitude starts above 0, got {self.low}")

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = Mapping[str, Choices | Range]
"""The values that may be chosen, by name."""


def grid(space: Space) -> list[Setting]:
    """Every combination.

    Raises:
        ValueError: a range.

    Example:
        >>> grid({"lr": Choices((0.1, 0.2)), "clip": Choices((1.0,))})
        [{'lr': 0.1, 'clip': 1.0}, {'lr': 0.2, 'clip': 1.0}]
    """
    values = []
    for name, dimension in space.items():
        if isinstance(dimension, Range):
            raise ValueError(f"a grid needs choices, and {name} is a range: list values, or sample")
        values.append(dimension.values)
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values)]
