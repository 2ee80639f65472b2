"""Pictures of results: scores, speed-ups, where inputs leave, and learned weights.

Nothing is drawn on a screen and no global state of matplotlib is touched.

Letters: M exits, S readings.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from multiexit.evaluation import metrics
from multiexit.evaluation.history import History
from multiexit.evaluation.judging import Row, exit_scores, judge
from multiexit.evaluation.metrics import label
from multiexit.evaluation.outputs import Outputs
from multiexit.evaluation.report import SMALL
from multiexit.files.writing import write
from multiexit.policies import FixedExit
from multiexit.policies.registry import policy_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
Weights = Tensor | Sequence[Sequence[float | None]]


def draw_exits(
    scores: Mapping[str, Sequence[float]], path: str | Path, metric: str = "score"
) -> None:
    """Draw the score of each exit, a line per name (e.g. per recipe).

    Args:
        scores: of the exits, in 0..1, by name.
        path: of the picture: `.png`, `.svg` or `.pdf`.
        metric: its name, for the axis.

    Raises:
        ValueError: nothing to draw, or a picture of another kind.
        OSError: the path can't be written.

    Example:
        >>> import tempfile, multiexit as mx
        >>> scores = {"joint": [0.61, 0.72, 0.74], "leebert": [0.66, 0.74, 0.75]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mx.pictures.draw_exits(scores, f"{folder}/exits.png", metric="accuracy")
    """
    _draw(path, (7, 4.5), lambda figure: _exits_panel(figure.subplots(), scores, metric))


def draw_curves(
    curves: Mapping[str, Sequence[Row]], path: str | Path, metric: str = "score"
) -> None:
    """Draw the score over the speed-up by layers, a line per name (e.g. per recipe or policy).

    A star marks the full network: a row whose policy let nobody leave early.

    Args:
        curves: rows of a sweep, by name.
        path: of the picture: `.png`, `.svg` or `.pdf`.
        metric: its name, for the axis.

    Raises:
        ValueError: nothing to draw, or a picture of another kind.
        OSError: the path can't be written.

    Example:
        >>> import tempfile, torch, multiexit as mx
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.randn(2, 8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), cost)
        >>> rows = mx.sweep(outputs, [mx.MaxProb(0.4), mx.MaxProb(0.6), mx.FixedExit(1)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mx.pictures.draw_curves({"max-prob": rows}, f"{folder}/curves.png", "accuracy")
    """
    _draw(path, (7, 4.5), lambda figure: _curves_panel(figure.subplots(), curves, metric))


def draw_shares(rows: Row | Sequence[Row], path: str | Path) -> None:
    """Draw where the rows of the set leave, a panel per policy.

    Args:
        rows: one or several, of `multiexit.judge` or `multiexit.sweep`.
        path: of the picture: `.png`, `.svg` or `.pdf`.

    Raises:
        ValueError: nothing to draw, or a picture of another kind.
        OSError: the path can't be written.

    Example:
        >>> import tempfile, torch, multiexit as mx
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.randn(2, 8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), cost)
        >>> row = mx.judge(outputs, mx.MaxProb(0.6))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mx.pictures.draw_shares(row, f"{folder}/shares.png")
    """
    rows = [rows] if isinstance(rows, Row) else rows
    _check_any(rows)

    def draw(figure: "Figure") -> None:
        for axes, row in zip(figure.subplots(len(rows), squeeze=False).flat, rows, strict=True):
            _shares_panel(axes, row)

    _draw(path, (7, 1 + 2.8 * len(rows)), draw)


def draw_weights(W_MM: Weights, path: str | Path) -> None:
    """Map of the weights Ω: row = student, column = teacher, outlined = an exit's own loss.

    Args:
        W_MM: as `History.weights` holds them; None, for terms that don't count, stays grey.
        path: of the picture: `.png`, `.svg` or `.pdf`.

    Raises:
        ValueError: weights that are no square, or a picture of another kind.
        OSError: the path can't be written.

    Example:
        >>> import tempfile, multiexit as mx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mx.pictures.draw_weights([[1.2, None], [0.7, 1.1]], f"{folder}/weights.svg")
    """
    W = _weights_array(W_MM)
    _draw(path, (7.5, 6.5), lambda figure: _weights_panel(figure.subplots(), W))


def draw_trajectory(history: History, path: str | Path) -> None:
    """Draw the weights Ω over steps (of the last phase that learned any): own, and as a teacher.

    Args:
        history: of a run.
        path: of the picture: `.png`, `.svg` or `.pdf`.

    Raises:
        ValueError: a history without learned weights, or a picture of another kind.
        OSError: the path can't be written.

    Example:
        >>> import tempfile, multiexit as mx
        >>> history = mx.History()
        >>> for step, own in enumerate((1.0, 1.2, 1.3)):
        ...     W_MM = [[own, None], [2 - own, own]]
        ...     history.steps.append({"step": step, "phase": 0, "W_MM": W_MM})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mx.pictures.draw_trajectory(history, f"{folder}/trajectory.png")
    """
    readings = [row for row in history.steps if "W_MM" in row]
    if not readings:
        raise ValueError("this history holds no learned weights")
    readings = [row for row in readings if row["phase"] == readings[-1]["phase"]]
    W_SMM = np.stack([_weights_array(row["W_MM"]) for row in readings])
    own_SMM = np.eye(W_SMM.shape[1], dtype=bool)[None].repeat(len(readings), 0)
    taught_SMM = np.ma.masked_invalid(np.where(own_SMM, np.nan, W_SMM))
    steps = [row["step"] for row in readings]
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
    path: str | Path,
    title: str = "",
) -> None:
    """One picture: score per exit, score over speed-up, where rows leave, and learned weights.

    Args:
        outputs: of the evaluation set.
        curves: sweeps on it by name; the full network is added.
        shares_row: the policy whose exits are shown.
        W_MM: learned weights; None leaves their panel out.
        path: of the picture: `.png`, `.svg` or `.pdf`.
        title: above it all.

    Raises:
        ValueError: nothing to draw, weights that are no square, or a picture of another kind.
        OSError: the path can't be written.

    Example:
        >>> import tempfile, torch, multiexit as mx
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.randn(2, 8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), cost)
        >>> rows = mx.sweep(outputs, [mx.MaxProb(0.4), mx.MaxProb(0.6)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/summary.png"
        ...     mx.pictures.draw_summary(outputs, {"max-prob": rows}, rows[0], None, path)
    """
    scores = {"": [scores["score"] for scores in exit_scores(outputs)]}
    full = judge(outputs, FixedExit(outputs.num_exits - 1))
    curves = {name: [full, *rows] for name, rows in curves.items()}
    W = None if W_MM is None else _weights_array(W_MM)

    def draw(figure: "Figure") -> None:
        figure.suptitle(title, fontsize=15, fontweight="bold")
        panels = figure.subplot_mosaic("ab;cc" if W is None else "ab;cd")
        _exits_panel(panels["a"], scores, metrics.name(outputs.metric))
        _curves_panel(panels["b"], curves, metrics.name(outputs.metric))
        _shares_panel(panels["c"], shares_row)
        if W is not None:
            _weights_panel(panels["d"], W)

    _draw(path, (12, 9), draw)


def _exits_panel(axes: "Axes", scores: Mapping[str, Sequence[float]], metric: str) -> None:
    _check_any(scores)
    for index, (name, score_M) in enumerate(scores.items()):
        score_M = [100 * score for score in score_M]
        axes.plot(score_M, label=name, **_line(index))
        if len(scores) == 1:
            axes.axhline(score_M[-1], color="#888888", linewidth=1, linestyle="--", zorder=1)
            axes.plot([], [], color="#888888", linewidth=1, linestyle="--", label="last exit")
    _style(axes, "Score of each exit", "exit", label(metric))
    axes.set_xticks(_ticks(max(map(len, scores.values()))))
    axes.legend(frameon=False)


def _curves_panel(axes: "Axes", curves: Mapping[str, Sequence[Row]], metric: str) -> None:
    from matplotlib.ticker import MultipleLocator

    _check_any(curves)
    starred = False
    for index, (name, rows) in enumerate(curves.items()):
        _check_any(rows)
        rows = sorted(rows, key=lambda row: row.speedup_layers)
        points = [(row.speedup_layers, 100 * row.score) for row in rows]
        axes.plot(*zip(*points, strict=True), label=name, **_line(index))
        full = next((100 * row.score for row in rows if row.shares_M[-1] == 1), None)
        if full is not None:
            starred = True
            axes.plot(1, full, "*", color=COLOURS[index % 7], markersize=16, mec="black", zorder=4)
    if starred:
        axes.plot([], [], "w*", markersize=13, mec="black", label="nobody leaves early")
    speedup = "speed-up (all layers ÷ mean layers run)"
    _style(axes, "Score against speed-up", speedup, label(metric))
    widest = max(row.speedup_layers for rows in curves.values() for row in rows) - 1
    step = next((step for step in (0.1, 0.25, 0.5, 1, 2, 5) if 7 * step >= widest), 10)
    axes.xaxis.set_major_locator(MultipleLocator(step, offset=1))
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.legend(frameon=False)


def _shares_panel(axes: "Axes", row: Row) -> None:
    share_M = [100 * share for share in row.shares_M]
    bars = axes.bar(range(len(share_M)), share_M, color=COLOURS[0], width=0.8)
    if len(share_M) <= SMALL:
        axes.bar_label(bars, [f"{share:.0f}" if share else "" for share in share_M], padding=2)
    layers = f"exit ({row.mean_layers:.1f} layers run on average)"
    _style(axes, "Where inputs leave", layers, "share of inputs (%)")
    setting = f"{policy_name(row.policy)}, {row.speedup_layers:.2f}×"
    axes.set_title(setting, loc="right", fontsize=10)
    axes.margins(y=0.12)
    axes.set_xticks(_ticks(len(share_M)))


def _weights_panel(axes: "Axes", W: NDArray[np.floating]) -> None:
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.patches import Rectangle

    M, values = len(W), W[~np.isnan(W)]
    low, high = float(values.min(initial=0.99)), float(values.max(initial=1.01))
    norm = TwoSlopeNorm(1, low, high)
    image = axes.imshow(np.ma.masked_invalid(W), cmap="RdBu_r", norm=norm, aspect="auto")
    bar = axes.figure.colorbar(image, ax=axes, label="weight (1 = uniform)")
    bar.outline.set_visible(False)
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
    axes.spines[:].set_visible(False)
    axes.set_xticks(_ticks(M))
    axes.set_yticks(_ticks(M))


def _weights_array(W_MM: Weights) -> NDArray[np.floating]:
    """The weights as an array, NaN where a term doesn't count."""
    W = np.array(W_MM.tolist() if isinstance(W_MM, Tensor) else W_MM, dtype=float)
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ValueError(f"weights are a square, row = student, column = teacher; got {W.shape}")
    return W


def _style(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _line(index: int) -> dict[str, Any]:
    """The look of a series: told apart by colour and by mark."""
    return {"color": COLOURS[index % 7], "marker": "osD^vPX"[index % 7], "markersize": 5}


def _ticks(M: int) -> range:
    return range(0, M, -(-M // 14))


def _draw(path: str | Path, size: tuple[float, float], draw: "Callable[[Figure], None]") -> None:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    path = Path(path)
    pads = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=size, dpi=150, layout=pads)
    kind = path.suffix[1:] or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"can't draw {path.name}: pictures are .png, .svg or .pdf")
    draw(figure)
    try:
        write(path, lambda target: figure.savefig(target, format=kind))
    except OSError as error:
        raise OSError(f"could not write {path}: {error}") from error


def _check_any(rows: Any) -> None:
    if not rows:
        raise ValueError("nothing to draw: no rows, or no curves, were given")
