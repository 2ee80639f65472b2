"""Layouts of features: which dimension is the width, and which are positions.

Letters: B batch rows, D width of a vector, T tokens, H width of a token, C channels, L length.
"""

from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int | None, ...]


class Layout(NamedTuple):
    """A feature's dimensions.

    Args:
        dims: what they are, for messages.
        rank: how many there are without the batch.
        width: which of these is the width, counted from 0.
    """

    dims: str
    rank: int
    width: int


LAYOUTS = {
    "vector": Layout("[B, D]", 1, 0),
    "tokens": Layout("[B, T, H]", 2, 1),
    "sequence": Layout("[B, C, L]", 2, 0),
    "image": Layout("[B, C, height, width]", 3, 0),
    "channels-last-image": Layout("[B, height, width, C]", 3, 2),
    "volume": Layout("[B, C, depth, height, width]", 4, 0),
    "channels-last-volume": Layout("[B, depth, height, width, C]", 4, 3),
}


def of_rank(rank: int) -> list[str]:
    """The layouts that a feature of so many dimensions (without the batch) may have."""
    return [name for name, layout in LAYOUTS.items() if layout.rank == rank]


def listing(names: Sequence[str] = tuple(LAYOUTS)) -> str:
    """Layouts with their dimensions, for messages."""
    return ", ".join(f"{name!r} {LAYOUTS[name].dims}" for name in names)


def default_layout(shape: Shape) -> str:
    """The layout that a shape alone stands for: `(D,)`, `(None, H)`, `(C, height, width)`.

    Raises:
        ValueError: a shape that may be one of several.
    """
    if len(shape) == 1:
        return "vector"
    if len(shape) == 2 and shape[0] is None:
        return "tokens"
    if len(shape) == 3:
        return "image"
    candidates = of_rank(len(shape))
    if not candidates:
        raise ValueError(f"a feature of shape {shape} has no layout; there are {listing()}")
    raise ValueError(
        f"a feature of shape {shape} may be {listing(candidates)}: say which, with layouts="
    )


def resolve(layouts: str | Sequence[str] | None, shapes: Sequence[Shape]) -> list[str]:
    """A layout for each shape: one for all, one for each, or None for the usual ones.

    Raises:
        ValueError: an unknown layout, another number of them, one of another rank than its shape.
    """
    if layouts is None:
        return [default_layout(shape) for shape in shapes]
    names = [layouts] * len(shapes) if isinstance(layouts, str) else list(layouts)
    for name in names:
        check_name(name)
    if len(names) != len(shapes):
        raise ValueError(f"{len(names)} layouts for {len(shapes)} stages: give one, or one each")
    for stage, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        if LAYOUTS[name].rank != len(shape):
            candidates = listing(of_rank(len(shape))) or "none"
            raise ValueError(
                f"layout {name!r} is {LAYOUTS[name].dims}, and stage {stage} gives a feature of "
                f"shape (B, {', '.join(map(str, shape))}); of that rank there are: {candidates}"
            )
    return names


def check_name(name: object) -> None:
    """Refuse what is no layout's name, by a ValueError."""
    if not isinstance(name, str) or name not in LAYOUTS:
        raise ValueError(f"no layout {name!r}; there are {listing()}")


def width_of(shape: Shape, layout: str | None = None) -> int:
    """Channels of an image, a sequence or a volume, width of a token or vector.

    Raises:
        ValueError: a width that is not fixed.
    """
    width = shape[LAYOUTS[layout or default_layout(shape)].width]
    if width is None:
        raise ValueError(f"a feature of shape {shape} has no fixed width")
    return width
