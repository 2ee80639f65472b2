"""Trained runs side by side: each exit, twice as fast by its own policy, and what a step costs.

    python benchmarks/methods.py runs/mrpc-* --data-dir data --output docs/results/methods/mrpc.json

Each run's own policy gets the slowest setting that is twice as fast (by layers) on the part
of the training set that was held out, and is judged on the development set. A step is timed
against plain fine-tuning of an encoder of MiniLM's shape with one exit, in turns; of methods in
phases it is the mean over the phases, as each had as many steps. Static baselines (runs of
`multiexit baseline`) stand beside them with what they are.
"""

import argparse
import json
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import report, seconds
from train_step import cycle
from transformers import AutoModel, BertConfig

import multiexit as mx
from multiexit.cli import typed
from multiexit.data import tasks
from multiexit.data.splits import holdout
from multiexit.policies.registry import policy_name
from multiexit.training import experiment

SHAPE: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def at_speed(outputs: mx.Outputs, policy: mx.ExitPolicy, speedup: float) -> mx.ExitPolicy:
    """A policy's kind, set for a speed-up."""
    if isinstance(policy, mx.MaxProb) and isinstance(policy.threshold, tuple):
        return mx.budgeted(outputs, speedup)
    return mx.calibrate(outputs, policy, speedup=speedup)


@cache
def load_task(name: str, data_dir: Path | None, folder: Path) -> tasks.TaskData:
    """The task, read once: all runs have the same tokenizer."""
    return tasks.load(name, data_dir, typed.tokenizer(folder))


def judged(folder: Path, args: Any) -> dict[str, Any]:
    """One run: scores × 100, of multi-exit models and of static ones."""
    results = json.loads((folder / "results.json").read_text())
    model = mx.MultiExitModel.from_pretrained(folder / "model").to(typed.device())
    task = load_task(args.task, args.data_dir, args.runs[0] / "model")
    (dev,) = task.sets.values()
    outputs = mx.collect(model, dev, task.metric)
    scores = [100 * row["score"] for row in mx.exit_scores(outputs)]
    row: dict[str, Any] = {"method": results["about"]["recipe"]}
    if model.num_exits == 1:
        known = results["policies"][0]  # against the full network
        row |= {"at speed": f"{scores[0]:.1f}", "speed-up": f"{known['speedup_layers']:.2f}"}
        row["speed-up, MACs"] = f"{known['speedup_macs']:.2f}"
    else:
        row |= {f"exit {m}": f"{score:.1f}" for m, score in enumerate(scores)}
        row["mean"] = f"{sum(scores) / len(scores):.1f}"
        _, held = holdout(task.train, args.validation, args.seed)
        if model.policy is None:
            raise ValueError(f"{folder} was saved without a policy")
        policy = at_speed(mx.collect(model, held, task.metric), model.policy, args.speedup)
        found = mx.judge(outputs, policy)
        row |= {"at speed": f"{100 * found.score:.1f}", "policy": policy_name(policy)}
        row |= {"speed-up": f"{found.speedup_layers:.2f}"}
        row |= {"speed-up, MACs": f"{found.speedup_macs:.2f}"}
    row["parameters"] = f"{outputs.cost.params_M[-1] / 1e6:.2f} M"
    return row


def step_times(recipes: list[str], args: Any) -> list[float]:
    """Seconds of a step of each recipe ÷ of plain fine-tuning, measured in turns."""

    def fresh() -> mx.Backbone:
        return mx.wrap(AutoModel.from_config(BertConfig(num_hidden_layers=6, **SHAPE)))

    torch.manual_seed(args.seed)
    ratios = []
    for name in recipes:
        recipe = experiment.recipe_for(name, args.task, {})
        calls = [cycle(fresh(), mx.recipes.joint(), [5], args)]
        calls += [cycle(fresh(), recipe, "all", args, i) for i in range(len(recipe.phases))]
        plain, *phases = seconds(calls, args.repeats)
        ratios.append(sum(phases) / len(phases) / plain)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--task", default="mrpc", help="that the runs were trained on")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--validation", type=float, default=0.1, help="as the runs had it")
    parser.add_argument("--seed", type=int, default=0, help="as the runs had it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--output")
    args = parser.parse_args()
    rows = [judged(folder, args) for folder in args.runs]
    timed = [row for row in rows if row["method"] in mx.recipes.RECIPES]
    for row, ratio in zip(timed, step_times([row["method"] for row in timed], args), strict=True):
        row["step ÷ plain"] = f"{ratio:.2f}"
    report(rows, args.output, shlex.join(["benchmarks/methods.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
