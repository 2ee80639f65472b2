"""The tables of a setting's runs: its methods, and policies beside fixed exits."""

import statistics

from evidence_plan import Run
from evidence_runs import (
    BASE,
    FAST,
    MIXED,
    POOLED,
    Method,
    Results,
    as_fast,
    at_exit,
    between,
    mean_of_exits,
    network,
    shown,
    shown_at,
)

from multiexit.evaluation.report import table


def methods_table(results: Results) -> str:
    """A row for each method, the best mean over exits against the base's first."""
    tested, rows = results.tests(), []
    ranked = results.ranked(mean_of_exits)
    for name in [*ranked, *(name for name in results.methods if name not in ranked)]:
        method, test = results.methods[name], tested.get(name)
        row = {
            "method": f"`{name}`",
            "head": Run(results.setting, name, 0).head,
            "seeds": str(len(method.runs)),
            "mean over exits": shown(method.values(mean_of_exits)),
            "first exit": shown(method.values(at_exit(0))),
            "last exit": shown(method.values(at_exit(-1))),
        }
        for asked in FAST:
            row[f"asked {asked:g}×"] = shown_at(method, results.policy, asked)
        row["by its own policy"] = own(method)
        row[f"mean − {BASE}'s"] = difference(results, name, BASE)
        if POOLED in results.methods:
            other = results.base_of(name) == POOLED
            row[f"mean − {POOLED}'s"] = difference(results, name, POOLED) if other else "–"
        row["p (Holm)"] = f"{test['p_holm']:.2g}" if test else "–"
        rows.append(row)
    note = f"\n\nIn `…-pooler` rows p is of the difference to `{POOLED}`, in its own to `{BASE}`."
    return table(rows, markdown=True) + (note if POOLED in results.methods else "")


def difference(results: Results, name: str, base: str) -> str:
    """A method's mean over exits less another's, on the seeds that both have."""
    less = results.less(name, base, mean_of_exits)
    return f"{statistics.fmean(less):+.1f}" if less and name != base else "–"


def own(method: Method) -> str:
    """What a method's own policy came to, as it is after training."""
    points = [run["own policy"] for run in method.runs.values()]
    scores = shown({seed: 100 * point["score"] for seed, point in enumerate(points)})
    return f"{scores} at {statistics.fmean(point['speedup'] for point in points):.2f}×"


def policies_table(results: Results) -> str:
    """The policies on the exits of the base, and below each the fixed exits that are as fast."""
    method, rows = results.methods[BASE], []
    for policy in results.any["policies"]:
        asked = {f"asked {speed:g}×": speed for speed in FAST}
        of_policy = {head: shown_at(method, policy, speed) for head, speed in asked.items()}
        of_fixed = {head: shown(method.values(as_fast(policy, s))) for head, s in asked.items()}
        rows += [{"policy": policy, **of_policy}]
        if results.any["metric"] in MIXED:
            rows += [{"policy": "two fixed exits, as fast", **of_fixed}]
    return table(rows, markdown=True)


def cut_table(results: Results, cut: Method) -> str:
    """The cut networks, and beside each the exits of one network, as fast, from the same seeds."""
    networks, rows = next(iter(cut.runs.values()))["networks"], []
    for index, facts in enumerate(networks):
        found: dict[tuple[str, str], dict[int, float]] = {}
        for name, method in results.methods.items():
            same = Method(name, {s: run for s, run in method.runs.items() if s in cut.runs})
            for policy in results.any["policies"]:
                values = same.values(between(policy, facts["speedup"]))
                if len(values) == len(cut.runs):
                    found[name, policy] = values
        mean = {which: statistics.fmean(values.values()) for which, values in found.items()}
        best = max(mean, key=lambda which: mean[which], default=None)
        base = found.get((BASE, results.policy), {})
        rows.append(
            {
                "stages": str(facts["stages"]),
                "speed-up": f"{facts['speedup']:.2f}×",
                "parameters": f"{facts['parameters']:,}",
                "score": shown(cut.values(network(index))),
                f"`{BASE}` by {results.policy}, as fast": shown(base),
                "best of all exits, as fast": (
                    f"{shown(found[best])} (`{best[0]}`, {best[1]})" if best else "–"
                ),
            }
        )
    return table(rows, markdown=True)
