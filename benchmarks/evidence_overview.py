"""All data sets at a glance: what each choice brings on each of them."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evidence_runs import BASE, POOLED, Figure, Results, at_exit, at_speed, mean_of_exits

from multiexit.evaluation.report import table
from multiexit.evaluation.seeds import paired

LEAST = 0.05
"""Differences are written to a tenth of a point: a smaller one is neither above nor below."""


@dataclass(frozen=True)
class Choice:
    """A figure of one method less the same, or another, of another.

    Args:
        what: the choice, in words.
        name, figure: what is chosen.
        base, other: what it is compared with; None is the same figure.
    """

    what: str
    name: str
    base: str
    figure: Figure = mean_of_exits
    other: Figure | None = None

    def gains(self, results: Results) -> list[float]:
        """What it brings on each seed that has both."""
        if not {self.name, self.base} <= results.methods.keys():
            return []
        one = results.methods[self.name].values(self.figure)
        other = results.methods[self.base].values(self.other or self.figure)
        return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


CHOICES = (
    Choice("distillation among exits", "leebert-uniform", BASE),
    Choice("learned weights", "leebert", "leebert-uniform"),
    Choice("group DRO", "leebert-group-dro", "leebert-uniform"),
    Choice("normalized group DRO", "leebert-group-dro-normalized", "leebert-uniform"),
    Choice("a pooler for each exit", POOLED, BASE),
)
LAST = Choice("last exit", "leebert-group-dro", BASE, at_exit(-1))


def kept(policy: str, asked: float) -> Choice:
    """What a policy keeps of the last exit's score."""
    return Choice(f"{asked:g}×", BASE, BASE, at_speed(policy, asked), at_exit(-1))


def overview(all_results: Sequence[Results]) -> str:
    """A table of all settings, what its columns are, and how often each choice helped."""
    rows, found = [], {}
    for results in all_results:
        speeds = [kept(results.policy, asked) for asked in (2.0, 3.0)]
        gains = {c.what: c.gains(results) for c in (*CHOICES, LAST, *speeds)}
        rows.append({"data, network": results.title} | {k: cell(g) for k, g in gains.items()})
        for what, values in gains.items():
            found.setdefault(what, []).append(values)
    return "\n\n".join([f"{' '.join(told(found))}", table(rows, markdown=True), legend()])


def cell(gains: Sequence[float]) -> str:
    """Their mean and number; in bold where its 95 % interval leaves out zero."""
    if not gains:
        return "–"
    text, test = f"{statistics.fmean(gains):+.1f}", None
    if len(gains) > 1:
        test = paired(gains, [0.0] * len(gains))
    sure = test and test["low"] is not None and test["low"] * test["high"] > 0
    return f"**{text}** ({len(gains)})" if sure else f"{text} ({len(gains)})"


def told(found: dict[str, list[list[float]]]) -> Iterator[str]:
    """For each choice, on how many data sets it is above and below."""
    parts = []
    for choice in CHOICES:
        means = [statistics.fmean(gains) for gains in found[choice.what] if gains]
        above, below = sum(m >= LEAST for m in means), sum(m <= -LEAST for m in means)
        parts.append(f"{choice.what} above on {above} and below on {below} of {len(means)}")
    yield f"In the mean over exits: {'; '.join(parts)}."


def legend() -> str:
    """What is less what."""
    parts = [f"*{c.what}* is `{c.name}` less `{c.base}`" for c in CHOICES]
    return (
        f"Points of the mean over exits, mean over shared seeds, in brackets their number; in bold "
        f"where the 95 % interval of the paired differences, not corrected, leaves out zero. "
        f"{', '.join(parts)}. *{LAST.what}* is that of `{LAST.name}` less that of `{LAST.base}`; "
        f"*2×* and *3×* are what `{BASE}` scores where that speed-up was asked for, by entropy "
        "(numbers: by patience), less its last exit."
    )
