"""What the runs of `benchmarks/evidence.py` say: all at a glance, and each data set by itself.

    python benchmarks/evidence_page.py

writes `docs/results/index.md`, as the build of the documentation does too, and draws its pictures
into `docs/images`.
"""

import argparse
import shlex
from pathlib import Path

from evidence_overview import overview
from evidence_picture import draw
from evidence_runs import BASE, DOCS, RUNS, Results, read
from evidence_sentences import sentences
from evidence_tables import cut_table, methods_table, policies_table

from multiexit.evaluation import metrics

IMAGES = DOCS / "images"
CUT_NETWORKS = (
    "Cut networks, distilled from the whole, one training each; beside each, what the exits of one "
    "network score as fast, from the same seeds. The best is that of all methods and policies on "
    "these rows, which favours it:"
)


def set_up(results: Results) -> str:
    """How the runs of a setting were trained and judged."""
    run, setting = results.any, results.setting
    trained = run["trained"]
    length = f"{trained['steps']} steps" if trained["steps"] else f"{trained['epochs']} epochs"
    start = "published weights" if setting.weights else "random weights"
    start = "its pretrained weights" if setting.is_text else start
    precision = trained.get("mixed_precision", "no")
    mixed = "" if precision == "no" else f" in {precision}"
    used = " · ".join(f"{key} {value}" for key, value in run["about"]["versions"].items())
    return (
        f"From {start}, {length} of Θ of {trained['batch_size']} rows at a rate of "
        f"{trained['lr']:g}{mixed}; {100 * setting.held:g} % of the training rows select the epoch "
        f"and set the policies. Scores are {metrics.label(run['metric'])} on {run['examples']} "
        "rows that chose neither epoch nor policy, mean ± deviation over seeds. "
        f"{run['about']['machine']} · {used}"
    )


def section(results: Results) -> str:
    """All about one setting."""
    setting = results.setting
    picture = f"![Score against speed-up, {results.title}](../images/{results.image})"
    parts = [f"## {results.title}", *sentences(results), picture, methods_table(results)]
    parts += [f"Policies on the exits of `{BASE}`; in brackets the speed-ups that came out:"]
    parts += [policies_table(results)]
    if results.cut:
        parts += [CUT_NETWORKS, cut_table(results, results.cut)]
    parts += [set_up(results)]
    command = shlex.join(["benchmarks/evidence.py", "--only", setting.name, *setting.options])
    parts += [f"```sh\npython {command}\n```"]
    return "\n\n".join(parts)


def page(folder: Path = RUNS) -> str:
    """All settings that have runs at a glance, and then each of them."""
    settings = read(folder)
    opening = ["# Results", "## In short", overview(settings)]
    return "\n\n".join([*opening, *map(section, settings)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    args = parser.parse_args()
    for results in read(args.runs):
        draw(results, args.images / results.image)
    (args.runs.parent / "index.md").write_text(page(args.runs), encoding="utf-8")


if __name__ == "__main__":
    main()
