"""What `benchmarks/promises.py` found: per data set what was kept, what was not, and a table.

The build of the documentation makes `docs/_promises.md` by it.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

from evidence_plan import ENCODERS

from multiexit.evaluation.report import table

PROMISES = Path(__file__).parents[1] / "docs" / "results" / "promises"
Row = dict[str, Any]
SPEEDS = {"speed-up": "`mx.calibrate`", "budgeted": "`mx.budgeted`"}
TIMES = {"milliseconds": "by the table", "milliseconds, timed": "as timed"}


def made(row: Row) -> int:
    """The number of splits on which the promise was made."""
    return row["splits"] - row["refused"]


def broken(row: Row) -> float:
    """On which share of these the unseen rows came out worse, in %."""
    return 100 * row["broken"] / made(row)


def due(row: Row) -> float:
    """On about which share they come out worse, in %, where a bound is used up to the last.

    Φ(−z / √(1 + n/m)), z the confidence's normal quantile, n rows to calibrate on and m unseen
    ones, which scatter too: with few of them 1 − confidence becomes one half.
    """
    z = NormalDist().inv_cdf(row["confidence"])
    return 100 * NormalDist().cdf(-z / math.sqrt(1 + row["calibrated on"] / row["judged on"]))


def kept(row: Row) -> bool:
    """Whether a risk was kept: as often as its confidence says, or on average."""
    return row["mean"] <= row["asked"] if row["confidence"] is None else broken(row) <= due(row)


def name(row: Row) -> str:
    """The promise in words."""
    kind = row["promise"]
    if kind in SPEEDS:
        return f"speed-up by {SPEEDS[kind]}"
    if kind in TIMES:
        return f"share of the time, {TIMES[kind]}"
    sure = "on average" if row["confidence"] is None else f"confidence {row['confidence']}"
    return f"risk of `{row['loss']}`, {sure}"


def figure(row: Row, value: float | None) -> str:
    """A figure as one reads it: speed-ups as multiples, all else in %."""
    if value is None:
        return "–"
    if row["promise"] in SPEEDS:
        return f"{value:.2f}×"
    return f"{100 * value:.0f} %" if row["promise"] in TIMES else f"{100 * value:.2f} %"


def asked(rows: list[Row]) -> str:
    """What was asked for, each figure once."""
    figures = {
        row["asked"]: f"{row['asked']:g}×"
        if row["promise"] in SPEEDS
        else f"{100 * row['asked']:g} %"
        for row in rows
    }
    return " and ".join(figures[value] for value in sorted(figures))


def cells(row: Row) -> dict[str, str]:
    """A row of the table."""
    bounded = row["confidence"] is not None
    deviation = row["deviation"]
    came = figure(row, row["mean"])
    return {
        "promise": name(row),
        "asked": asked([row]),
        "came out": came if deviation is None else f"{came} ± {figure(row, deviation)}",
        "worst": figure(row, row["worst"]),
        "broken on": f"{broken(row):.0f} %" if made(row) else "–",
        "may be on": f"{due(row):.0f} %" if bounded else "–",
        "refused on": f"{100 * row['refused'] / row['splits']:.0f} %",
        "speed-up": "–" if row["speedup"] is None else f"{row['speedup']:.2f}×",
    }


def between(values: list[float]) -> str:
    """The smallest and the largest, in %."""
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def sentences(rows: list[Row]) -> Iterator[str]:
    """What was kept and what was not."""
    parts, always = [], True
    for kind, by in SPEEDS.items():
        these = [row for row in rows if row["promise"] == kind and made(row)]
        if these:
            short = max(0.0, *(100 * (1 - row["worst"] / row["asked"]) for row in these))
            shares = between([broken(row) for row in these])
            parts.append(f"by {by} less came out on {shares} of the splits, at worst {short:.0f} %")
            always = always and not any(row["broken"] for row in these)
    if parts:
        yield (
            f"**Speed-ups: {'kept' if always else 'not kept on every split'}.** Of what was asked "
            f"for, {'; '.join(parts)}. A speed-up is that of the rows to calibrate on, and new "
            "rows lie around it."
        )
    for row in rows:
        if row["promise"] == "milliseconds, timed" and made(row):
            word = "kept on average" if row["mean"] <= row["asked"] else "not kept"
            yield (
                f"**Milliseconds: {word}.** Asked for {figure(row, row['asked'])} of the whole "
                f"network's time by a latency table, rows took {figure(row, row['mean'])} of it "
                f"one by one, at worst {figure(row, row['worst'])}."
            )
    for bounded in (True, False):
        these = [
            row
            for row in rows
            if row["promise"] == "risk" and made(row) and (row["confidence"] is not None) == bounded
        ]
        if these:
            yield _of_risks(these, bounded)
    refused = [row for row in rows if not made(row)]
    for bounded, how in ((True, "with a confidence"), (False, "on average")):
        risks = [row for row in refused if row["promise"] == "risk"]
        if which := asked([row for row in risks if (row["confidence"] is not None) == bounded]):
            size = rows[0]["calibrated on"]
            yield f"**Refused:** a risk of {which} {how}, which {size} rows can't certify."
    if times := asked([row for row in refused if row["promise"] in TIMES]):
        yield f"**Refused:** {times} of the whole network's time; no setting is that fast."
    if speeds := asked([row for row in refused if row["promise"] in SPEEDS]):
        yield f"**Refused:** a speed-up of {speeds}; no setting is that fast."


def _of_risks(rows: list[Row], bounded: bool) -> str:
    not_kept = [row for row in rows if not kept(row)]
    if bounded:
        head = f"Risks with a confidence of {100 * rows[0]['confidence']:g} %"
        said = (
            f"unseen rows were above the risk on {between([broken(row) for row in rows])} of the "
            f"splits, and may be on about {due(rows[0]):.0f} %."
        )
    else:
        head = "Risks on average"
        said = (
            f"means came to {between([100 * row['mean'] / row['asked'] for row in rows])} of the "
            f"risk; single splits are above it on {between([broken(row) for row in rows])} of "
            "them, which this bound allows."
        )
    if not not_kept:
        return f"**{head}: kept.** Over {len(rows)} of them, {said}"
    which = ", ".join(f"`{row['loss']}` at {100 * row['asked']:g} %" for row in not_kept)
    return f"**{head}: not kept of {which}.** Over {len(rows)} of them, {said}"


def section(data: dict[str, Any]) -> str:
    """All about one data set."""
    about, full = data["about"], data["full"]
    network = ENCODERS.get(data["backbone"], data["backbone"])
    parts = [f"### Promises on {data['task']}, {network}"]
    sizes = sorted({row["calibrated on"] for row in data["rows"]})
    for size in sizes:
        # What is timed is judged on fewer rows.
        rows = [row for row in data["rows"] if row["calibrated on"] == size]
        unseen = max(row["judged on"] for row in rows)
        parts.append(f"Calibrated on {size} rows, judged on the {unseen} others:")
        parts.append("\n".join(f"- {sentence}" for sentence in sentences(rows)))
        parts.append(table([cells(row) for row in rows], markdown=True))
    used = " · ".join(f"{key} {value}" for key, value in about["versions"].items())
    parts.append(
        f"Trained by `{data['method']}` for {data['steps']} steps; {data['policy']}; the last exit "
        f"has {100 * full['score']:.1f} of {data['metric']}, and the whole network takes "
        f"{full['milliseconds']:.2g} ms a row. {about['machine']} · {used}"
    )
    parts.append(f"```sh\n{about['command']}\n```")
    return "\n\n".join(parts)


def page(folder: Path = PROMISES) -> str:
    """The sections of all data sets that were judged."""
    paths = sorted(folder.glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    found.sort(key=lambda data: data["examples"])
    return "\n\n".join(map(section, found)) + "\n"
