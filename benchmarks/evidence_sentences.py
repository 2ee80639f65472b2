"""What a setting's runs say in sentences: what helped, and what did not."""

import statistics
from collections.abc import Iterable, Iterator, Sequence, Sized

from evidence_plan import AGGREGATED
from evidence_runs import (
    BASE,
    FAST,
    POOLED,
    SURE,
    UNTRAINED,
    Figure,
    Results,
    against,
    at_exit,
    at_speed,
    gain,
    mean_of_exits,
    shown,
    shown_at,
)

LEARNED = (
    "leebert",
    "leebert-uncertainty",
    "leebert-hyper",
    "leebert-ascent",
    "leebert-group-dro",
    "leebert-group-dro-normalized",
)
AS_IT_WAS = {
    "heads-only": "which leaves the trained network as it was",
    UNTRAINED: "trained for it alone",
}
"""Methods whose last exit others may harm, and why."""
TIE = 0.01
"""Scores are written to so many points: a smaller difference is none."""


def sentences(results: Results) -> Iterator[str]:
    """Of the mean over exits, speed, policies, the last exit, learned weights and gradients."""
    yield from of_exits(results)
    yield from of_speed(results)
    yield from of_policies(results)
    yield from of_last_exit(results)
    told = "**Learned weights.** Mean over exits less that of uniform weights"
    yield from of_differences(results, told, LEARNED, "leebert-uniform")
    told = f"**Gradients.** Mean over exits less that of the sum of the exits' gradients, `{BASE}`"
    yield from of_differences(results, told, AGGREGATED, BASE)


def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def counted(of: Sized, word: str) -> str:
    return f"{len(of)} {word}" + ("s" if len(of) != 1 else "")


def ahead(results: Results, name: str, figure: Figure) -> str:
    """By what a method is before the base, on the seeds that both have."""
    if name == BASE:
        return ""
    less = results.less(name, BASE, figure)
    return f", {statistics.fmean(less):+.1f} against `{BASE}`'s on {counted(less, 'shared seed')}"


def differing(results: Results, base: str) -> str:
    """Which methods differ from their base: surely, or in every seed."""
    tested, sure, always = results.tests(), {1: [], -1: []}, {1: [], -1: []}
    for name in results.methods:
        less = results.less(name, base, mean_of_exits)
        if name in (base, UNTRAINED) or results.base_of(name) != base or len(less) < 2:
            continue
        if name in tested and tested[name]["p_holm"] <= SURE:
            sure[1 if tested[name]["difference"] > 0 else -1].append(name)
        elif max(less) < 0 or min(less) > 0:
            always[1 if min(less) > 0 else -1].append(name)
    parts = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {word}"
        for names, word in ((sure[1], "above it"), (sure[-1], "below it"))
        if names
    ]
    said = " and ".join(parts) or "no difference is sure"
    for sign, word in ((1, "higher"), (-1, "lower")):
        if always[sign]:
            said += f"; {word} in every seed, but not surely: {listed(always[sign])}"
    return said


def of_exits(results: Results) -> Iterator[str]:
    """The mean over exits: which is best, what differs from the base, and what a pooler brings."""
    best, tested = results.ranked(mean_of_exits)[0], results.tests()
    told = f"**Exits.** The best mean over exits is `{best}`'s, "
    told += shown(results.methods[best].values(mean_of_exits))
    told += ahead(results, best, mean_of_exits)
    if tested:
        told += f". Against `{BASE}`'s, after correction for {counted(tested, 'test')}, "
        yield f"{told}{differing(results, BASE)}."
    else:
        yield f"{told}. With so few seeds nothing is tested."
    alone = results.less(POOLED, BASE, mean_of_exits)
    if alone:
        told = f"**Poolers.** A pooler for each exit alone brings {statistics.fmean(alone):+.1f} "
        told += f"(`{POOLED}` less `{BASE}`)"
        if any(results.base_of(name) == POOLED for name in tested):
            told += f". Against `{POOLED}`'s, of the methods that have one, "
            told += differing(results, POOLED)
        yield f"{told}."


def of_speed(results: Results) -> Iterator[str]:
    """What is kept where much speed is asked for."""
    method = results.methods[BASE]
    for asked in (3.0, 2.0):
        figure = at_speed(results.policy, asked)
        if not method.values(figure):
            continue
        best = results.ranked(figure)[0]
        kept = f"`{best}` keeps most (of {len(results.ranked(figure))} methods, not tested), "
        kept += shown_at(results.methods[best], results.policy, asked)
        kept += ahead(results, best, figure) + "; "
        kept += "" if best == BASE else f"`{BASE}` {shown_at(method, results.policy, asked)}, "
        last = shown(method.values(at_exit(-1)))
        yield f"**Speed.** Asked for {asked:g}× by {results.policy}, {kept}its last exit {last}."
        return


def of_policies(results: Results) -> Iterator[str]:
    """Policies against fixed exits, and the product of experts against entropy."""
    runs, parts, worse = list(results.trained_runs()), [], []
    for policy in results.any["policies"]:
        if gains := known(gain(run, policy, run["exits"]) for run in runs):
            parts.append(f"{policy} in {below(gains)}")
            worse += [policy] if statistics.median(gains) < -TIE else []
    if not parts:
        return
    told = (
        f"**Policies.** Asked for {FAST[0]:g}× to {FAST[-1]:g}×, worse than the best random mix of "
        f"two fixed exits that is as fast: {', '.join(parts)}. "
    )
    if worse:
        told += f"In most runs leaving at random is better than {' or '.join(worse)}."
    else:
        told += "None is worse in most runs."
    if {"product", "entropy"} <= results.any["policies"].keys():
        gains = known(gain(run, "product", run["policies"]["entropy"]) for run in runs)
        told += f" Product of experts is worse than entropy as fast in {below(gains)}."
    yield told


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def below(gains: list[float]) -> str:
    """On how many runs something is worse, and what it gains on average."""
    fewer = sum(value < -TIE for value in gains)
    return f"{fewer} of {len(gains)} runs ({statistics.fmean(gains):+.1f} on average)"


def of_last_exit(results: Results) -> Iterator[str]:
    """What training exits does to the last one."""
    figure = at_exit(-1)
    for name, why in AS_IT_WAS.items():
        if name not in results.methods:
            continue
        less = {
            other: statistics.fmean(found)
            for other in results.methods
            if other not in AS_IT_WAS and (found := results.less(other, name, figure))
        }
        if not less:
            continue
        had = results.methods[name].values(figure)
        worst = min(less, key=lambda other: less[other])
        told = f"**Last exit.** `{name}`, {why}, has {shown(had)} there"
        if BASE in less:
            told += f", `{BASE}` {less[BASE]:+.1f}"
        if worst != BASE and less[worst] < 0:
            told += f", and the worst, `{worst}`, {less[worst]:+.1f}"
        broken = [other for other in less if less[other] < -statistics.fmean(had.values()) / 2]
        yield told + (f". Less than half is left by {listed(broken)}." if broken else ".")
        return


def of_differences(results: Results, told: str, names: Sequence[str], base: str) -> Iterator[str]:
    """What methods that differ from another in one thing gain by it."""
    methods, parts = results.methods, []
    if base not in methods:
        return
    before = methods[base].values(mean_of_exits)
    for name in names:
        test = name in methods and against(methods[name].values(mean_of_exits), before)
        if test and test["low"] is not None:
            parts.append(
                f"`{name}` {test['difference']:+.1f} ({test['low']:+.1f} … {test['high']:+.1f})"
            )
    if parts:
        yield f"{told}, with its 95 % interval, not corrected: {', '.join(parts)}."
