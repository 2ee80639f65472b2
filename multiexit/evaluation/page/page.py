"""One HTML page about one run or several."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from multiexit.evaluation.metrics import label
from multiexit.evaluation.page import charts, runs, sections
from multiexit.evaluation.page.charts import Series
from multiexit.evaluation.page.markup import Markup, element
from multiexit.evaluation.page.runs import Run
from multiexit.policies.registry import policy_name

MOST = 20
"""Runs on a page."""


def html_page(folders: Sequence[str | Path]) -> str:
    """A page about runs: tables that sort, curves, where inputs leave, weights, examples.

    It is whole in itself: styles, script, data and pictures are in it, and its own policy of
    content forbids a browser to load anything, or to run any other script. All text from data is
    escaped.

    Args:
        folders: of runs, or with runs right below them (several seeds or sets).

    Returns:
        The HTML.

    Raises:
        ValueError: no run, over 20 of them, or a damaged file, by its name.

    Example:
        >>> import json, tempfile, torch, multiexit as mx
        >>> from pathlib import Path
        >>> from multiexit.evaluation.page.page import html_page
        >>> from multiexit.evaluation.results import results_json
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.eye(2).expand(2, 2, 2), torch.tensor([0, 1]), cost)
        >>> data = results_json(outputs, [mx.judge(outputs, mx.FixedExit(0))], title="a < b")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "results.json").write_text(json.dumps(data))
        ...     page = html_page([folder])
        >>> "<title>a &lt; b</title>" in page
        True
    """
    found = [run for folder in folders for run in runs.read(Path(folder))]
    if not 1 <= len(found) <= MOST:
        raise ValueError(f"a page shows 1 to {MOST} runs, got {len(found)}: name fewer folders")
    parts = []
    for run in found:
        try:
            parts.append((sections.section(run, alone=len(found) == 1), _row(run)))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the results in {run.path} are damaged: {type(error).__name__} {error}"
            ) from error
    title = found[0].title if len(found) == 1 else f"{len(found)} runs side by side"
    beside = _side_by_side(found, [row for _, row in parts]) if len(found) > 1 else None
    return _document(title, [element("h1", title), beside, [part for part, _ in parts]])


def _row(run: Run) -> dict[str, str]:
    scores, at_two = sections.exit_scores(run), sections.at_two(run)
    return {
        "run": run.title,
        "recipe": str(run.results["about"].get("recipe", "–")),
        "metric": label(run.results["metric"]),
        "rows": str(run.results["examples"]),
        "exits": str(len(scores)),
        "mean over exits": f"{sum(scores) / len(scores):.2f}",
        "last exit": f"{scores[-1]:.2f}",
        "nearest to 2×": f"{100 * at_two['score']:.2f}",
        "at": f"{at_two['speedup_layers']:.2f}×",
        "its setting": policy_name(at_two["policy"]),
        "folder": str(run.path),
    }


def _side_by_side(found: Sequence[Run], rows: Sequence[dict[str, str]]) -> Markup:
    names = _names(found)
    exits, speeds = [], []
    by_layers = len(set(map(_layers, found))) > 1
    for k, (run, name) in enumerate(zip(found, names, strict=True)):
        dashed = k >= charts.COLOURS
        places = _layers(run) if by_layers else range(len(run.results["exits"]))
        scores = list(zip(places, sections.exit_scores(run), strict=True))
        exits.append(Series(name, scores, True, k, dashed))
        # The points of the policy that has most of them: most often the run's own.
        points = max(sections.curves(run).values(), key=len)
        kind = next(n for n, p in sections.curves(run).items() if p == points)
        speeds.append(Series(f"{name}, {kind}", points, True, k, dashed))
    metrics = list(dict.fromkeys(label(run.results["metric"]) for run in found))
    axis = metrics[0] if len(metrics) == 1 else "score (× 100)"
    return element(
        "div",
        element("p", unlike) if (unlike := _unlike(found)) else None,
        sections.sortable(rows),
        element(
            "div",
            charts.lines("Score of each exit", exits, "layers" if by_layers else "exit", axis),
            charts.lines("Score against speed-up", speeds, "all layers ÷ layers run", axis),
            class_="charts",
        ),
    )


def _unlike(found: Sequence[Run]) -> str | None:
    """What keeps these runs' scores from being compared, as a sentence."""
    sizes = {run.results["examples"] for run in found}
    labels = {run.results.get("labels") for run in found} - {None}  # older runs don't tell
    differ = {
        "by the same metric": len({label(run.results["metric"]) for run in found}) > 1,
        "on the same rows": len(sizes) > 1 or len(labels) > 1,
        "at exits behind the same layers": len(set(map(_layers, found))) > 1,
    }
    wrong = [what for what, differs in differ.items() if differs]
    return f"Not all of these runs are judged {' and '.join(wrong)}." if wrong else None


def _layers(run: Run) -> tuple[float, ...]:
    return tuple(row["layers"] for row in run.results["exits"])


def _names(found: Sequence[Run]) -> list[str]:
    """Titles, or folders where titles repeat."""
    titles = [run.title for run in found]
    if len(set(titles)) == len(titles):
        return titles
    return [str(run.path) for run in found]


def _document(title: str, parts: Sequence[object]) -> str:
    here = files("multiexit.evaluation.page")
    style, script = (here.joinpath(n).read_text("utf-8") for n in ("page.css", "sort.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    policy = f"{allowed}; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content="multiexit"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", *parts), element("script", Markup(script)))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"
