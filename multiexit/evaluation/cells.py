"""Figures of exits and policies as plain data, and that as cells of a table.

Letters: M exits, B rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from multiexit import problems
from multiexit.evaluation.judging import Row, exit_scores
from multiexit.evaluation.outputs import Outputs
from multiexit.policies.registry import policy_name
from multiexit.problems import are_vectors

AGREEMENT = "agreement with the last exit"


def policy_cell(policy: Mapping[str, Any], shares_M: Sequence[float]) -> str:
    """A policy as typed, and whether it lets nobody leave early."""
    stays = shares_M[-1] == 1 and policy["class"] != "FixedExit"
    return policy_name(policy) + " (no row leaves early)" * stays


def exit_rows(outputs: Outputs) -> list[dict[str, Any]]:
    """Each exit's cost, scores and agreement with the last, as plain data."""
    cost, problem = outputs.cost, problems.resolve(outputs.problem, outputs.num_classes)
    answer_MB = problems.answer(outputs.logits_MBC, problem)
    rows: list[dict[str, Any]] = [
        {"exit": m, "layers": layers, "macs": macs, "parameters": parameters, "scores": scores}
        for m, (layers, macs, parameters, scores) in enumerate(
            zip(cost.layers_M, cost.macs_M, cost.params_M, exit_scores(outputs), strict=True)
        )
    ]
    # The answers of a regression and of an embedding agree or not by degree.
    if problem != "regression" and not are_vectors(problem):
        for row, answer_B in zip(rows, answer_MB, strict=True):
            same_B = problems.same(answer_B, answer_MB[-1], problem, outputs.asked_BT)
            row["agreement"] = float(same_B.double().mean())
    return rows


def exit_cells(exits: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What `exit_rows` gives, as cells by column."""
    return [
        {
            **cost_cells(row["exit"], row["layers"], row["macs"], row["parameters"]),
            **percents(row["scores"]),
            **percents({AGREEMENT: row["agreement"]} if "agreement" in row else {}),
        }
        for row in exits
    ]


def cost_cells(exit: int, layers: int, macs: int, parameters: int) -> dict[str, str]:
    """An exit's cost as cells by column."""
    counts = {"MACs": short_number(macs), "parameters": short_number(parameters)}
    return {"exit": str(exit), "layers": str(layers), **counts}


def policy_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A sweep as plain data; no rows are refused by a ValueError."""
    if not rows:
        raise ValueError("no policies' rows were given: sweep at least one policy")
    return [row.to_json() for row in rows]


def policy_cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What `policy_rows` gives, as cells by column."""
    speedups = {"layers": "speedup_layers", "MACs": "speedup_macs", "time": "speedup_time"}
    return [
        {
            "policy": policy_cell(row["policy"], row["shares_M"]),
            **percents(row["scores"]),
            "mean layers": f"{row['mean_layers']:.2f}",
            **{f"speed-up, {k}": f"{row[v]:.2f}×" for k, v in speedups.items() if row[v]},
        }
        for row in rows
    ]


def percents(scores: Mapping[str, float]) -> dict[str, str]:
    """Scores × 100 as cells by column."""
    named = {name: value for name, value in scores.items() if name != "score"}
    named = named if len(named) == 1 else scores  # of several, the one that runs are compared by
    return {f"{name} (%)": f"{100 * value:.2f}" for name, value in named.items()}


def short_number(count: float) -> str:
    """A count to one decimal, in thousands, millions, …"""
    for unit in ("", " k", " M", " G"):
        if count < 1000 - 0.05 * bool(unit):
            return f"{count:.1f}{unit}" if unit else str(count)
        count /= 1000
    return f"{count:.1f} T"
