"""The parts of a page about one run.

Letters: M exits.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from multiexit.evaluation.cells import exit_cells, policy_cells
from multiexit.evaluation.metrics import OF_VALUES, label
from multiexit.evaluation.page import charts
from multiexit.evaluation.page.charts import Series
from multiexit.evaluation.page.markup import Markup, element, table
from multiexit.evaluation.page.runs import Run
from multiexit.evaluation.results import nearest
from multiexit.policies.registry import policy_name

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
GROUPS = {
    "easy": ("Easiest", "Right, and first to leave."),
    "hard": ("Hardest", "Last to leave; of equals the wrong ones first."),
    "lost": ("Lost by leaving early", "Wrong where they leave, though the last exit is right."),
    "won": ("Won by leaving early", "Right where they leave, though the last exit is wrong."),
}


def section(run: Run, alone: bool) -> Markup:
    """All about a run, folded under its title unless it is alone on the page."""
    parts = [_about(run), _charts(run), _tables(run), _weights(run), _calibration(run)]
    parts += [_examples(run), _training(run)]
    if alone:
        return element("section", *parts)
    return element("details", element("summary", element("h2", run.title)), *parts)


def at_two(run: Run) -> dict[str, Any]:
    """The judged policy that is nearest to 2×."""
    rows = run.results["policies"]
    return rows[nearest([row["speedup_layers"] for row in rows])]


def curves(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Speed-up and score × 100 by kind of policy; fixed exits only where they are all there is."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in run.results["policies"]:
        point = (row["speedup_layers"], 100 * row["score"])
        kinds.setdefault(policy_name(row["policy"]).partition("=")[0], []).append(point)
    if len(kinds) > 1:
        kinds.pop("fixed", None)
    return {name: sorted(points) for name, points in kinds.items()}


def exit_scores(run: Run) -> list[float]:
    """Each exit's score × 100."""
    return [100 * row["scores"]["score"] for row in run.results["exits"]]


def _about(run: Run) -> Markup:
    results, about = run.results, run.results["about"]
    shown, scores = at_two(run), exit_scores(run)
    name = policy_name(shown["policy"])
    short = (
        f"{results['examples']} rows; {label(results['metric'])} at the last exit: "
        f"{scores[-1]:.1f}. With the policy {name} inputs run {shown['mean_layers']:.1f} of "
        f"{results['exits'][-1]['layers']} layers on average ({shown['speedup_layers']:.2f} times "
        f"fewer), and it is {100 * shown['score']:.1f}."
    )
    facts = {k: about[k] for k in ("recipe", "seconds") if k in about} | (
        about.get("versions") or {}
    )
    line = " · ".join(f"{key} {value}" for key, value in facts.items())
    return element(
        "div",
        element("p", short),
        element("p", about["note"]) if about.get("note") else None,
        _model(run),
        element("p", line, class_="facts"),
        element("pre", about["command"]) if about.get("command") else None,
    )


def _model(run: Run) -> Markup | None:
    """How the model stops now, which may be since these rows were judged."""
    own = run.model and run.model["stops by"]
    if run.model is None or own is None:
        return None
    judged = {policy_name(row["policy"]) for row in run.results["policies"]}
    text = f"The model now stops by {own}"
    text += "." if own in judged else ", which isn't judged here: `multiexit evaluate` does."
    for key in ("certificate", "calibration table"):
        if run.model[key]:
            text += f" It has a {key}: {run.model[key]}."
    return element("p", text)


def _charts(run: Run) -> Markup:
    metric, scores, shown = label(run.results["metric"]), exit_scores(run), at_two(run)
    last = Series("last exit", [(0, scores[-1]), (len(scores) - 1, scores[-1])], False, 1, True)
    each = Series("each exit", list(enumerate(scores)))
    kinds = [Series(n, p, colour=k) for k, (n, p) in enumerate(curves(run).items())]
    name = f"Where inputs leave, {policy_name(shown['policy'])} ({shown['speedup_layers']:.2f}×)"
    return element(
        "div",
        charts.lines("Score of each exit", [each, last], "exit", metric),
        charts.lines("Score against speed-up", kinds, "all layers ÷ layers run", metric),
        charts.bars(name, [100 * share for share in shown["shares_M"]], "exit", "inputs (%)"),
        class_="charts",
    )


def _tables(run: Run) -> Markup:
    exits, rows = run.results["exits"], run.results["policies"]
    raw = [
        {"exit": e["exit"], "layers": e["layers"], "MACs": e["macs"], "parameters": e["parameters"]}
        for e in exits
    ]
    return element(
        "div",
        element("h3", "If all left at one exit"),
        sortable(exit_cells(exits), raw),
        element("h3", "If each leaves where the policy says"),
        sortable(policy_cells(rows)),
    )


def sortable(
    cells: Sequence[dict[str, str]], raw: Sequence[dict[str, float]] | None = None
) -> Markup:
    """A table of named cells; numbers sort as numbers, by `raw` where it has them."""
    heads = list(dict.fromkeys(name for row in cells for name in row))
    rows = []
    for index, row in enumerate(cells):
        known = raw[index] if raw else {}
        rows.append([_sortable_cell(row.get(head, "–"), known.get(head)) for head in heads])
    return table(heads, rows)


def _sortable_cell(text: str, value: float | None) -> Any:
    if value is not None:
        return text, value
    try:
        return text, float(text.rstrip("×"))
    except ValueError:
        return text


def _weights(run: Run) -> Markup | None:
    W = run.results["weights"]
    if not W:
        return None
    return element(
        "div",
        element("h3", "Learned weights of the loss terms"),
        element(
            "p",
            "A row is an exit that learns, a column an exit that it learns from; the outlined "
            "ones are exits' own losses. 1 is what equal weights would be.",
        ),
        charts.squares("Weights", W, "teacher exit", "student exit"),
    )


def _calibration(run: Run) -> Markup | None:
    found: Any = run.examples and run.examples["calibration"]
    if not found:
        return None
    M = len(found)
    picked = sorted({0, M // 3, 2 * M // 3, M - 1})
    lines = [Series("as sure as right", [(0, 0), (100, 100)], False, 6, True)]
    for k, m in enumerate(picked):
        points = [(100 * b["confidence"], 100 * b["right"]) for b in found[m]["bins"]]
        lines.append(Series(f"exit {m}", points, colour=k))
    title = "How often answers of a confidence are right"
    rows = [
        [(str(m), m), (f"{100 * each['ece']:.1f}", each["ece"])] for m, each in enumerate(found)
    ]
    return element(
        "div",
        element("h3", "Can confidence be trusted?"),
        element(
            "p",
            "Below the dashed line an exit is surer than it is right, so thresholds let too many "
            "inputs go; the table has the mean distance from it (ECE).",
        ),
        element(
            "div",
            charts.lines(title, lines, "confidence (%)", "right (%)"),
            table(["exit", "calibration error (%)"], rows),
            class_="charts",
        ),
    )


def _examples(run: Run) -> Markup | None:
    if run.examples is None:
        return element(
            "p",
            "Examples and calibration are not shown: this folder has no examples.json, which "
            "`multiexit train` and `evaluate` write.",
            class_="faint",
        )
    groups = run.examples["groups"]
    if groups is None:
        return None
    policy = policy_name(run.examples["policy"])
    parts = [
        element("h3", "Examples"),
        element(
            "p",
            f"Each exit's answer, with its probability in the tip; the framed exit is where "
            f"{policy} stops. Right answers are green, wrong ones red and underlined.",
        ),
    ]
    for name, (title, means) in GROUPS.items():
        if rows := groups.get(name):
            parts.append(element("h3", f"{title}"))
            parts.append(element("p", means, class_="faint"))
            regression = run.results["metric"] in OF_VALUES
            cards = [_card(row, graded=not regression) for row in rows]
            parts.append(element("div", *cards, class_="examples"))
    return element("div", *parts)


def _card(row: dict[str, Any], graded: bool) -> Markup:
    exits = []
    for m, (answer, sure) in enumerate(row["answers"]):
        kinds = [("right" if answer == row["label"] else "wrong")] if graded else []
        kinds += ["left"] if m == row["exit"] else ["after"] if m > row["exit"] else []
        tip = f"exit {m}: {answer}" + (f", {100 * sure:.1f} %" if graded else "")
        exits.append(element("li", answer, class_=" ".join(kinds), title=tip))
    image = str(row.get("image", ""))
    picture = None
    if PICTURE.fullmatch(image):
        picture = element("img", src=image, alt=f"row {row['row']}")
    return element(
        "div",
        picture,
        [element("p", text) for text in row.get("text", [])],
        element("div", f"row {row['row']}, label ", element("b", row["label"]), class_="faint"),
        element("ol", *exits, class_="exits"),
        class_="example",
    )


def _training(run: Run) -> Markup | None:
    history = run.history
    if history is None or not history.steps:
        return None
    every = -(-len(history.steps) // 300)
    losses = [(row["step"], row["loss"]) for row in history.steps[::every]]
    losses = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if not losses:
        return None
    drawn = [charts.lines("Loss", [Series("", losses, False)], "step", "loss")]
    means = [(row["step"], 100 * row["mean"]) for row in history.epochs if "mean" in row]
    if means:
        title = "Score while training, mean over exits"
        metric = label(run.results["metric"])
        drawn.append(charts.lines(title, [Series("", means)], "step", metric))
    return element("div", element("h3", "Training"), element("div", *drawn, class_="charts"))
