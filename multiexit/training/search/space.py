"""What a search may choose from: values by name."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Setting = dict[str, Any]
"""Values by name."""


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choices need at least one value, got ()")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"choices repeat: {', '.join(map(str, self.values))}")


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; whole if both are. `log`: evenly by magnitude."""

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
"""What may be chosen, by name."""


def grid(space: Space) -> list[Setting]:
    """Every combination.

    Raises:
        ValueError: a range.
    """
    values = []
    for name, dimension in space.items():
        if isinstance(dimension, Range):
            raise ValueError(f"a grid needs choices, and {name} is a range: list values, or sample")
        values.append(dimension.values)
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values)]
