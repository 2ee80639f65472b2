"""Charts as SVG, drawn to be read on a phone and in the dark: colours are the page's.

Letters: M exits.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from multiexit.evaluation.page.markup import Markup, element

WIDE, HIGH = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 12, 44
COLOURS = 7


class Series(NamedTuple):
    """A line.

    Args:
        name: for the legend.
        points: x and y, in order.
        marked: whether points are marked; each then tells its values.
        colour: the number of its colour.
        dashed: whether the line is.
    """

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = True
    colour: int = 0
    dashed: bool = False


def lines(title: str, series: Sequence[Series], x: str, y: str) -> Markup:
    """Lines over a number.

    Args:
        title, x, y: of the chart and its axes.
        series: at least one point in all.
    """
    points = [point for each in series for point in each.points]
    across, x_ticks = _axis([p[0] for p in points], LEFT, WIDE - RIGHT, snug=True)
    up, y_ticks = _axis([p[1] for p in points], HIGH - BOTTOM, TOP)
    parts = _grid(
        x, y, [(across(t), f"{t:g}") for t in x_ticks], [(up(t), f"{t:g}") for t in y_ticks]
    )
    for each in series:
        colour = f"c{each.colour % COLOURS}"
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in each.points)
        dash = "5 4" if each.dashed else None
        parts.append(
            element("polyline", points=path, class_=f"line {colour}", stroke_dasharray=dash)
        )
        for a, b in each.points if each.marked else ():
            tip = element("title", f"{each.name + ': ' if each.name else ''}{x} {a:.4g}, {b:.2f}")
            parts.append(
                element(
                    "circle", tip, cx=f"{across(a):.1f}", cy=f"{up(b):.1f}", r=3.5, class_=colour
                )
            )
    return _figure(title, parts, [(s.name, s.colour, s.dashed) for s in series if s.name])


def bars(title: str, values: Sequence[float], x: str, y: str) -> Markup:
    """A bar for each whole number from 0."""
    up, ticks = _axis([0.0, *values], HIGH - BOTTOM, TOP)
    step = (WIDE - LEFT - RIGHT) / len(values)
    every = -(-len(values) // 13)
    places = [(LEFT + (m + 0.5) * step, str(m)) for m in range(0, len(values), every)]
    parts = _grid(x, y, places, [(up(t), f"{t:g}") for t in ticks])
    for m, value in enumerate(values):
        top = up(value)
        parts.append(
            element(
                "rect",
                element("title", f"{x} {m}: {value:.1f}"),
                x=f"{LEFT + (m + 0.1) * step:.1f}",
                y=f"{top:.1f}",
                width=f"{0.8 * step:.1f}",
                height=f"{max(0.0, HIGH - BOTTOM - top):.1f}",
                class_="c0",
            )
        )
    return _figure(title, parts, [])


def squares(title: str, W: Sequence[Sequence[float | None]], x: str, y: str) -> Markup:
    """A map of numbers around 1: warm above, cold below; the diagonal is outlined.

    Args:
        title, x, y: of the chart and its axes.
        W: by row and column; None is left out.
    """
    M = len(W)
    size = (WIDE - LEFT - RIGHT) / M
    most = max((abs(w - 1) for row in W for w in row if w is not None), default=0) or 1.0
    high = TOP + M * size + BOTTOM
    every = -(-M // 13)
    parts = [_text(LEFT + (WIDE - LEFT - RIGHT) / 2, high - 8, x), _upright(TOP + M * size / 2, y)]
    for m in range(0, M, every):
        parts.append(_text(LEFT + (m + 0.5) * size, TOP + M * size + 16, str(m)))
        parts.append(_text(LEFT - 8, TOP + (m + 0.5) * size + 4, str(m), anchor="end"))
    for i, row in enumerate(W):
        for j, w in enumerate(row):
            place = {"x": f"{LEFT + j * size:.1f}", "y": f"{TOP + i * size:.1f}"}
            cell = {**place, "width": f"{size:.1f}", "height": f"{size:.1f}"}
            if w is None:
                parts.append(element("rect", **cell, class_="none"))
                continue
            tip = element("title", f"{y} {i}, {x} {j}: {w:.3f}")
            kind = ("warm" if w >= 1 else "cold") + (" own" if i == j else "")
            shade = f"{abs(w - 1) / most:.3f}"
            parts.append(element("rect", tip, **cell, class_=kind, fill_opacity=shade))
            if M <= 9:
                parts.append(_text(LEFT + (j + 0.5) * size, TOP + (i + 0.5) * size + 4, f"{w:.2f}"))
    return _figure(title, parts, [], high)


def _figure(
    title: str, parts: Sequence[Markup], legend: Sequence[tuple[str, int, bool]], high: float = HIGH
) -> Markup:
    drawn = element("svg", *parts, viewBox=f"0 0 {WIDE} {high:.0f}", role="img", aria_label=title)
    keys = [
        element("li", element("span", class_=f"key c{colour % COLOURS}{' dashed' * dashed}"), name)
        for name, colour, dashed in legend
    ]
    names = element("ul", *keys, class_="legend") if keys else None
    return element("figure", element("figcaption", title), drawn, names)


def _grid(
    x: str, y: str, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
) -> list[Markup]:
    parts = [_text((LEFT + WIDE - RIGHT) / 2, HIGH - 6, x), _upright((TOP + HIGH - BOTTOM) / 2, y)]
    for place, text in y_ticks:
        at = f"{place:.1f}"
        parts.append(element("line", x1=LEFT, x2=WIDE - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(_text(LEFT - 6, place + 4, text, anchor="end"))
    parts += [_text(place, HIGH - BOTTOM + 16, text) for place, text in x_ticks]
    return parts


def _axis(
    values: Sequence[float], start: float, end: float, snug: bool = False
) -> tuple[Callable[[float], float], list[float]]:
    """Where a value lies, and about five round ticks; the axis ends at ticks unless it is snug."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if snug:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [round(k * step, 10) for k in range(first, last + 1)]
    if not snug:
        low, high = ticks[0], ticks[-1]
    return lambda value: start + (end - start) * (value - low) / (high - low), ticks


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _upright(y: float, text: str) -> Markup:
    return element(
        "text", text, transform=f"translate(12 {y:.1f}) rotate(-90)", text_anchor="middle"
    )
