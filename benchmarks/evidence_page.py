"""What the runs of `benchmarks/evidence.py` say: a picture, tables and sentences per data set.

    python benchmarks/evidence_page.py

writes `docs/results/index.md`, as the build of the documentation does too, and draws its pictures
into `docs/images`.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence_plan import SETTINGS, Run, Setting

from multiexit.evaluation import metrics
from multiexit.evaluation.report import table
from multiexit.evaluation.seeds import holm, paired, spread

DOCS = Path(__file__).parents[1] / "docs"
RUNS = DOCS / "results" / "runs"
IMAGES = DOCS / "images"
BASE = "joint"
FAST = (2.0, 3.0, 4.0)
DEEPEST = 20
"""How many points below the best a picture goes; what is below that is in the table."""
SURE = 0.05
"""The largest p, after Holm's correction, at which a difference is called one."""


@dataclass(frozen=True)
class Method:
    """One method's runs on a data set, by seed.

    Args:
        name: as in `evidence_plan.METHODS`.
        runs: what `evidence.py` wrote, by seed.
    """

    name: str
    runs: dict[int, dict[str, Any]]

    def values(self, figure: Callable[[dict[str, Any]], float | None]) -> dict[int, float]:
        """A figure of each run that has it, × 100."""
        found = {seed: figure(run) for seed, run in self.runs.items()}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Results:
    """All runs of a setting.

    Args:
        setting: what was run.
        methods: those that have runs, by name.
    """

    setting: Setting
    methods: dict[str, Method]

    @property
    def any(self) -> dict[str, Any]:
        """A run, for what all have alike."""
        return next(run for method in self.methods.values() for run in method.runs.values())

    @property
    def policy(self) -> str:
        """The policy by which methods are compared."""
        return "entropy" if "entropy" in self.any["policies"] else "patience"

    @property
    def image(self) -> str:
        return f"results-{self.setting.name}.png"

    @property
    def digest(self) -> str:
        """Of the figures: a picture that was drawn from others is old."""
        runs = {name: method.runs for name, method in self.methods.items()}
        figures = {
            name: {seed: [run["exits"], run["policies"]] for seed, run in by_seed.items()}
            for name, by_seed in runs.items()
        }
        return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()


def mean_of_exits(run: dict[str, Any]) -> float:
    """The mean score over the exits."""
    return statistics.fmean(exit["score"] for exit in run["exits"])


def at_exit(m: int) -> Callable[[dict[str, Any]], float]:
    """The score if all left at one exit."""
    return lambda run: run["exits"][m]["score"]


def at_speed(policy: str, asked: float) -> Callable[[dict[str, Any]], float | None]:
    """The score of a policy that was asked for a speed-up, where one of its settings is as fast."""
    return lambda run: next(
        (point["score"] for point in run["policies"][policy] if point["asked"] == asked), None
    )


def read(folder: Path = RUNS) -> list[Results]:
    """The results of each setting that has runs, in the order of the plan."""
    found = []
    for setting in SETTINGS:
        methods = {}
        for name in setting.methods:
            paths = [folder / setting.name / f"{name}-{seed}.json" for seed in range(setting.seeds)]
            runs = {
                seed: json.loads(path.read_text(encoding="utf-8"))
                for seed, path in enumerate(paths)
                if path.exists()
            }
            if runs:
                methods[name] = Method(name, runs)
        if BASE in methods:
            found.append(Results(setting, methods))
    return found


def shown(values: dict[int, float]) -> str:
    """Mean ± deviation over seeds."""
    if not values:
        return "–"
    figures = spread(list(values.values()))
    deviation = figures["deviation"]
    return f"{figures['mean']:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")


def against(one: dict[int, float], other: dict[int, float]) -> dict[str, Any] | None:
    """A paired test over the seeds that both have, or None for fewer than two."""
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        return None
    return paired([one[seed] for seed in seeds], [other[seed] for seed in seeds])


def tests(results: Results) -> dict[str, dict[str, Any]]:
    """Each method's mean over exits against the base's, p corrected for their number."""
    base = results.methods[BASE].values(mean_of_exits)
    found = {
        name: test
        for name, method in results.methods.items()
        if name != BASE and (test := against(method.values(mean_of_exits), base))
    }
    corrected = holm([test["p"] for test in found.values()])
    return {
        name: {**test, "p_holm": p}
        for (name, test), p in zip(found.items(), corrected, strict=True)
    }


def methods_table(results: Results) -> str:
    """A row for each method, the best mean over exits first."""
    tested, rows = tests(results), []
    ranked = sorted(
        results.methods.values(),
        key=lambda method: -statistics.fmean(method.values(mean_of_exits).values()),
    )
    for method in ranked:
        test = tested.get(method.name)
        row = {
            "method": f"`{method.name}`",
            "head": Run(results.setting, method.name, 0).recipe().head or results.setting.head,
            "seeds": str(len(method.runs)),
            "mean over exits": shown(method.values(mean_of_exits)),
            "first exit": shown(method.values(at_exit(0))),
            "last exit": shown(method.values(at_exit(-1))),
        }
        for asked in FAST:
            row[f"at {asked:g}×"] = shown(method.values(at_speed(results.policy, asked)))
        row["by its own policy"] = own(method)
        row[f"mean − {BASE}'s"] = f"{test['difference']:+.1f}" if test else "–"
        row["p (Holm)"] = f"{test['p_holm']:.2g}" if test and test["p_holm"] is not None else "–"
        rows.append(row)
    return table(rows, markdown=True)


def own(method: Method) -> str:
    """What a method's own policy came to, as it is after training."""
    points = [run["own policy"] for run in method.runs.values()]
    scores = shown({seed: 100 * point["score"] for seed, point in enumerate(points)})
    return f"{scores} at {statistics.fmean(point['speedup'] for point in points):.2f}×"


def policies_table(results: Results) -> str:
    """The policies on the exits of the base, and what speed-up came out where one was asked for."""
    method, rows = results.methods[BASE], []
    for policy in results.any["policies"]:
        row = {"policy": policy}
        for asked in FAST:
            values = method.values(at_speed(policy, asked))
            speeds = [
                point["speedup"]
                for run in method.runs.values()
                for point in run["policies"][policy]
                if point["asked"] == asked
            ]
            came = f" ({min(speeds):.2f}–{max(speeds):.2f}×)" if speeds else ""
            row[f"at {asked:g}×"] = shown(values) + came
        rows.append(row)
    return table(rows, markdown=True)


def sentences(results: Results) -> Iterator[str]:
    """What the figures say: of the mean over exits, of speed, and of learned weights."""
    methods, tested = results.methods, tests(results)
    means = {name: method.values(mean_of_exits) for name, method in methods.items()}
    best = max(means, key=lambda name: statistics.fmean(means[name].values()))
    first = f"**Exits.** The best mean over exits is `{best}`'s, {shown(means[best])}"
    first += "." if best == BASE else f"; `{BASE}` has {shown(means[BASE])}."
    sure = {name: test for name, test in tested.items() if (test["p_holm"] or 1) <= SURE}
    better, worse = (
        [f"`{name}`" for name, test in sure.items() if test["difference"] * sign > 0]
        for sign in (1, -1)
    )
    told = [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {word}"
        for names, word in ((better, "above it"), (worse, "below it"))
        if names
    ]
    if not tested:
        yield f"{first} There is one seed, so nothing is tested."
    elif told:
        yield f"{first} After correction for {len(tested)} tests {' and '.join(told)}."
    else:
        yield f"{first} No difference from `{BASE}` outlasts correction for {len(tested)} tests."
    fast = {
        name: values
        for name, method in methods.items()
        if (values := method.values(at_speed(results.policy, 3.0)))
    }
    if BASE in fast:
        quick = max(fast, key=lambda name: statistics.fmean(fast[name].values()))
        last = shown(methods[BASE].values(at_exit(-1)))
        kept = f"**Speed.** Asked for 3× by {results.policy}, `{quick}` keeps most, "
        kept += shown(fast[quick]) + (
            "" if quick == BASE else f", and `{BASE}` {shown(fast[BASE])}"
        )
        yield f"{kept}; the last exit of `{BASE}` has {last}."
    learned = [name for name in LEARNED if name in means and "leebert-uniform" in means]
    parts = []
    for name in learned:
        test = against(means[name], means["leebert-uniform"])
        if test and test["low"] is not None:
            parts.append(
                f"`{name}` {test['difference']:+.1f} ({test['low']:+.1f} … {test['high']:+.1f})"
            )
    if parts:
        yield (
            "**Learned weights.** Mean over exits less that of uniform weights, with its 95 % "
            f"interval, not corrected: {', '.join(parts)}."
        )


LEARNED = (
    "leebert",
    "leebert-uncertainty",
    "leebert-hyper",
    "leebert-ascent",
    "leebert-group-dro",
    "leebert-group-dro-normalized",
)


def title(results: Results) -> str:
    """A heading: task and network."""
    return f"{results.any['task']}, {results.setting.network}"


def set_up(results: Results) -> str:
    """How the runs of a setting were trained and judged."""
    run, setting = results.any, results.setting
    trained = run["trained"]
    length = f"{trained['steps']} steps" if trained["steps"] else f"{trained['epochs']} epochs"
    start = "published weights" if setting.weights else "random weights"
    start = "its pretrained weights" if setting.is_text else start
    used = " · ".join(f"{key} {value}" for key, value in run["about"]["versions"].items())
    return (
        f"From {start}, {length} of Θ of {trained['batch_size']} rows at a rate of "
        f"{trained['lr']:g}; {100 * setting.held:g} % of the training rows select the epoch and "
        f"set the policies. Scores are {metrics.label(run['metric'])} on {run['examples']} rows "
        f"that nothing was chosen on, mean ± deviation over seeds. {run['about']['machine']} · "
        f"{used}"
    )


def section(results: Results) -> str:
    """All about one setting."""
    picture = f"![Score against speed-up, {title(results)}](../images/{results.image})"
    parts = [f"## {title(results)}", *sentences(results), picture, methods_table(results)]
    parts += [f"Policies on the exits of `{BASE}`; in brackets the speed-ups that came out:"]
    parts += [policies_table(results), set_up(results)]
    parts += [f"```sh\npython benchmarks/evidence.py --only {results.setting.name}\n```"]
    return "\n\n".join(parts)


def page(folder: Path = RUNS) -> str:
    """The sections of all settings that have runs."""
    return "\n\n".join(["# Results", *map(section, read(folder))]) + "\n"


def draw(results: Results, path: Path) -> None:
    """Score against the speed-up that came out, a line per method with its deviation as a band."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for index, (name, method) in enumerate(results.methods.items()):
        points: dict[float, list[tuple[float, float]]] = {}
        for run in method.runs.values():
            for point in run["policies"][results.policy]:
                points.setdefault(point["asked"], []).append((point["speedup"], point["score"]))
        complete = [pairs for _, pairs in sorted(points.items()) if len(pairs) == len(method.runs)]
        x = [statistics.fmean(speed for speed, _ in pairs) for pairs in complete]
        spreads = [spread([100 * score for _, score in pairs]) for pairs in complete]
        y, band = [s["mean"] for s in spreads], [s["deviation"] or 0 for s in spreads]
        colour = "black" if name == BASE else colours[(2 * index + index // 10) % 20]
        style = {"color": colour, "linewidth": 2.4 if name == BASE else 1.4}
        axes.plot(x, y, marker="osD^vPX"[index % 7], markersize=4, label=name, **style)
        low = [value - wide for value, wide in zip(y, band, strict=True)]
        high = [value + wide for value, wide in zip(y, band, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
    axes.set_title(f"{title(results)}, by {results.policy}", loc="left", fontweight="bold")
    axes.set_xlabel("speed-up by MACs, as it came out")
    axes.set_ylabel(metrics.label(results.any["metric"]))
    axes.xaxis.set_major_formatter("{x:g}×")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom=max(bottom, top - DEEPEST))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Description": results.digest, "Software": None})


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
