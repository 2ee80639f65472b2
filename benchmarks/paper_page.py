"""The paper's tables of scores, each beside what its methods came to in our runs.

The build of the documentation makes `docs/_paper.md` by it, from `docs/results/paper.json`, which
was copied from the paper, and the JSON of `benchmarks/evidence.py`.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from evidence_runs import RUNS, Results, at_exit, read, shown, shown_at

from multiexit.evaluation.report import table

PAPER = RUNS.parent / "paper.json"
KEYS = ("score", "speedup")


def ours(row: dict[str, Any], asked: float, results: Results | None) -> str:
    """A method's score at the speed-up that the table is about; the last exit's without exits."""
    if results is None or row["run"] not in results.methods:
        return ""
    method = results.methods[row["run"]]
    if row["speedup"] == 1:
        return f" · {shown(method.values(at_exit(-1)))}"
    return f" · {shown_at(method, results.policy, asked)}"


def one_table(data: dict[str, Any], results: dict[str, Results]) -> str:
    """The paper's rows, and behind each score ours."""
    rows = []
    for row in data["rows"]:
        cells = {"method": row["method"], "speed-up": f"{row['speedup']:.2f}×"}
        for task, score in row["scores"].items():
            here = results.get(data["runs"].get(task, ""))
            cells[task] = f"{score:.1f}{ours(row, data['asked'], here)}"
        rows.append(cells)
    return table(rows, markdown=True)


def cpu_seconds(results: Results | None, run: str) -> float | None:
    """What a method's training took, mean over seeds."""
    if results is None or run not in results.methods:
        return None
    runs = results.methods[run].runs.values()
    return statistics.fmean(run["trained"]["cpu_seconds"] for run in runs)


def times_table(data: dict[str, Any], results: dict[str, Results]) -> str:
    """Training time over that of the network without exits, the paper's and behind it ours."""
    rows = []
    for row in data["rows"]:
        cells = {"method": row["method"]}
        for task, minutes in row["minutes"].items():
            plain, here = data["rows"][0], results.get(data["runs"][task])
            cells[task] = f"{minutes / plain['minutes'][task]:.2f}"
            took, alone = cpu_seconds(here, row["run"]), cpu_seconds(here, plain["run"])
            if took and alone:
                cells[task] += f" · {took / alone:.2f}"
        rows.append(cells)
    return table(rows, markdown=True)


def patience_table(methods: dict[str, str], results: Results) -> str:
    """Score and speed-up of each patience that was chosen in some run, mean over those runs."""
    points: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in methods.values():
        method = results.methods.get(name)
        for run in method.runs.values() if method else ():
            chosen = {point["policy"]: point for point in run["policies"]["patience"]}
            for policy, point in chosen.items():
                points.setdefault(policy, {}).setdefault(name, []).append(point)
    rows = []
    for policy in sorted(points, key=lambda policy: int(policy.partition("=")[2])):
        row = {"policy": f"`{policy}`"}
        for shown_as, name in methods.items():
            if of_method := points[policy].get(name):
                score, speed = (statistics.fmean(p[key] for p in of_method) for key in KEYS)
                row[shown_as] = f"{100 * score:.1f} at {speed:.2f}×"
        rows.append(row)
    return table(rows, markdown=True) if rows else ""


def page(folder: Path = RUNS) -> str:
    """All of the paper's tables of scores."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    results = {found.setting.name: found for found in read(folder)}
    parts = []
    for data in paper["tables"]:
        parts += [
            f"**{data['table']}**: {data['of']}; ours asked for {data['asked']:g}×, "
            "in brackets what came out."
        ]
        parts += [one_table(data, results)]
    times = paper["minutes"]
    parts += [
        f"**{times['table']}**: training time over that without exits; the paper's is to the best "
        "checkpoint, ours for as many steps."
    ]
    parts += [times_table(times, results)]
    figures = paper["patience"]
    for setting in figures["runs"].values():
        if setting in results and (curves := patience_table(figures["methods"], results[setting])):
            parts += [f"**{figures['figures']}**: patience on {results[setting].title}.", curves]
    return "\n\n".join([*parts, f"The paper: {paper['source']}."]) + "\n"
