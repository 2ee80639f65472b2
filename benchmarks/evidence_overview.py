"""All data sets at a glance: what each choice brings on each of them."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evidence_runs import (
    BASE,
    FAST,
    POOLED,
    Figure,
    Results,
    at_exit,
    at_speed,
    gain,
    mean_of_exits,
)
from evidence_sentences import below

from multiexit.evaluation.report import table
from multiexit.evaluation.seeds import paired

LEAST = 0.05
"""Differences are written to a tenth of a point: a smaller one is neither above nor below."""

LITTLE = 2.0
"""Points that a speed-up may cost and be called cheap."""


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
    told = [of_choices(found), *of_speed(all_results), *of_policies(all_results)]
    return "\n\n".join([*told, table(rows, markdown=True), legend()])


def cell(gains: Sequence[float]) -> str:
    """Their mean and number; in bold where its 95 % interval leaves out zero."""
    if not gains:
        return "–"
    text, test = f"{statistics.fmean(gains):+.1f}", None
    if len(gains) > 1:
        test = paired(gains, [0.0] * len(gains))
    sure = test and test["low"] is not None and test["low"] * test["high"] > 0
    return f"**{text}** ({len(gains)})" if sure else f"{text} ({len(gains)})"


def of_choices(found: dict[str, list[list[float]]]) -> str:
    """For each choice, on how many data sets it is above and below."""
    parts = []
    for choice in CHOICES:
        means = [statistics.fmean(gains) for gains in found[choice.what] if gains]
        above, below = sum(m >= LEAST for m in means), sum(m <= -LEAST for m in means)
        parts.append(f"{choice.what} above on {above} and below on {below} of {len(means)}")
    return f"**Training.** Of data sets and networks, by the mean over exits: {'; '.join(parts)}."


def of_speed(all_results: Sequence[Results]) -> Iterator[str]:
    """Where the base keeps what its last exit scores, at twice the speed."""
    lost = {}
    for results in all_results:
        if gains := kept(results.policy, 2.0).gains(results):
            lost[results.title] = statistics.fmean(gains)
    if not lost:
        return
    little = [title for title, gain in lost.items() if gain >= -LITTLE]
    more = [f"{title} ({gain:+.1f})" for title, gain in lost.items() if gain < -LITTLE]
    told = f"**Speed.** Asked for 2×, `{BASE}` loses "
    parts = [f"{LITTLE:g} points at most on {'; '.join(little)}"] if little else []
    parts += [f"more on {'; '.join(more)}"] if more else []
    yield f"{told}{', and '.join(parts)}."


def of_policies(all_results: Sequence[Results]) -> Iterator[str]:
    """In how many runs of all settings a policy is worse than fixed exits drawn at random."""
    gains: dict[str, list[float]] = {}
    for results in all_results:
        for run in results.trained_runs():
            for policy in results.any["policies"]:
                if (value := gain(run, policy, run["exits"])) is not None:
                    gains.setdefault(policy, []).append(value)
    if gains:
        parts = [f"{policy} in {below(values)}" for policy, values in gains.items()]
        yield (
            f"**Policies.** Asked for {FAST[0]:g}× to {FAST[-1]:g}×, worse than the best random "
            f"mix of two fixed exits that is as fast: {', '.join(parts)}."
        )


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
