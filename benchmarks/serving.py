"""What each step of serving gives on real sentences, against the plain network in eager float32.

    multiexit train --task mrpc --recipe joint … --output runs/mrpc
    python benchmarks/serving.py runs/mrpc/model --task mrpc --data-dir data

The policy, max p, is set for twice the speed by layers by what the int8 graphs say of rows that
`multiexit train` holds out of the training set (a tenth with seed 0; 1,000 at most). All steps are
scored and timed on the development set, in turns. "plain" is the network with its last head alone;
padded to 128 tokens, as transformers' own GLUE script does, and to the longest row of each batch.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import report, seconds
from torch.nn import functional as F
from torch.utils.data import Subset

import multiexit as mx
import multiexit_runner
from multiexit.cli import typed
from multiexit.data import tasks
from multiexit.data.batches import collate_of, lengths_of
from multiexit.data.splits import holdout
from multiexit.evaluation.judging import score

Batch = dict[str, Any]  # of tensors
TOKENS = 128
NEVER = 1.01  # a threshold that no probability reaches


def cut(rows: Any, order: list[int], size: int) -> list[Batch]:
    """Batches of these rows, padded to the longest of each, without labels."""
    batches = []
    for begin in range(0, len(order), size):
        batch = collate_of(rows)([rows[i] for i in order[begin : begin + size]])
        batches.append({name: value for name, value in batch.items() if name != "labels"})
    return batches


def widened(batches: list[Batch]) -> list[Batch]:
    """Padded to 128 tokens."""
    return [
        {name: F.pad(value, (0, TOKENS - value.shape[1])) for name, value in batch.items()}
        for batch in batches
    ]


def arrays(batches: list[Batch]) -> list[dict[str, np.ndarray]]:
    """As the runner takes them."""
    return [{name: value.numpy() for name, value in batch.items()} for batch in batches]


def steps(
    model: mx.MultiExitModel, policy: Any, rows: Any, size: int, folder: Path, names: Any
) -> dict[str, tuple[Callable[[], Any], list[int]]]:
    """By name: what answers all rows, and the order of its answers."""
    plain_order = list(range(len(rows)))
    lengths = lengths_of(rows) or []
    by_length = sorted(plain_order, key=lambda row: -lengths[row])
    orders = {"in order": plain_order, "by length": by_length}
    batches = {how: cut(rows, order, size) for how, order in orders.items()}
    engine = mx.Engine(model, policy)

    def plain(some: list[Batch]) -> Callable[[], Any]:
        return lambda: torch.cat([model.full(**batch) for batch in some])

    def run(runner: Any, threshold: float) -> Callable[[], Any]:
        some = arrays(batches["by length"])

        def call() -> torch.Tensor:
            runner.set(threshold=threshold)
            return torch.from_numpy(
                np.concatenate([runner.predict(**batch).logits_BC for batch in some])
            )

        return call

    def stream() -> torch.Tensor:
        return torch.cat([answer.logits_BC for answer in engine.stream(batches["in order"], size)])

    def one_by_one() -> torch.Tensor:
        return torch.cat([engine.predict(**batch).logits_BC for batch in batches["in order"]])

    runners = {name: multiexit_runner.Runner(folder / name) for name in names}
    made: dict[str, tuple[Callable[[], Any], list[int]]] = {
        "plain, padded to 128": (plain(widened(batches["in order"])), plain_order),
        "plain, padded to the batch": (plain(batches["in order"]), plain_order),
        "plain, like lengths together": (plain(batches["by length"]), by_length),
        "Engine: + exits": (stream if size > 1 else one_by_one, plain_order),
    }
    for name, runner in runners.items():
        made[f"{name}, no exits"] = (run(runner, NEVER), by_length)
        made[f"{name} + exits"] = (run(runner, policy.threshold), by_length)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--speedup", type=float, default=2.0, help="by layers")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output")
    args = parser.parse_args()
    model = mx.MultiExitModel.from_pretrained(args.model)
    task = tasks.load(args.task, args.data_dir, typed.tokenizer(args.model))
    (found,) = task.sets.values()
    dev: Any = found
    _, held = holdout(task.train, 0.1, 0)
    ours: Any = Subset(held, range(min(1000, len(held))))
    outputs = mx.collect(model, ours, task.metric)
    judged = mx.collect(model, dev, task.metric)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("ONNX", "ONNX int8"):
            mx.export(model, folder / name, mx.MaxProb(NEVER), int8="int8" in name)
        quantised = multiexit_runner.Runner(folder / "ONNX int8")
        said = [
            quantised.forward(**batch) for batch in arrays(cut(ours, list(range(len(ours))), 32))
        ]
        logits_MBC = torch.from_numpy(np.concatenate(said, 1))
        outputs = replace(outputs, logits_MBC=logits_MBC)
        policy = mx.calibrate(outputs, mx.MaxProb, speedup=args.speedup)
        for size in args.batches:
            calls = steps(model, policy, dev, size, folder, ("ONNX", "ONNX int8"))
            spent = seconds([call for call, _ in calls.values()], args.repeats)
            for (name, (call, order_of)), time in zip(calls.items(), spent, strict=True):
                logits_BC = call()[torch.tensor(order_of).argsort()]
                rows.append(
                    {
                        "batch": size,
                        "what": name,
                        "sentences/s": f"{len(dev) / time:.1f}",
                        "÷ padded to 128": spent[0] / time,
                        "÷ padded to the batch": spent[1] / time,
                        "score": f"{100 * score(judged, logits_BC)['score']:.1f}",
                    }
                )
    left = mx.judge(judged, policy)
    print(f"{policy}: {left.speedup_layers:.2f}× by layers on the development set")
    report(rows, args.output, shlex.join(["benchmarks/serving.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
