"""What came out, for people to read: tables, and a page made from results in JSON.

Scores are kept in 0..1 and shown × 100. Exits are counted from 0.

Letters: M exits, S batch sizes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from multiexit.evaluation.judging import Row, exit_scores
from multiexit.evaluation.outputs import Outputs
from multiexit.model.cost import Cost
from multiexit.model.latency import Latency
from multiexit.policies.registry import policy_name

AGREEMENT = "agreement with the last exit"
SMALL = 12  # up to so many exits the weights are written out as numbers
METRICS = {
    "accuracy": "accuracy (%)",
    "accuracy_f1": "mean of accuracy and F1 (%)",
    "matthews": "Matthews' correlation (× 100)",
    "pearson_spearman": "mean of Pearson's and Spearman's correlation (× 100)",
}


def table(rows: Sequence[Mapping[str, str]], markdown: bool = False) -> str:
    """Rows of named cells, as aligned text or as Markdown; a name that a row lacks is –."""
    if not rows:
        raise ValueError("no rows to put in a table")
    padded = []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [name, *(row.get(name, "–") for row in rows)]
        cells = [cell.replace("|", "\\|") if markdown else cell for cell in cells]
        width = max(3, *map(len, cells))
        number = all(cell[:1].isdigit() or cell[:1] in "-–" for cell in cells[1:])
        cells.insert(1, "-" * (width - 1) + ":" if number and markdown else "-" * width)
        padded.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in zip(*padded, strict=True))
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def exit_table(outputs: Outputs, markdown: bool = False) -> str:
    """A row per exit: layers, MACs, parameters, scores, and how often it says what the last says.

    Layers, MACs and parameters are cumulated, all heads so far included (`multiexit.Cost`).
    """
    return table(_exit_cells(_exit_rows(outputs)), markdown)


def cost_table(cost: Cost) -> str:
    """A row per exit: layers, MACs and parameters, cumulated, all heads so far included."""
    columns = zip(cost.layers_M, cost.macs_M, cost.params_M, strict=True)
    return table([_cost_cells(m, *row) for m, row in enumerate(columns)])


def latency_table(latency: Latency) -> str:
    """Milliseconds until each exit's answer, and without early exits, by batch size."""
    sizes = latency.batch_sizes
    ms_SM = [[*latency.until_exit_ms(size), latency.at(latency.full_ms, size)] for size in sizes]
    heads = [f"batch of {size}, ms" for size in sizes]
    names = [*map(str, range(len(latency.stages_ms))), "no early exits"]
    return table(
        [
            {"exit": name, **dict(zip(heads, (f"{ms:.3g}" for ms in ms_S), strict=True))}
            for name, ms_S in zip(names, zip(*ms_SM, strict=True), strict=True)
        ]
    )


def policy_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """A row per policy: scores, mean layers, speed-up by layers, by MACs and by measured time.

    Raises:
        ValueError: no rows.
    """
    return table(_policy_cells(_policy_rows(rows)), markdown)


def _exit_rows(outputs: Outputs) -> list[dict[str, Any]]:
    cost, answer_MB = outputs.cost, outputs.logits_MBC.argmax(-1)
    rows: list[dict[str, Any]] = [
        {"exit": m, "layers": layers, "macs": macs, "parameters": parameters, "scores": scores}
        for m, (layers, macs, parameters, scores) in enumerate(
            zip(cost.layers_M, cost.macs_M, cost.params_M, exit_scores(outputs), strict=True)
        )
    ]
    if outputs.logits_MBC.shape[-1] > 1:  # a regression's answers agree or not by degree
        for row, answer_B in zip(rows, answer_MB, strict=True):
            row["agreement"] = float((answer_B == answer_MB[-1]).double().mean())
    return rows


def _exit_cells(exits: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            **_cost_cells(row["exit"], row["layers"], row["macs"], row["parameters"]),
            **_percents(row["scores"]),
            **_percents({AGREEMENT: row["agreement"]} if "agreement" in row else {}),
        }
        for row in exits
    ]


def _cost_cells(exit: int, layers: int, macs: int, parameters: int) -> dict[str, str]:
    counts = {"MACs": _short_number(macs), "parameters": _short_number(parameters)}
    return {"exit": str(exit), "layers": str(layers), **counts}


def _policy_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    if not rows:
        raise ValueError("no policies' rows were given: sweep at least one policy")
    return [row.to_json() for row in rows]


def _policy_cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    speedups = {"layers": "speedup_layers", "MACs": "speedup_macs", "time": "speedup_time"}
    return [
        {
            "policy": policy_name(row["policy"]),
            **_percents(row["scores"]),
            "mean layers": f"{row['mean_layers']:.2f}",
            **{f"speed-up, {k}": f"{row[v]:.2f}×" for k, v in speedups.items() if row[v]},
        }
        for row in rows
    ]


def _percents(scores: Mapping[str, float]) -> dict[str, str]:
    named = {name: value for name, value in scores.items() if name != "score"} or scores
    return {f"{name} (%)": f"{100 * value:.2f}" for name, value in named.items()}


def _short_number(count: float) -> str:
    for unit in ("", " k", " M", " G"):
        if count < 1000 - 0.05 * bool(unit):
            return f"{count:.1f}{unit}" if unit else str(count)
        count /= 1000
    return f"{count:.1f} T"


def label(metric: str) -> str:
    """What an axis or column of this metric's score is called."""
    return METRICS.get(metric, f"{metric} (%)")
