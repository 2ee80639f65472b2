"""Results as JSON, and a page made from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiexit.data.fingerprint import fingerprint
from multiexit.evaluation import metrics
from multiexit.evaluation.cells import exit_cells, exit_rows, policy_cells, policy_rows
from multiexit.evaluation.history import History
from multiexit.evaluation.judging import Row
from multiexit.evaluation.metrics import label
from multiexit.evaluation.outputs import Outputs
from multiexit.evaluation.report import SMALL, table
from multiexit.files import schema
from multiexit.files.json_files import read_table
from multiexit.policies.registry import policy_name
from multiexit.runtime import versions

FORMAT = 1


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

    Returns:
        Plain data, with scores and shares in 0..1.

    Raises:
        ValueError: no rows, or something that JSON can't hold.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.evaluation.results import results_json
        >>> logits_MBC = torch.tensor([[[1.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(logits_MBC, torch.tensor([1, 0]), cost)
        >>> data = results_json(outputs, [mx.judge(outputs, mx.FixedExit(0))], recipe="joint")
        >>> data["about"]["recipe"], data["examples"], data["policies"][0]["score"]
        ('joint', 2, 0.5)
    """
    epochs = [] if history is None else history.epochs
    data = {
        "format": FORMAT,
        "about": {"versions": versions(), **about},
        "metric": metrics.name(outputs.metric),
        "examples": len(outputs.labels_B),
        "labels": fingerprint(outputs.labels_B),
        "exits": exit_rows(outputs),
        "policies": policy_rows(rows),
        "epochs": [{k: v for k, v in row.items() if k != "exits"} for row in epochs],
        "weights": history.weights[-1][1] if history and history.weights else None,
    }
    try:
        return json.loads(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"these results can't be written as JSON: {error}") from error


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a file that holds what `results_json` gave.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from multiexit.evaluation.results import read_results
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "mrpc.json").write_text('{"format": 1, "exits": []}')
        ...     read_results(f"{folder}/mrpc.json")
        {'format': 1, 'exits': []}
    """
    return read_table(path, "results of `results_json`", _RESULTS, format=FORMAT)


_RESULTS = schema.table(
    {"format": schema.anything, "exits": schema.listed(schema.anything)}, rest=schema.anything
)


def results_page(folder: str | Path) -> str:
    """Make one Markdown page of all `*.json` in a folder: a comparison, then each run.

    A picture of the same name (`mrpc.png` for `mrpc.json`) is shown with it.

    Raises:
        ValueError: no file there, or a damaged one, by its name.

    Example:
        >>> import json, tempfile, torch, multiexit as mx
        >>> from pathlib import Path
        >>> from multiexit.evaluation.results import results_json, results_page
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.eye(2).expand(2, 2, 2), torch.tensor([0, 1]), cost)
        >>> data = results_json(outputs, [mx.judge(outputs, mx.FixedExit(0))], title="RTE")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "rte.json").write_text(json.dumps(data))
        ...     page = results_page(folder)
        >>> [line for line in page.splitlines() if line.startswith("#")]
        ['# Results', '## RTE']
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise ValueError(f"no results (*.json) in {folder}")
    comparison, sections = [], []
    for path in paths:
        data = read_results(path)
        try:
            comparison.append(_comparison_row(path.stem, data))
            sections.append(_section(path, data))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error
    top = ["# Results", "Made from the JSON files beside this page.", table(comparison, True)]
    return "\n\n".join([*top, *sections]) + "\n"


def nearest(speedups: Sequence[float], speedup: float = 2.0) -> int:
    """The index of the speed-up that is nearest to another: results are compared at 2×.

    >>> nearest([1.0, 1.8, 3.0])
    1
    """
    return min(range(len(speedups)), key=lambda index: abs(speedups[index] - speedup))


def _comparison_row(name: str, data: dict[str, Any]) -> dict[str, str]:
    scores = [row["scores"]["score"] for row in data["exits"]]
    at_two = data["policies"][nearest([row["speedup_layers"] for row in data["policies"]])]
    return {
        "results": str(data["about"].get("title", name)),
        "recipe": str(data["about"].get("recipe", "–")),
        "metric": label(data["metric"]),
        "mean over exits": f"{100 * sum(scores) / len(scores):.2f}",
        "last exit": f"{100 * scores[-1]:.2f}",
        "nearest to 2×": f"{100 * at_two['score']:.2f}",
        "its setting": f"{policy_name(at_two['policy'])}, {at_two['speedup_layers']:.2f}×",
    }


def _section(path: Path, data: dict[str, Any]) -> str:
    about = dict(data["about"])
    title, note, command, libraries = (
        about.pop(key, None) for key in ("title", "note", "command", "versions")
    )
    name, picture = path.stem, path.with_suffix(".png")
    facts = {**about, "examples": data["examples"], **(libraries or {})}
    parts = [f"## {title or name}", note, command and f"```sh\n{command}\n```"]
    parts.append(" · ".join(f"{key} {value}" for key, value in facts.items()))
    if data["epochs"]:
        seconds = sum(row["seconds"] for row in data["epochs"])
        parts.append(f"Epochs of training: {len(data['epochs'])}, in {seconds:.0f} s.")
    parts += ["If all left at one exit:", table(exit_cells(data["exits"]), True)]
    parts += ["If each leaves where the policy says:", table(policy_cells(data["policies"]), True)]
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
