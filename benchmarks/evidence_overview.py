"""All data sets at a glance: what each choice brings on each of them."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evidence_runs import (
    BASE,
    ENOUGH,
    FAST,
    POOLED,
    UNTRAINED,
    Figure,
    Results,
    at_exit,
    at_speed,
    gain,
    mean_of_exits,
)
from evidence_sentences import TIE, known

from multiexit.evaluation.report import table
from multiexit.evaluation.seeds import paired

LITTLE = 2.0
"""Points that a speed-up may cost and be called cheap."""
ASKED = (2.0, 3.0)
POLICIES = ("entropy", "patience")


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
        return results.less(self.name, self.base, self.figure, self.other)


CHOICES = (
    Choice("distillation among exits", "leebert-uniform", BASE),
    Choice("learned weights", "leebert", "leebert-uniform"),
    Choice("group DRO", "leebert-group-dro", "leebert-uniform"),
    Choice("normalized group DRO", "leebert-group-dro-normalized", "leebert-uniform"),
    Choice("a pooler for each exit", POOLED, BASE),
)
LAST = [Choice("last exit", BASE, whole, at_exit(-1)) for whole in (UNTRAINED, "heads-only")]


def kept(policy: str, asked: float) -> Choice:
    """What a policy keeps of the last exit's score."""
    return Choice(f"{asked:g}×", BASE, BASE, at_speed(policy, asked), at_exit(-1))


def overview(all_results: Sequence[Results]) -> str:
    """Sentences, and a table with a row for each setting, those of texts first."""
    rows = []
    ordered = sorted(all_results, key=lambda results: not results.setting.is_text)
    for results in ordered:
        row = {"data, network": results.title}
        row |= {choice.what: cell(choice.gains(results)) for choice in CHOICES}
        row["last exit"] = cell([gain for choice in LAST for gain in choice.gains(results)])
        for asked in ASKED:
            row[f"{asked:g}×"] = cell(kept(results.policy, asked).gains(results))
            row[f"{asked:g}×"] += reached(results, asked)
        for policy in POLICIES:
            found = worse(results, policy)
            row[f"{policy} worse"] = f"{found[0]} of {found[1]}" if found[1] else "–"
        rows.append(row)
    told = [*of_choices(ordered), *of_speed(ordered), *of_policies(ordered)]
    return "\n\n".join([*told, LEGEND, table(rows, markdown=True)])


def sure(gains: Sequence[float]) -> int:
    """1 or −1 where enough seeds differ, by the 95 % interval of their mean; else 0."""
    if len(gains) < ENOUGH:
        return 0
    test = paired(gains, [0.0] * len(gains))
    if test["low"] is None or test["low"] <= 0 <= test["high"]:
        return 0
    return 1 if test["low"] > 0 else -1


def cell(gains: Sequence[float]) -> str:
    """Their mean and number; in bold where it is sure."""
    if not gains:
        return "–"
    text = f"{statistics.fmean(gains):+.1f}"
    return f"**{text}** ({len(gains)})" if sure(gains) else f"{text} ({len(gains)})"


def reached(results: Results, asked: float) -> str:
    """The speed-up that came out where one was asked for."""
    found = results.methods[BASE].values(at_speed(results.policy, asked, "speedup")).values()
    return f" at {statistics.fmean(found) / 100:.2f}×" if found else ""


def worse(results: Results, policy: str) -> tuple[int, int]:
    """In how many runs a policy is worse than fixed exits drawn at random, and of how many."""
    if policy not in results.any["policies"]:
        return 0, 0
    gains = known(gain(run, policy, run["exits"]) for run in results.trained_runs())
    return sum(value < -TIE for value in gains), len(gains)


def of_choices(all_results: Sequence[Results]) -> Iterator[str]:
    """Where a choice surely differs from its alternative."""
    parts = []
    for choice in CHOICES:
        found: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for results in all_results:
            found[sure(choice.gains(results))].append(results.title)
        said = [
            f"{word} on {'; '.join(found[sign])}"
            for sign, word in ((1, "above"), (-1, "below"))
            if found[sign]
        ]
        parts.append(f"*{choice.what}* {' and '.join(said) or 'nowhere'}")
    yield (
        f"**Training.** By the mean over exits, and where {ENOUGH} seeds or more tell, these "
        f"differ from their alternative: {', '.join(parts)}. Elsewhere no difference is sure."
    )


def of_speed(all_results: Sequence[Results]) -> Iterator[str]:
    """Where the base keeps what its last exit scores, at about twice the speed."""
    little, more = [], []
    for results in all_results:
        if gains := kept(results.policy, ASKED[0]).gains(results):
            lost = f"{results.title} ({statistics.fmean(gains):+.1f}{reached(results, ASKED[0])})"
            (little if statistics.fmean(gains) >= -LITTLE else more).append(lost)
    parts = [f"{LITTLE:g} points at most on {'; '.join(little)}"] if little else []
    parts += [f"more on {'; '.join(more)}"] if more else []
    if parts:
        yield (
            f"**Speed.** Where {ASKED[0]:g}× is asked for, `{BASE}` loses {', and '.join(parts)}."
        )


def of_policies(all_results: Sequence[Results]) -> Iterator[str]:
    """Where a policy is worse than fixed exits drawn at random in most runs."""
    parts = []
    for policy in POLICIES:
        found = {results.title: worse(results, policy) for results in all_results}
        most = [title for title, (few, runs) in found.items() if 2 * few > runs]
        parts.append(f"{policy} on {'; '.join(most) or 'none'}")
    yield (
        f"**Policies.** Asked for {FAST[0]:g}× to {FAST[-1]:g}×, most runs score less than if rows "
        f"left at random at the two best fixed exits, as fast: by {', by '.join(parts)}."
    )


LEGEND = (
    "Points of the mean over exits, mean over the seeds that both methods have, in brackets their "
    f"number; in bold where, with {ENOUGH} seeds or more, the 95 % interval of the paired "
    "differences, not corrected, leaves out zero. "
    + ", ".join(f"*{c.what}* is `{c.name}` less `{c.base}`" for c in CHOICES)
    + f". *Last exit* is that of `{BASE}` less that of the network without exits "
    f"(`{UNTRAINED}`, or `heads-only`, which leaves it as it was). *2×* and *3×* are what `{BASE}` "
    "scores where that was asked for, by entropy (STS-B: by patience), less its own last exit, and "
    "the speed-up that came out. *Worse* counts runs that score less than two fixed exits that "
    "rows leave by at random, as fast (none for correlations, which don't mix). A point is not "
    "worth the same everywhere: on MRPC one class for all scores nearly as much as any exit, on "
    "CoLA nothing."
)
