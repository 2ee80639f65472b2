"""What the runs of `benchmarks/evidence.py` came to: figures by seed, and how methods differ."""

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from evidence_plan import CUT, SETTINGS, Run, Setting

from multiexit.evaluation.seeds import holm, paired, spread

DOCS = Path(__file__).parents[1] / "docs"
RUNS = DOCS / "results" / "runs"
BASE = "joint"
POOLED = f"{BASE}-pooler"
UNTRAINED = "without-exits"
"""The method whose exits before the last are not trained: only its last one says anything."""
ALIKE = {"beem": "pabee"}
"""Methods that train as another does and differ by their own policy: their exits count once."""
ENOUGH = 3
"""Shared seeds from which on a difference is tested, and may be called sure."""
FAST = (2.0, 3.0, 4.0)
MIXED = ("accuracy", "accuracy_f1")
"""Metrics of which a mix of rows scores what the scores' mix is, the second about so. Of Matthews'
and other correlations it is not: with an exit that answers one class alone it is far from it."""
SURE = 0.05
"""The largest p, after Holm's correction, at which a difference is called one."""

Points = list[dict[str, Any]]
Figure = Callable[[dict[str, Any]], float | None]


@dataclass(frozen=True)
class Method:
    """One method's runs on a data set, by seed.

    Args:
        name: as in `evidence_plan.METHODS`.
        runs: what `evidence.py` wrote, by seed.
    """

    name: str
    runs: dict[int, dict[str, Any]]

    def values(self, figure: Figure) -> dict[int, float]:
        """A figure of each run that has it, × 100."""
        found = {seed: figure(run) for seed, run in self.runs.items()}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Results:
    """All runs of a setting.

    Args:
        setting: what was run.
        methods: those of training exits that have runs, by name.
        cut: networks cut from the whole one, from seeds that the base has too, or None.
    """

    setting: Setting
    methods: dict[str, Method]
    cut: Method | None = None

    @property
    def any(self) -> dict[str, Any]:
        """A run, for what all have alike."""
        return next(run for method in self.methods.values() for run in method.runs.values())

    @property
    def title(self) -> str:
        """Task, network, how many exits it has if they aren't all, and how long it trained where
        the plan has others like it."""
        exits, steps = self.setting.exits, self.setting.steps
        some = "" if exits == "all" else f", {len(exits)} exits"
        alike = [(s.task, s.backbone, s.exits) for s in SETTINGS]
        one = alike.count((self.setting.task, self.setting.backbone, exits)) == 1
        length = "" if one else f", {steps} steps" if steps else ", whole epochs"
        return f"{self.any['task']}, {self.setting.network}{some}{length}"

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
        if self.cut:
            figures[CUT] = {seed: run["networks"] for seed, run in self.cut.runs.items()}
        return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()

    def base_of(self, name: str) -> str:
        """What a method is tested against: its exits' poolers are not its own doing."""
        head = Run(self.setting, name, 0).head
        pooled = head == "own-pooler" and name != POOLED and POOLED in self.methods
        return POOLED if pooled else BASE

    def less(
        self, name: str, base: str, figure: Figure, other_figure: Figure | None = None
    ) -> list[float]:
        """A figure of a method less that, or another one, of another method, for each seed that
        both have; none where one of them wasn't run."""
        if not {name, base} <= self.methods.keys():
            return []
        one = self.methods[name].values(figure)
        other = self.methods[base].values(other_figure or figure)
        return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]

    def ranked(self, figure: Figure) -> list[str]:
        """The methods that share seeds with the base, the best against it on these first."""
        less = {name: self.less(name, BASE, figure) for name in self.methods}
        return sorted((n for n in less if less[n]), key=lambda n: -statistics.fmean(less[n]))

    def tests(self) -> dict[str, dict[str, Any]]:
        """Each method's mean over exits against its base's, p corrected for their number.

        Left out are those with fewer shared seeds than `ENOUGH`, or equal differences: no p.
        """
        found = {}
        for name, method in self.methods.items():
            base = self.base_of(name)
            shared = method.runs.keys() & self.methods[base].runs.keys()
            if name in (base, UNTRAINED) or ALIKE.get(name) in self.methods or len(shared) < ENOUGH:
                continue
            test = against(method.values(mean_of_exits), self.methods[base].values(mean_of_exits))
            if test and test["p"] is not None:
                found[name] = test
        corrected = holm([test["p"] for test in found.values()])
        return {
            name: {**test, "p_holm": p}
            for (name, test), p in zip(found.items(), corrected, strict=True)
        }

    def trained_runs(self) -> Iterator[dict[str, Any]]:
        """The runs of all methods that train exits."""
        for name, method in self.methods.items():
            if name != UNTRAINED and ALIKE.get(name) not in self.methods:
                yield from method.runs.values()


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
        cut = methods.pop(CUT, Method(CUT, {}))
        if BASE in methods:
            shared = {s: run for s, run in cut.runs.items() if s in methods[BASE].runs}
            found.append(Results(setting, methods, Method(CUT, shared) if shared else None))
    return found


def mean_of_exits(run: dict[str, Any]) -> float:
    """The mean score over the exits."""
    return statistics.fmean(exit["score"] for exit in run["exits"])


def at_exit(m: int) -> Figure:
    """The score if all left at one exit."""
    return lambda run: run["exits"][m]["score"]


def asked_for(run: dict[str, Any], policy: str, asked: float) -> dict[str, Any] | None:
    """What a policy came to that was asked for a speed-up; None if no setting is as fast."""
    points = run["policies"][policy]
    return next((point for point in points if point["asked"] == asked), None)


def at_speed(policy: str, asked: float, key: str = "score") -> Figure:
    """The score of a policy that was asked for a speed-up, or the speed-up that it reached."""

    def figure(run: dict[str, Any]) -> float | None:
        point = asked_for(run, policy, asked)
        return point[key] if point else None

    return figure


def network(index: int) -> Figure:
    """The score of one of the cut networks."""
    return lambda run: run["networks"][index]["score"]


def best_mix(points: Points, speedup: float) -> float | None:
    """The best score of two points drawn at random, in shares that reach a speed-up or more.

    Costs are shares of the whole network's. Scores are mixed like costs, which holds for those in
    `MIXED`. None where no point is as fast.
    """
    most = 1 / speedup
    places = [(1 / point["speedup"], point["score"]) for point in points]
    found = [score for cost, score in places if cost <= most]
    for (low, first), (high, second) in product(places, places):
        if low <= most < high:
            found.append(first + (second - first) * (most - low) / (high - low))
    return max(found, default=None)


def as_fast(policy: str, asked: float) -> Figure:
    """What the best mix of two fixed exits scores that is as fast as a policy came out."""

    def figure(run: dict[str, Any]) -> float | None:
        point = asked_for(run, policy, asked)
        if point is None or run["metric"] not in MIXED:
            return None
        return best_mix(run["exits"], point["speedup"])

    return figure


def between(policy: str, speedup: float) -> Figure:
    """What a policy scores that is as fast, by its two settings next to that speed-up."""

    def figure(run: dict[str, Any]) -> float | None:
        points = sorted((1 / p["speedup"], p["score"]) for p in run["policies"][policy])
        for (low, first), (high, second) in pairwise(points):
            if low <= 1 / speedup <= high:
                share = (1 / speedup - low) / (high - low) if high > low else 1.0
                return first + (second - first) * share
        return None

    return figure


def gain(run: dict[str, Any], policy: str, points: Points) -> float | None:
    """How much more a policy scores than mixes of points as fast, mean over `FAST`, × 100."""
    if run["metric"] not in MIXED:
        return None
    gains = []
    for asked in FAST:
        point = asked_for(run, policy, asked)
        mixed = best_mix(points, point["speedup"]) if point else None
        if point and mixed is not None:
            gains.append(100 * (point["score"] - mixed))
    return statistics.fmean(gains) if gains else None


def shown(values: dict[int, float]) -> str:
    """Mean ± deviation over seeds."""
    if not values:
        return "–"
    figures = spread(list(values.values()))
    deviation = figures["deviation"]
    return f"{figures['mean']:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")


def shown_at(method: Method, policy: str, asked: float) -> str:
    """A method's score where a policy was asked for a speed-up, and the mean of those reached."""
    values = method.values(at_speed(policy, asked))
    if not values:
        return "–"
    reached = statistics.fmean(method.values(at_speed(policy, asked, "speedup")).values()) / 100
    some = "" if len(values) == len(method.runs) else f", {len(values)} of {len(method.runs)} seeds"
    return f"{shown(values)} ({reached:.2f}×{some})"


def against(one: dict[int, float], other: dict[int, float]) -> dict[str, Any] | None:
    """A paired test over the seeds that both have, or None for fewer than two."""
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        return None
    return paired([one[seed] for seed in seeds], [other[seed] for seed in seeds])
