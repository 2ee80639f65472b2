"""What came out, for people to read: tables, and a page made from results in JSON.

Scores are kept in 0..1 and shown × 100. Exits are counted from 0. Letters: M exits.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiexit import metrics, policies
from multiexit.cost import Cost
from multiexit.evaluate import Outputs, Row, exit_scores
from multiexit.files import read_json
from multiexit.history import History
from multiexit.latency import Latency
from multiexit.policies import ExitPolicy
from multiexit.provenance import versions

FORMAT = 1
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
    return table(_exit_cells(_exits(outputs)), markdown)


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
    return table(_policy_cells(_policies(rows)), markdown)


def policy_name(policy: ExitPolicy | Mapping[str, Any]) -> str:
    """A policy (or its `to_json`) as typed on the command line, `patience=4`; else `Mine(a=1)`."""
    data = dict(policies.to_json(policy) if isinstance(policy, ExitPolicy) else policy)
    kind = data.pop("class")
    data.pop("certificate", None)
    data = {name: value for name, value in data.items() if value is not None}
    values = {k: _typed(v) for k, v in data.items()}
    for name, known in policies.POLICIES.items():
        if known.__name__ == kind:
            return f"{name}={','.join(values.values())}"
    return f"{kind}({', '.join(f'{name}={value}' for name, value in values.items())})"


def _typed(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "/".join(_typed(number) for number in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def results_json(
    outputs: Outputs,
    rows: Sequence[Row],
    history: History | None = None,
    **about: Any,
) -> dict[str, Any]:
    """A run's results as plain data, for `results_page`.

    Args:
        outputs: of the evaluation set.
        rows: a sweep on it.
        history: the run's; its epochs and its last weights Ω are kept.
        about: `title`, `command`, `note`, `recipe`,
            and any other plain data, e.g. `machine`, `seconds`; `versions` are added.

    Raises:
        ValueError: no rows, or something that JSON can't hold.
    """
    epochs = [] if history is None else history.epochs
    data = {
        "format": FORMAT,
        "about": {"versions": versions(), **about},
        "metric": metrics.name(outputs.metric),
        "examples": len(outputs.labels_B),
        "exits": _exits(outputs),
        "policies": _policies(rows),
        "epochs": [{k: v for k, v in row.items() if k != "exits"} for row in epochs],
        "weights": history.weights[-1][1] if history and history.weights else None,
    }
    try:
        return json.loads(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"these results can't be written as JSON: {error}") from error


def read_results(path: str | Path) -> dict[str, Any]:
    """What `results_json` gave, from a file; ValueError names one that is something else."""
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT or "exits" not in data:
        raise ValueError(f"{path} holds no results of `results_json` in format {FORMAT}")
    return data


def results_page(folder: str | Path) -> str:
    """One Markdown page of all `*.json` in a folder: a comparison, then each run.

    A picture of the same name (`mrpc.png` for `mrpc.json`) is shown with it.

    Raises:
        ValueError: no file there, or a damaged one, by its name.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"no results (*.json) in {folder}")
    compared, sections = [], []
    for path in paths:
        data = read_results(path)
        try:
            compared.append(_compared(path.stem, data))
            sections.append(_section(path, data))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error
    top = ["# Results", "Made from the JSON files beside this page.", table(compared, True)]
    return "\n\n".join([*top, *sections]) + "\n"


def _exits(outputs: Outputs) -> list[dict[str, Any]]:
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
    counts = {"MACs": _readable(macs), "parameters": _readable(parameters)}
    return {"exit": str(exit), "layers": str(layers), **counts}


def _policies(rows: Sequence[Row]) -> list[dict[str, Any]]:
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


def _readable(count: float) -> str:
    for unit in ("", " k", " M", " G"):
        if count < 1000 - 0.05 * bool(unit):
            return f"{count:.1f}{unit}" if unit else str(count)
        count /= 1000
    return f"{count:.1f} T"


def _compared(name: str, data: dict[str, Any]) -> dict[str, str]:
    scores = [row["scores"]["score"] for row in data["exits"]]
    near = min(data["policies"], key=lambda row: abs(row["speedup_layers"] - 2))
    return {
        "results": str(data["about"].get("title", name)),
        "recipe": str(data["about"].get("recipe", "–")),
        "metric": label(data["metric"]),
        "mean over exits": f"{100 * sum(scores) / len(scores):.2f}",
        "last exit": f"{100 * scores[-1]:.2f}",
        "nearest to 2×": f"{100 * near['score']:.2f}",
        "its setting": f"{policy_name(near['policy'])}, {near['speedup_layers']:.2f}×",
    }


def _section(path: Path, data: dict[str, Any]) -> str:
    about = dict(data["about"])
    title, note, command, used = (
        about.pop(key, None) for key in ("title", "note", "command", "versions")
    )
    name, picture = path.stem, path.with_suffix(".png")
    facts = {**about, "examples": data["examples"], **(used or {})}
    parts = [f"## {title or name}", note, command and f"```sh\n{command}\n```"]
    parts.append(" · ".join(f"{key} {value}" for key, value in facts.items()))
    if data["epochs"]:
        seconds = sum(row["seconds"] for row in data["epochs"])
        parts.append(f"Epochs of training: {len(data['epochs'])}, in {seconds:.0f} s.")
    parts += ["If all left at one exit:", table(_exit_cells(data["exits"]), True)]
    parts += ["If each leaves where the policy says:", table(_policy_cells(data["policies"]), True)]
    W = data["weights"]
    if W and len(W) <= SMALL:
        parts.append("Learned weights Ω of the loss terms (1 = uniform; own loss on the diagonal):")
        heads = ["student", *(f"teacher {j}" for j in range(len(W)))]
        cells = [
            [str(i), *("–" if w is None else f"{w:.2f}" for w in row)] for i, row in enumerate(W)
        ]
        rows = [dict(zip(heads, row, strict=True)) for row in cells]
        parts.append(table(rows, True))
    elif W:
        where = "drawn below" if picture.exists() else "in the JSON file, under `weights`"
        parts.append(f"The learned weights Ω of {len(W)} × {len(W)} loss terms are {where}.")
    if picture.exists():
        parts.append(f"![{title or name}]({picture.name})")
    return "\n\n".join(part for part in parts if part)


def label(metric: str) -> str:
    """What an axis or column of this metric's score is called."""
    return METRICS.get(metric, f"{metric} (%)")
