"""What came out, for people to read: tables, pictures, and a page made from results in JSON.

Scores are kept in 0..1 and shown × 100. Exits are counted from 0. Letters: M exits.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multiexit import policies
from multiexit.evaluate import Outputs, Row, exit_scores, judge
from multiexit.history import History
from multiexit.policies import ExitPolicy, FixedExit
from multiexit.saving import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = 1
AGREEMENT = "agreement with the last exit"
SMALL = 12  # up to so many exits the weights are written out as numbers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
METRICS = {
    "accuracy_f1": "mean of accuracy and F1",
    "matthews": "Matthews' correlation",
    "pearson_spearman": "mean of Pearson's and Spearman's correlation",
}
Weights = Tensor | Sequence[Sequence[float | None]]


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


def policy_table(
    rows: Sequence[Row], times: Sequence[float | None] | None = None, markdown: bool = False
) -> str:
    """A row per policy: scores, mean layers, speed-up by layers, by MACs and by measured time.

    Args:
        rows: from `multiexit.sweep`.
        times: measured seconds of the full network ÷ with the policy, one per row; None where
            that was not measured.
        markdown: instead of text.

    Raises:
        ValueError: no rows, or times for more or fewer.
    """
    return table(_policy_cells(_policies(rows, times)), markdown)


def policy_name(policy: ExitPolicy | Mapping[str, Any]) -> str:
    """A policy (or its `to_json`) as typed on the command line, `patience=4`; else `Mine(a=1)`."""
    data = dict(policies.to_json(policy) if isinstance(policy, ExitPolicy) else policy)
    kind = data.pop("class")
    values = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in data.items()}
    for name, known in policies.POLICIES.items():
        if known.__name__ == kind:
            return f"{name}={','.join(value for value in values.values() if value != 'None')}"
    return f"{kind}({', '.join(f'{name}={value}' for name, value in values.items())})"


def results_json(
    outputs: Outputs,
    rows: Sequence[Row],
    history: History | None = None,
    *,
    times: Sequence[float | None] | None = None,
    teaches_MM: Tensor | None = None,
    **about: Any,
) -> dict[str, Any]:
    """A run's results as plain data, for `results_page`.

    Args:
        outputs: of the evaluation set.
        rows: a sweep on it.
        history: the run's; its epochs and its last weights Ω are kept.
        times: as in `policy_table`.
        teaches_MM: who teaches whom; weights of terms that don't count become None.
        about: `title`, `command`, `note`, `recipe`, `picture` (a file beside the JSON), and any
            other plain data, e.g. `machine`, `seconds`; `versions` are added.

    Raises:
        ValueError: no rows, or something that JSON can't hold.
    """
    epochs = [] if history is None else history.epochs
    W = _masked(history.weights[-1][1], teaches_MM) if history and history.weights else None
    data = {
        "format": FORMAT,
        "about": {"versions": versions(), **about},
        "metric": outputs.metric,
        "examples": len(outputs.labels_B),
        "exits": _exits(outputs),
        "policies": _policies(rows, times),
        "epochs": [{k: v for k, v in row.items() if k != "exits"} for row in epochs],
        "weights": None
        if W is None
        else [[None if w != w else w for w in ws] for ws in W.tolist()],
    }
    try:
        return json.loads(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"these results can't be written as JSON: {error}") from error


def read_results(path: str | Path) -> dict[str, Any]:
    """What `results_json` gave, from a file; ValueError names one that is something else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or "exits" not in data:
        raise ValueError(f"{path} holds no results of `results_json` in format {FORMAT}")
    return data


def results_page(folder: str | Path) -> str:
    """One Markdown page of all `*.json` in a folder: a comparison, then each run.

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
            sections.append(_section(path.stem, data))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from error
    top = ["# Results", "Made from the JSON files beside this page.", table(compared, True)]
    return "\n\n".join([*top, *sections]) + "\n"


def versions() -> dict[str, Any]:
    """Of what a result depends on: python, libraries, the number of CPUs and the device."""
    from multiexit import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "multiexit": __version__,
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


def _masked(W_MM: Weights, teaches_MM: Tensor | None = None) -> NDArray[np.floating]:
    """As an array, NaN where a term doesn't count."""
    W = np.array(W_MM.tolist() if isinstance(W_MM, Tensor) else W_MM, dtype=float)
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"weights are a square, row = student, column = teacher; got {W.shape}")
    if teaches_MM is None:
        return W
    if tuple(teaches_MM.shape) != W.shape:
        raise ValueError(f"a topology {tuple(teaches_MM.shape)} doesn't fit weights {W.shape}")
    return np.where(teaches_MM.cpu().numpy() | np.eye(len(W), dtype=bool), W, np.nan)


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
            "exit": str(row["exit"]),
            "layers": str(row["layers"]),
            "MACs": _readable(row["macs"]),
            "parameters": _readable(row["parameters"]),
            **_percents(row["scores"]),
            **_percents({AGREEMENT: row["agreement"]} if "agreement" in row else {}),
        }
        for row in exits
    ]


def _policies(
    rows: Sequence[Row], times: Sequence[float | None] | None = None
) -> list[dict[str, Any]]:
    if not rows:
        raise ValueError("no policies' rows were given: sweep at least one policy")
    times = [None] * len(rows) if times is None else times
    if len(times) != len(rows):
        raise ValueError(f"{len(times)} measured times don't fit {len(rows)} rows")
    return [{**row.to_json(), "speedup_time": t} for row, t in zip(rows, times, strict=True)]


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
        "metric": _label(data["metric"]),
        "mean over exits (%)": f"{100 * sum(scores) / len(scores):.2f}",
        "last exit (%)": f"{100 * scores[-1]:.2f}",
        "near 2× (%)": f"{100 * near['score']:.2f}",
        "there": f"{policy_name(near['policy'])}, {near['speedup_layers']:.2f}×",
    }


def _section(name: str, data: dict[str, Any]) -> str:
    about = dict(data["about"])
    title, note, command, picture, used = (
        about.pop(key, None) for key in ("title", "note", "command", "picture", "versions")
    )
    facts = {**about, "examples": data["examples"], **(used or {})}
    parts = [f"## {title or name}", note, command and f"```sh\n{command}\n```"]
    parts.append(" · ".join(f"{key} {value}" for key, value in facts.items()))
    if data["epochs"]:
        seconds = sum(row["seconds"] for row in data["epochs"])
        parts.append(f"Trained for {len(data['epochs'])} epochs in {seconds:.0f} s.")
    parts += ["If all left at one exit:", table(_exit_cells(data["exits"]), True)]
    parts += ["If each leaves where the policy says:", table(_policy_cells(data["policies"]), True)]
    W = data["weights"]
    if W and len(W) <= SMALL:
        parts.append("Learned weights Ω of the loss terms (1 = uniform; own loss on the diagonal):")
        cells = [["–" if w is None else f"{w:.2f}" for w in row] for row in W]
        heads = [f"teacher {j}" for j in range(len(W))]
        rows = [
            dict(zip(["student", *heads], [str(i), *c], strict=True)) for i, c in enumerate(cells)
        ]
        parts.append(table(rows, True))
    elif W:
        where = "in the picture below" if picture else "as `weights` in the JSON file"
        parts.append(f"The learned weights Ω of {len(W)} × {len(W)} loss terms are {where}.")
    parts.append(picture and f"![{title or name}]({picture})")
    return "\n\n".join(part for part in parts if part)


def draw_exits(scores: Mapping[str, Sequence[float]], path: Path, metric: str = "score") -> None:
    """Score of each exit, a line per name (e.g. per recipe)."""
    _draw(path, (7, 4.5), lambda figure: _exits_panel(figure.subplots(), scores, metric))


def draw_curves(curves: Mapping[str, Sequence[Row]], path: Path, metric: str = "score") -> None:
    """Score over speed-up by layers, a line per name (e.g. per recipe or kind of policy).

    A star marks the full network: a row whose policy let nobody leave early.
    """
    _draw(path, (7, 4.5), lambda figure: _curves_panel(figure.subplots(), curves, metric))


def draw_shares(rows: Row | Sequence[Row], path: Path) -> None:
    """Where the rows of the set leave, a panel per policy."""
    rows = [rows] if isinstance(rows, Row) else rows
    _need(rows)

    def draw(figure: "Figure") -> None:
        for axes, row in zip(figure.subplots(len(rows), squeeze=False).flat, rows, strict=True):
            _shares_panel(axes, row)

    _draw(path, (7, 1 + 2.8 * len(rows)), draw)


def draw_weights(W_MM: Weights, path: Path, teaches_MM: Tensor | None = None) -> None:
    """Map of the weights Ω: row = student, column = teacher, outlined = an exit's own loss.

    Args:
        W_MM: as `History.weights` holds them; None and NaN stay grey.
        path: of the picture.
        teaches_MM: who teaches whom; the other terms don't count and stay grey.
    """
    W = _masked(W_MM, teaches_MM)
    _draw(path, (7.5, 6.5), lambda figure: _weights_panel(figure.subplots(), W))


def draw_trajectory(history: History, path: Path, teaches_MM: Tensor | None = None) -> None:
    """Weights Ω over steps (of the last phase that learned any): own losses, and as a teacher."""
    read = [row for row in history.steps if "W_MM" in row]
    if not read:
        raise ValueError("this history holds no learned weights")
    read = [row for row in read if row["phase"] == read[-1]["phase"]]
    W_SMM = np.stack([_masked(row["W_MM"], teaches_MM) for row in read])
    own_SMM = np.eye(W_SMM.shape[1], dtype=bool)[None].repeat(len(read), 0)
    taught_SMM = np.ma.masked_invalid(np.where(own_SMM, np.nan, W_SMM))
    steps = [row["step"] for row in read]
    panels = {
        "Weight of an exit's own loss": W_SMM.diagonal(axis1=1, axis2=2),
        "Weight as teacher, mean over students": taught_SMM.mean(1),
    }

    def draw(figure: "Figure") -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap

        depth_M = colormaps["viridis"](np.linspace(0, 0.9, W_SMM.shape[1]))
        pair = figure.subplots(1, 2)
        for axes, (title, lines_SM) in zip(pair, panels.items(), strict=True):
            axes.set_prop_cycle(color=depth_M)
            axes.plot(steps, lines_SM, linewidth=1.6)
            _style(axes, title, "training step", "weight (1 = uniform)")
        scale = ScalarMappable(cmap=ListedColormap(depth_M))
        scale.set_clim(-0.5, len(depth_M) - 0.5)
        bar = figure.colorbar(scale, ax=pair, label="exit")
        bar.set_ticks(_ticks(len(depth_M)))

    _draw(path, (11, 4.2), draw)


def draw_summary(
    outputs: Outputs,
    curves: Mapping[str, Sequence[Row]],
    shares_row: Row,
    W_MM: Weights | None,
    path: Path,
    title: str = "",
    teaches_MM: Tensor | None = None,
) -> None:
    """One picture: score per exit, score over speed-up, where rows leave, and learned weights.

    Args:
        outputs: of the evaluation set.
        curves: sweeps on it by name; the full network is added.
        shares_row: the policy whose exits are shown.
        W_MM: learned weights; None leaves their panel out.
        path: of the picture.
        title: above it all.
        teaches_MM: as in `draw_weights`.
    """
    scores = {"": [scores["score"] for scores in exit_scores(outputs)]}
    full = judge(outputs, FixedExit(outputs.num_exits - 1))
    curves = {name: [full, *rows] for name, rows in curves.items()}
    W = None if W_MM is None else _masked(W_MM, teaches_MM)

    def draw(figure: "Figure") -> None:
        figure.suptitle(title, fontsize=15, fontweight="bold")
        panels = figure.subplot_mosaic("ab;cc" if W is None else "ab;cd")
        _exits_panel(panels["a"], scores, outputs.metric)
        _curves_panel(panels["b"], curves, outputs.metric)
        _shares_panel(panels["c"], shares_row)
        if W is not None:
            _weights_panel(panels["d"], W)

    _draw(path, (12, 9), draw)


def _exits_panel(axes: "Axes", scores: Mapping[str, Sequence[float]], metric: str) -> None:
    _need(scores)
    for index, (name, score_M) in enumerate(scores.items()):
        score_M = [100 * score for score in score_M]
        axes.plot(score_M, label=name, **_line(index))
        if len(scores) == 1:
            axes.axhline(score_M[-1], color="#888888", linewidth=1, linestyle="--", zorder=1)
            axes.plot([], [], color="#888888", linewidth=1, linestyle="--", label="last exit")
    _style(axes, "How good each exit is", "exit", _label(metric))
    axes.set_xticks(_ticks(max(map(len, scores.values()))))
    axes.legend(frameon=False)


def _curves_panel(axes: "Axes", curves: Mapping[str, Sequence[Row]], metric: str) -> None:
    _need(curves)
    for index, (name, rows) in enumerate(curves.items()):
        _need(rows)
        rows = sorted(rows, key=lambda row: row.speedup_layers)
        points = [(row.speedup_layers, 100 * row.score) for row in rows]
        axes.plot(*zip(*points, strict=True), label=name, **_line(index))
        full = next((100 * row.score for row in rows if row.shares_M[-1] == 1), None)
        if full is not None:
            axes.plot(1, full, "*", color=COLOURS[index % 7], markersize=16, mec="black", zorder=4)
    axes.plot([], [], "*", color="white", markersize=13, mec="black", label="nobody leaves early")
    _style(
        axes, "Score against speed-up", "speed-up (all layers ÷ mean layers run)", _label(metric)
    )
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.legend(frameon=False)


def _shares_panel(axes: "Axes", row: Row) -> None:
    share_M = [100 * share for share in row.shares_M]
    bars = axes.bar(range(len(share_M)), share_M, color=COLOURS[0], width=0.8)
    if len(share_M) <= SMALL:
        axes.bar_label(bars, [f"{share:.0f}" if share else "" for share in share_M], padding=2)
    _style(axes, f"Where inputs leave: {policy_name(row.policy)}", "exit", "share of inputs (%)")
    text = f"{row.mean_layers:.1f} layers on average: {row.speedup_layers:.2f}×"
    axes.set_title(text, loc="right", fontsize=10)
    axes.margins(y=0.12)
    axes.set_xticks(_ticks(len(share_M)))


def _weights_panel(axes: "Axes", W: NDArray[np.floating]) -> None:
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.patches import Rectangle

    M, values = len(W), W[~np.isnan(W)]
    low, high = float(values.min(initial=0.99)), float(values.max(initial=1.01))
    norm = TwoSlopeNorm(1, low, high)
    image = axes.imshow(np.ma.masked_invalid(W), cmap="RdBu_r", norm=norm)
    axes.figure.colorbar(image, ax=axes, label="weight (1 = uniform)", shrink=0.85)
    for i, j in np.argwhere(~np.isnan(W)) if M <= SMALL else ():
        colour = "white" if abs(norm(W[i, j]) - 0.5) > 0.3 else "black"
        style = {"ha": "center", "va": "center", "fontsize": min(10, 84 / M)}
        axes.text(j, i, f"{W[i, j]:.2f}", color=colour, **style)
    for i in range(M):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, linewidth=1.2))
    _style(axes, "Learned loss weights", "teacher exit", "student exit")
    axes.set_title("outlined: own loss", loc="right", fontsize=10)
    axes.set_facecolor("#e4e4e4")
    axes.grid(False)
    axes.set_xticks(_ticks(M))
    axes.set_yticks(_ticks(M))


def _style(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _line(index: int) -> dict[str, Any]:
    """How a series looks: told apart by colour and by mark."""
    return {"color": COLOURS[index % 7], "marker": "osD^vPX"[index % 7], "markersize": 5}


def _label(metric: str) -> str:
    return METRICS.get(metric, metric)


def _ticks(M: int) -> range:
    return range(0, M, -(-M // 14))


def _draw(path: Path, size: tuple[float, float], draw: "Callable[[Figure], None]") -> None:
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    kind = path.suffix[1:] or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"can't draw {path.name}: pictures are .png, .svg or .pdf")
    draw(figure)
    try:
        write(path, lambda target: figure.savefig(target, format=kind))
    except OSError as error:
        raise OSError(f"could not write {path}: {error}") from error


def _need(rows: Any) -> None:
    if not rows:
        raise ValueError("nothing to draw: no rows, or no curves, were given")
