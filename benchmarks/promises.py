"""What calibrated promises come to on rows never seen: 100 random splits of each labelled set.

    python benchmarks/promises.py --data-dir data --minilm MiniLM-L6 --checkpoints checkpoints
    python benchmarks/promises.py --dry --output /tmp/promises

A network is trained as `evidence.py` trains it, and says its logits on a set that nothing was
chosen on. Each split draws rows to calibrate on; each promise is made on them, and judged on all
others: speed-ups by `mx.budgeted` and `mx.calibrate`, milliseconds by a latency table and as rows
really took them, and risks. What is there already is left as it is; `--dry` is a small run of the
digits. Milliseconds are the processor's, with one thread, and shares of what the whole network
takes, so that other work on the machine doesn't count.

All settings of a policy are simulated on all rows once, and `mx.calibrate`'s rules choose among
them; on the first split `mx.calibrate` itself must choose the same.

Letters: S settings, M exits, N rows of the set.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import about, write_json
from evidence import add_folders, check_folders, command, trained, why_not
from evidence_plan import Run, runs
from torch import Tensor
from torch.utils.data import Subset

import multiexit as mx
from multiexit.data.batches import loader, unpack_inputs
from multiexit.evaluation import guarantee
from multiexit.evaluation.grids import policy_settings
from multiexit.evaluation.p_values import rows_needed
from multiexit.evaluation.targets import losses_of_settings

OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "promises"
SHARES = {
    "digits/joint-0": (0.5,),
    "sst2/joint-0": (0.5,),
    "cifar10-resnet20/joint-0": (0.5, 0.1),
}
"""The runs, and which shares of their rows calibrate."""
POLICY = mx.MaxProb
SPLITS = 100
SPEEDUPS = (1.5, 2.0, 3.0)
RISKS = (0.01, 0.02, 0.05)
LOSSES = ("disagreement", "accuracy")
CONFIDENCE = 0.9
SHARE_OF_TIME = 0.5
"""Milliseconds that are asked for, as a share of what the whole network takes."""
TIMED = 100
"""How many unseen rows of each split are timed, one by one."""
DRY_STEPS = 20
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Promise:
    """One kind of promise, and what was asked for.

    Args:
        kind: "budgeted", "speed-up", "milliseconds" or "risk".
        asked: of it; milliseconds are a share of the whole network's.
        loss: whose risk it is.
        confidence: of a risk; None is on average.
    """

    kind: str
    asked: float
    loss: str | None = None
    confidence: float | None = None

    def options(self, latency: mx.Latency) -> dict[str, Any]:
        """What `mx.calibrate` is given."""
        match self.kind:
            case "risk":
                return {"risk": self.asked, "loss": self.loss, "confidence": self.confidence}
            case "milliseconds":
                return {"milliseconds": self.asked * latency.full_ms[0], "latency": latency}
        return {"speedup": self.asked, "by": "macs"}

    def broken(self, figure: float) -> bool:
        """Whether what came out is worse than what was asked for."""
        return figure < self.asked if self.kind in ("budgeted", "speed-up") else figure > self.asked


class Simulated:
    """Where every row leaves under every setting of a policy, and what that loses.

    Args:
        outputs: of the whole set.
        latency: of the model, with a batch of one row.
    """

    def __init__(self, outputs: mx.Outputs, latency: mx.Latency):
        self.outputs, self.latency = outputs, latency
        self.policies = policy_settings(POLICY, outputs.num_exits, outputs.num_classes)
        self.exit_SN = torch.stack([outputs.answers(policy)[0] for policy in self.policies])
        self.loss_SN = {
            loss: losses_of_settings(outputs, self.policies, loss)[1] for loss in LOSSES
        }
        right_MN = outputs.logits_MBC.argmax(-1) == outputs.labels_B
        self.right_SN = right_MN.gather(0, self.exit_SN)
        self.until_M = torch.tensor(latency.until_exit_ms(1), dtype=torch.float64)
        self.macs_M = torch.tensor(outputs.cost.macs_M, dtype=torch.float64)

    def left(self, rows: Tensor) -> Tensor:
        """How many of the rows leave at each exit under each setting, [S, M]."""
        exit_SN = self.exit_SN[:, rows]
        return torch.stack(
            [(exit_SN == m).sum(1) for m in range(self.outputs.num_exits)], 1
        ).double()

    def speedups(self, left_SM: Tensor) -> Tensor:
        """Each setting's speed-up by MACs, [S]."""
        return self.outputs.cost.full_macs * left_SM.sum(1) / (left_SM @ self.macs_M)

    def times(self, left_SM: Tensor) -> Tensor:
        """Each setting's milliseconds by the table, as shares of the whole network's, [S]."""
        return left_SM @ self.until_M / left_SM.sum(1) / self.latency.full_ms[0]

    def choose(self, promise: Promise, rows: Tensor, left_SM: Tensor) -> int | None:
        """The setting that `mx.calibrate` chooses on these rows; None where it refuses."""
        if promise.kind == "risk":
            return self._bounded(promise, rows)
        slow = promise.kind == "milliseconds"
        speed_S = -self.times(left_SM) if slow else self.speedups(left_SM)
        fast_S = speed_S >= (-promise.asked if slow else promise.asked)
        right_S = self.right_SN[:, rows].sum(1)
        return min(
            fast_S.nonzero()[:, 0].tolist(),
            key=lambda s: (float(speed_S[s]), -int(right_S[s])),
            default=None,
        )

    def _bounded(self, promise: Promise, rows: Tensor) -> int | None:
        assert promise.loss is not None
        delta = None if promise.confidence is None else 1 - promise.confidence
        if len(rows) < rows_needed(promise.asked, delta, "binomial"):
            return None
        safest_first_SB = self.loss_SN[promise.loss][:, rows].flip(0)  # thresholds rise
        if delta is None:
            index = guarantee.conformal(safest_first_SB, promise.asked)
        else:
            index = guarantee.learn_then_test(safest_first_SB, promise.asked, delta, "binomial")
        return None if index is None else len(self.policies) - 1 - index

    def calibrated(self, promise: Promise, rows: Tensor) -> mx.ExitPolicy | None:
        """What `mx.calibrate` or `mx.budgeted` gives; None where it refuses."""
        outputs = self.outputs.take(rows)
        try:
            if promise.kind == "budgeted":
                return mx.budgeted(outputs, promise.asked)
            return mx.calibrate(outputs, POLICY, **promise.options(self.latency))
        except ValueError:
            return None


class Clock:
    """Times rows one by one.

    Args:
        model: that answers.
        data: whose rows these are.
    """

    def __init__(self, model: mx.MultiExitModel, data: Any):
        self.model, self.data = model.eval(), data
        self.engine = mx.Engine(model, mx.FixedExit(model.num_exits - 1))

    def inputs(self, rows: Sequence[int]) -> list[Inputs]:
        """These rows, each a batch."""
        batches, order = loader(Subset(self.data, list(rows)), 1)
        del order  # whichever it is: all are timed
        return [unpack_inputs(batch) for batch in batches]

    def table(self) -> mx.Latency:
        """Milliseconds of the model's parts for one row; of texts one of a middle length."""
        texts = [named for args, named in self.inputs(range(min(99, len(self.data)))) if not args]
        texts.sort(key=lambda named: named["input_ids"].shape[1])
        row = texts[len(texts) // 2] if texts else None
        if row is not None:
            row = {name: x for name, x in row.items() if isinstance(x, Tensor)}
        with patch("time.perf_counter", time.process_time):
            return mx.profile(self.model, inputs=row, batch_sizes=(1,), repeats=15)

    def share(self, policy: mx.ExitPolicy, rows: Sequence[int]) -> float:
        """The time of these rows, as a share of what the whole network takes in turn with them."""
        engine, spent, whole = self.engine.with_policy(policy), 0.0, 0.0
        whole_network = torch.inference_mode()(engine.model_for(1).full)  # as the table has it
        for args, named in self.inputs(rows):
            begin = time.process_time()
            engine.predict(*args, **named)
            between = time.process_time()
            whole_network(*args, **named)
            spent, whole = spent + between - begin, whole + time.process_time() - between
        return spent / whole


def promises() -> Iterator[Promise]:
    """All that are made."""
    for kind in ("budgeted", "speed-up"):
        yield from (Promise(kind, speedup) for speedup in SPEEDUPS)
    yield Promise("milliseconds", SHARE_OF_TIME)
    for confidence in (CONFIDENCE, None):
        for loss in LOSSES:
            yield from (Promise("risk", risk, loss, confidence) for risk in RISKS)


def splits(rows: int, share: float, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows to calibrate on and the others, drawn anew each time."""
    first = int(rows * share)
    for seed in range(number):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        yield order[:first], order[first:]


def judged(
    simulated: Simulated, clock: Clock, share: float, number: int
) -> Iterator[dict[str, Any]]:
    """A row for each promise: what it came to over the splits."""
    every = list(promises())
    came: dict[Promise, list[float]] = {promise: [] for promise in every}
    timed: list[float] = []
    speedups: dict[Promise, list[float]] = {promise: [] for promise in every}
    sizes = 0, 0
    for split, (known, unseen) in enumerate(splits(len(simulated.outputs.labels_B), share, number)):
        sizes = len(known), len(unseen)
        known_SM, unseen_SM = simulated.left(known), simulated.left(unseen)
        for promise in every:
            if promise.kind == "budgeted":
                policy = simulated.calibrated(promise, known)
                if policy is not None:
                    speed = mx.judge(simulated.outputs.take(unseen), policy).speedup_macs
                    came[promise].append(speed)
                    speedups[promise].append(speed)
                continue
            s = simulated.choose(promise, known, known_SM)
            policy = None if s is None else simulated.policies[s]
            if split == 0 and policy != simulated.calibrated(promise, known):
                raise AssertionError(f"mx.calibrate doesn't choose {policy} for {promise}")
            if s is None:
                continue
            speedups[promise].append(float(simulated.speedups(unseen_SM)[s]))
            if promise.kind == "risk":
                assert promise.loss is not None
                came[promise].append(float(simulated.loss_SN[promise.loss][s, unseen].mean()))
            elif promise.kind == "milliseconds":
                came[promise].append(float(simulated.times(unseen_SM)[s]))
                timed.append(clock.share(simulated.policies[s], unseen[:TIMED].tolist()))
            else:
                came[promise].append(speedups[promise][-1])
    for promise in every:
        row = summary(promise, came[promise], number, speedups[promise])
        known, unseen = sizes
        yield {"calibrated on": known, "judged on": unseen, **row}
        if promise.kind == "milliseconds":
            row = summary(promise, timed, number, speedups[promise])
            yield {
                **{"calibrated on": known, "judged on": min(unseen, TIMED)},
                **{**row, "promise": "milliseconds, timed"},
            }


def summary(
    promise: Promise, figures: list[float], number: int, speedups: list[float]
) -> dict[str, Any]:
    """What came out, over the splits on which the promise was made."""
    worst = min if promise.kind in ("budgeted", "speed-up") else max
    made = len(figures)
    return {
        "promise": promise.kind,
        "loss": promise.loss,
        "confidence": promise.confidence,
        "asked": round(promise.asked, 4),
        "splits": number,
        "refused": number - made,
        "mean": round(statistics.fmean(figures), 5) if made else None,
        "deviation": round(statistics.stdev(figures), 5) if made > 1 else None,
        "worst": round(worst(figures), 5) if made else None,
        "broken": sum(map(promise.broken, figures)),
        "speedup": round(statistics.fmean(speedups), 3) if made else None,
    }


def make(run: Run, args: Any) -> dict[str, Any]:
    """Train one run's network, and judge the promises."""
    steps = DRY_STEPS if args.dry else None
    task, model, _, config = trained(run, argparse.Namespace(**vars(args), steps=steps))
    data = next(iter(task.sets.values()))
    outputs = mx.collect(model, data, task.metric, keys=False)
    clock = Clock(model, data)
    simulated = Simulated(outputs, clock.table())
    number = 3 if args.dry else SPLITS
    return {
        "task": task.name,
        "backbone": run.setting.backbone,
        "method": run.method,
        "steps": config.max_steps,
        "examples": len(outputs.labels_B),
        "metric": task.metric,
        "policy": POLICY.__name__,
        "full": {
            "score": round(mx.exit_scores(outputs)[-1]["score"], 5),
            "milliseconds": round(simulated.latency.full_ms[0], 4),
        },
        "rows": [
            row for share in SHARES[run.name] for row in judged(simulated, clock, share, number)
        ],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", choices=["*", *SHARES], help="one of the runs")
    parser.add_argument("--dry", action="store_true", help="a small run of the digits")
    add_folders(parser)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args(arguments)
    check_folders(parser, args)
    if args.dry and args.output == OUTPUT:
        parser.error("--dry writes no results: give another --output")
    torch.set_num_threads(1)
    names = ["digits/joint-0"] if args.dry else [args.only] if args.only != "*" else list(SHARES)
    for run in (run for name in names for run in runs(name)):
        path = args.output / f"{run.setting.name}.json"
        reason = "there" if path.exists() else why_not(run, args)
        if reason:
            print(f"{run.name}: {reason}")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exits at chance are judged as they are
            data = make(run, args)
        made_by = "benchmarks/promises.py --dry" if args.dry else command(run, "promises.py")
        write_json(path, {"about": about(made_by), **data})
        print(f"{run.name}: {len(data['rows'])} promises", flush=True)


if __name__ == "__main__":
    main()
