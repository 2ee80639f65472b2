"""A setting's picture: score against the speed-up that came out, a line for each method."""

import statistics
from pathlib import Path
from typing import Any

from evidence_plan import METHODS
from evidence_runs import (
    BASE,
    MIXED,
    UNTRAINED,
    Method,
    Results,
    best_mix,
    mean_of_exits,
    network,
)

from multiexit.evaluation import metrics
from multiexit.evaluation.seeds import spread

MARGIN = 0.04
"""Of the height, above and below what is drawn."""
LEAST = 5
"""How many points of score a picture has at least: small differences shall look small."""


def styles(results: Results) -> dict[str, dict[str, Any]]:
    """How each method is drawn: the base black, all others in a colour of their own.

    Dashed from the eleventh on. The methods that are in all settings come first, so that they look
    alike in all pictures.
    """
    from matplotlib import colormaps

    some, more = (colormaps[name].colors for name in ("tab10", "tab20b"))  # type: ignore[attr-defined]
    strong = [*some, *(colour for first in (0, 2, 1, 3) for colour in more[first::4])]
    names = [n for n in METHODS if n in results.methods and n not in (BASE, UNTRAINED)]
    found = {BASE: {"color": "black", "linewidth": 2.6, "zorder": 3}}
    for index, (name, colour) in enumerate(zip(names, strong, strict=False)):
        found[name] = {"color": colour, "linewidth": 1.4, "linestyle": "--" if index > 9 else "-"}
    return found


def curve(method: Method, policy: str) -> list[tuple[float, float, float]]:
    """Speed-up, score and its deviation, means over seeds, of each asked speed-up all runs have."""
    points: dict[float, list[tuple[float, float]]] = {}
    for run in method.runs.values():
        for point in run["policies"][policy]:
            points.setdefault(point["asked"], []).append((point["speedup"], point["score"]))
    found = []
    for _, pairs in sorted(points.items()):
        if len(pairs) == len(method.runs):
            scores = spread([100 * score for _, score in pairs])
            speedup = statistics.fmean(speed for speed, _ in pairs)
            found.append((speedup, scores["mean"], scores["deviation"] or 0))
    return found


def fixed(method: Method, fastest: float) -> tuple[list[float], list[float]]:
    """The best mixes of two fixed exits up to a speed-up, mean over seeds."""
    speedups, scores = [], []
    for step in range(101):
        speedup = 1 + (fastest - 1) * step / 100
        mixed = [best_mix(run["exits"], speedup) for run in method.runs.values()]
        known = [score for score in mixed if score is not None]
        if len(known) == len(mixed):
            speedups.append(speedup)
            scores.append(100 * statistics.fmean(known))
    return speedups, scores


def cut_networks(cut: Method) -> tuple[list[float], list[float]]:
    """Speed-up and score, the mean over seeds, of each cut network."""
    networks = next(iter(cut.runs.values()))["networks"]
    scores = [statistics.fmean(cut.values(network(i)).values()) for i in range(len(networks))]
    return [facts["speedup"] for facts in networks], scores


def draw(results: Results, path: Path) -> None:
    """The best methods first in the legend; the base with its deviation, and its fixed exits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6), dpi=110, layout="constrained")
    axes, policy, base = figure.add_subplot(), results.policy, results.methods[BASE]
    styled, tops = styles(results), []
    ranked = [name for name in results.ranked(mean_of_exits) if name in styled]
    for index, name in enumerate(ranked):
        x, y, _ = zip(*curve(results.methods[name], policy), strict=True)
        marker = {"marker": "osD^vPX"[index % 7], "markersize": 4}
        axes.plot(x, y, label=name, **styled[name], **marker)
        tops.append(max(y))
    x, y, wide = zip(*curve(base, policy), strict=True)
    low, high = ([a + sign * b for a, b in zip(y, wide, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color="black", alpha=0.1, linewidth=0)
    if results.any["metric"] in MIXED:
        x, y = fixed(base, max(x))
        axes.plot(x, y, color="black", linestyle=":", label=f"{BASE}, two fixed exits mixed")
    if results.cut:
        speedups, scores = cut_networks(results.cut)
        axes.plot(
            speedups, scores, "kx", markersize=9, label="cut and distilled, one training each"
        )
        tops, y = [*tops, *scores], [*y, *scores]
    top = max(*tops, *high)
    bottom = min(*low, *y, top - LEAST)
    room = MARGIN * (top - bottom)
    axes.set_ylim(bottom - room, top + room)
    axes.set_title(f"{results.title}, by {policy}", loc="left", fontweight="bold")
    axes.set_xlabel("speed-up by MACs, as it came out")
    axes.set_ylabel(metrics.label(results.any["metric"]))
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Description": results.digest, "Software": None})
