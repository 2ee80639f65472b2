"""One method under several seeds: mean and deviation, and a paired test against another.

Letters: M exits, S seeds.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiexit.evaluation import metrics, report, results
from multiexit.files import schema
from multiexit.files.json_files import read_table, write_json
from multiexit.files.names import RESULTS
from multiexit.policies import registry

FORMAT = 1
NAME = "seeds.json"
CONFIDENCE = 0.95


def gather(
    folder: Path, seeds: Sequence[int], sets: Sequence[str], policy: str, **about: Any
) -> dict[str, Any]:
    """Read the results of the runs `folder/seed-N`, and write them together as `seeds.json`.

    Args:
        folder: of the runs.
        seeds: their numbers.
        sets: the names of the task's reported sets.
        policy: the class of the recipe's policy. At about twice the speed means: of its settings
            the one whose speed-up by layers is nearest to 2, for each seed.
        about: `task`, `recipe`, and other plain data.
    """
    by_set = {}
    for name in sets:
        inside = RESULTS if len(sets) == 1 else f"{name}/{RESULTS}"
        runs = [results.read_results(folder / f"seed-{seed}" / inside) for seed in seeds]
        by_set[name] = _summary(runs, policy)
    data = {"format": FORMAT, "about": about, "seeds": list(seeds), "sets": by_set}
    write_json(folder / NAME, data)
    return data


def _summary(runs: list[dict[str, Any]], policy: str) -> dict[str, Any]:
    scores_SM = [[row["scores"]["score"] for row in run["exits"]] for run in runs]
    swept_S = [[row for row in run["policies"] if row["policy"]["class"] == policy] for run in runs]
    nearest_S = [rows[results.nearest([row["speedup_layers"] for row in rows])] for rows in swept_S]
    return {
        "metric": runs[0]["metric"],
        "examples": runs[0]["examples"],
        "exits": [spread(scores_S) for scores_S in zip(*scores_SM, strict=True)],
        "mean over exits": spread([statistics.fmean(scores_M) for scores_M in scores_SM]),
        "at about 2x": {
            **spread([row["score"] for row in nearest_S]),
            "policies": [registry.policy_name(row["policy"]) for row in nearest_S],
            "speedup_layers": spread([row["speedup_layers"] for row in nearest_S]),
        },
    }


def spread(values_S: Sequence[float]) -> dict[str, Any]:
    """Values with their mean and sample deviation (n − 1; None for a single one)."""
    deviation = statistics.stdev(values_S) if len(values_S) > 1 else None
    return {"values": list(values_S), "mean": statistics.fmean(values_S), "deviation": deviation}


def read(folder: str | Path) -> dict[str, Any]:
    """Read what `gather` wrote.

    Raises:
        ValueError: nothing is there, or it is damaged.
    """
    path = Path(folder) / NAME
    try:
        return read_table(path, "results of several seeds", _RESULTS, format=FORMAT)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no {path}: `multiexit train --seeds N --output {folder}`") from error


_number = schema.number()
_spread = schema.table({"values": schema.listed(_number, 1)}, rest=schema.plain)
_RESULTS = schema.table(
    {
        "format": schema.anything,
        "about": schema.table({"task": schema.text, "recipe": schema.text}, rest=schema.plain),
        "seeds": schema.listed(schema.whole(0, 2**64), 1),
        "sets": schema.table(
            {},
            rest=schema.table(
                {
                    "metric": schema.text,
                    "examples": schema.whole(1, 2**63),
                    "exits": schema.listed(_spread, 1),
                    "mean over exits": _spread,
                },
                rest=schema.plain,
            ),
        ),
    },
    rest=schema.plain,
)


def check_pair(other: dict[str, Any], task: str, seeds: Sequence[int]) -> None:
    """Refuse what can't be compared seed by seed.

    Args:
        other: the other runs, of `read` or `gather`.
        task, seeds: of these runs.

    Raises:
        ValueError: fewer than 2 seeds, other seeds, or another task.
    """
    if other["about"]["task"] != task:
        raise ValueError(f"these are runs on {task}, the others on {other['about']['task']}")
    if list(seeds) != other["seeds"]:
        raise ValueError(
            f"a paired test needs the same seeds: {list(seeds)} here, {other['seeds']} in the other"
        )
    if len(seeds) < 2:
        raise ValueError(f"a paired test needs at least 2 seeds, got {list(seeds)}: train more")


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two methods' runs on one task, paired by seed.

    The mean over exits is what decides. Where both have as many exits, each exit is compared too;
    of so many tests some are significant by chance, so their p-values are corrected (`holm`).

    Args:
        one, other: of `read` or `gather`; differences are one − other.

    Returns:
        For each set `"mean over exits"` and `"exits"`, as of `paired`; exits have `"p_holm"` too.

    Raises:
        ValueError: runs on other tasks, sets or seeds, or too few seeds.
    """
    check_pair(other, one["about"]["task"], one["seeds"])
    sets, other_sets = (
        {name: (rows["metric"], rows["examples"]) for name, rows in data["sets"].items()}
        for data in (one, other)
    )
    if sets != other_sets:
        raise ValueError(f"these runs were judged on {sets}, the others on {other_sets}")
    compared = {}
    for name, rows in one["sets"].items():
        other_rows = other["sets"][name]
        mean = paired(rows["mean over exits"]["values"], other_rows["mean over exits"]["values"])
        exits = []
        if len(rows["exits"]) == len(other_rows["exits"]):
            for exit, other_exit in zip(rows["exits"], other_rows["exits"], strict=True):
                exits.append(paired(exit["values"], other_exit["values"]))
            for row, p in zip(exits, holm([row["p"] for row in exits]), strict=True):
                row["p_holm"] = p
        compared[name] = {"mean over exits": mean, "exits": exits}
    recipes = [data["about"]["recipe"] for data in (one, other)]
    return {"recipes": recipes, "seeds": one["seeds"], "sets": compared}


def paired(one_S: Sequence[float], other_S: Sequence[float]) -> dict[str, Any]:
    """Student's paired t-test: do the differences d of S ≥ 2 pairs have mean 0?

    t = mean(d) · √S / deviation(d), with S − 1 degrees of freedom.

    Returns:
        `one`, `other` (the means), `difference`, its 95 % confidence interval `low`..`high`, and
        the two-sided `p`; these three are None where all differences are equal, which tells
        nothing about how much seeds matter.
    """
    one, other = np.asarray(one_S, float), np.asarray(other_S, float)
    row: dict[str, Any] = {
        "one": float(one.mean()),
        "other": float(other.mean()),
        "difference": float((one - other).mean()),
    }
    if np.ptp(one - other) < 1e-12:
        return {**row, "low": None, "high": None, "p": None}
    from scipy.stats import ttest_rel  # which takes a second to import

    test: Any = ttest_rel(one, other)
    interval = test.confidence_interval(CONFIDENCE)
    return {
        **row,
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
    }


def holm(p_M: Sequence[float | None]) -> list[float | None]:
    """Holm's p-values: of the k smallest, the largest (n − rank)·p, at most 1 (Holm 1979).

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    adjusted: list[float | None] = [None] * len(p_M)
    defined = sorted((p, m) for m, p in enumerate(p_M) if p is not None)
    largest = 0.0
    for rank, (p, m) in enumerate(defined):
        largest = max(largest, min(1.0, (len(defined) - rank) * p))
        adjusted[m] = largest
    return adjusted


def table(data: dict[str, Any]) -> str:
    """Mean ± deviation over the seeds, for each set."""
    parts = []
    for name, rows in data["sets"].items():
        at_2x = rows["at about 2x"]
        speedup = at_2x["speedup_layers"]["mean"]
        lines = {
            **{f"exit {m}": row for m, row in enumerate(rows["exits"])},
            "mean over exits": rows["mean over exits"],
            f"at {speedup:.2f}× ({', '.join(dict.fromkeys(at_2x['policies']))})": at_2x,
        }
        cells = [
            {"where": where, "mean (%)": _percent(row["mean"]), "±": _percent(row["deviation"])}
            for where, row in lines.items()
        ]
        about = f"{data['about']['recipe']}, {len(data['seeds'])} seed(s), {name}"
        parts.append(f"{about}: {metrics.label(rows['metric'])}\n{report.table(cells)}")
    return "\n\n".join(parts)


def comparison_table(compared: dict[str, Any]) -> str:
    """A table of what `compare` found, for each set."""
    one, other = compared["recipes"]
    parts = []
    for name, rows in compared["sets"].items():
        lines = {f"exit {m}": row for m, row in enumerate(rows["exits"])}
        cells = [
            {
                "where": where,
                "first (%)": _percent(row["one"]),
                "second (%)": _percent(row["other"]),
                "difference": _percent(row["difference"], "+"),
                "95 % interval": f"{_percent(row['low'], '+')} … {_percent(row['high'], '+')}",
                "p": _p_value(row["p"]),
                "p (Holm)": _p_value(row.get("p_holm")),
            }
            for where, row in {"mean over exits": rows["mean over exits"], **lines}.items()
        ]
        parts.append(f"{one} (first) against {other} (second), {name}\n{report.table(cells)}")
    seeds = len(compared["seeds"])
    parts.append(
        f"Paired t-test over {seeds} seeds ({seeds - 1} degree(s) of freedom). The mean over exits "
        "is one test; the exits are many, so for them read Holm's p."
    )
    return "\n\n".join(parts)


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{100 * value:{sign}.2f}"


def _p_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
