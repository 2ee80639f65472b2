"""A run from end to end, as the command line does it: data, model, training, results."""

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from multiexit import pictures, policies, presets, recipes, report, runfolder, tasks
from multiexit.backbones import Backbone, wrap
from multiexit.config import TrainConfig
from multiexit.data import glue
from multiexit.data.splits import canonical, holdout
from multiexit.evaluate import Outputs, Row, collect, measured_speedup, sweep
from multiexit.files import write_json
from multiexit.history import History
from multiexit.model import Exits, MultiExitModel
from multiexit.names import unknown
from multiexit.policies import Certificate, ExitPolicy
from multiexit.processes import processes
from multiexit.recipes import Recipe
from multiexit.tasks import TaskData
from multiexit.trainer import Trainer


def recipe_for(name: str, task: str, options: dict[str, Any]) -> Recipe:
    """A recipe with a task's own defaults.

    LeeBERT and its variants: τ = 4 for images, Table 3's cycle length for GLUE. Patience on
    regression: answers closer than 0.5 count as equal.
    """
    if name not in recipes.RECIPES:
        return recipes.recipe(name)  # says which there are
    defaults: dict[str, Any] = {}
    if name.startswith(("leebert", "fastbert-clo")):  # whose paper these are
        known = inspect.signature(recipes.RECIPES[name]).parameters
        if tasks.kind(task) == "image":
            defaults["temperature"] = 4.0
        if "cycle" in known and canonical(task) in presets.TABLE_3:
            defaults["cycle"] = presets.TABLE_3[canonical(task)].cycle
    made = recipes.recipe(name, **{**defaults, **options})
    patient = isinstance(made.policy, policies.Patience) and made.policy.tolerance is None
    if patient and tasks.kind(task) == "text" and glue.find_task(task).num_classes == 1:
        made = replace(made, policy=replace(made.policy, tolerance=0.5))
    return made


def config_for(task: str, schedule: str | None = None) -> TrainConfig:
    """The paper's settings for a task; small and quick ones for the digits.

    Args:
        task: its name.
        schedule: for images, see `multiexit.presets.cifar`; None is `"strong"`.

    Raises:
        ValueError: a schedule for text.
    """
    if tasks.kind(task) == "text":
        if schedule is not None:
            raise ValueError(f"schedule {schedule!r} is for images, and {task} is text: leave it")
        return presets.glue(task)
    schedule = schedule or "strong"
    if canonical(task) == "digits":
        config = presets.cifar(schedule, epochs=30)
        return replace(config, batch_size=64, schedule="cosine", warmup=0.1, log_every=10)
    return presets.cifar(schedule)


def validation_for(task: str) -> float:
    """The share of train that selects the epoch: a tenth for text; images keep the last."""
    return 0.1 if tasks.kind(task) == "text" else 0.0


def backbone_for(
    task: TaskData, name: str | None, weights: str | None = None, seed: int = 0
) -> Backbone:
    """The backbone of a name, made for a task's inputs; random weights come from the seed.

    Raises:
        ValueError: `weights` for anything but a CIFAR ResNet.
    """
    torch.manual_seed(seed)
    text = task.preprocessing["kind"] == "text"
    images = "cifar-resnet-20" if task.name == "digits" else "cifar-resnet-56"
    name = name or ("albert-base-v2" if text else images)
    resnet = name.startswith("cifar-resnet-")
    if weights and not resnet:
        raise ValueError(f"weights start a CIFAR ResNet; {name!r} brings its own")
    if text:
        return wrap(name)
    channels, size, _ = shape = task.preprocessing["shape"]
    if resnet:
        return wrap(name, weights=weights, in_channels=channels, size=size)
    return wrap(name, input_shape=tuple(shape))


def train(
    task: TaskData,
    backbone: Backbone,
    recipe: Recipe,
    config: TrainConfig,
    exits: Exits = "all",
    head: str | None = None,
    pool: str | None = None,
    validation: float = 0.0,
    tokenizer: Any = None,
) -> tuple[MultiExitModel, History]:
    """Put exits on a backbone and train them.

    Args:
        task, backbone, recipe, config, exits, head, pool: as elsewhere.
        validation: share of the training set that selects the best epoch instead of being
            trained on, so that the reported sets stay unseen; 0 keeps the last epoch.
        tokenizer: saved with the model.
    """
    torch.manual_seed(config.seed)
    if task.labels is not None and task.preprocessing["kind"] == "text":
        from multiexit.backbones.transformer import order_classes

        order_classes(backbone, task.labels)
    model = MultiExitModel(
        backbone, task.num_classes, exits, head or recipe.head, pool, task.labels
    )
    model.preprocessing = task.preprocessing
    rows, held = task.train, None
    if validation:
        rows, held = holdout(task.train, validation, config.seed)
    settings = replace(config, metric=task.metric)
    return model, Trainer(model, recipe, settings, tokenizer).fit(rows, held)


def default_policies(outputs: Outputs, own: ExitPolicy | None = None) -> list[ExitPolicy]:
    """A sweep that fits the task: every patience, a range of thresholds, and no early exit.

    Args:
        outputs: of the model.
        own: the model's own policy, which comes first.
    """
    M, _, C = outputs.logits_MBC.shape
    kinds: list[type[ExitPolicy] | ExitPolicy] = [policies.Certainty] * _certain(outputs)
    if C == 1:
        kinds.append(policies.Patience(1, tolerance=0.1 * (_known(outputs).apart or 1.0)))
    else:
        kinds += [policies.Patience, policies.MaxProb, policies.Entropy]
    chosen = [] if own is None else [own]
    for kind in kinds:
        chosen += policies.sweep_settings(kind, _known(outputs), policies.FEW[1::2])
    return list(dict.fromkeys([*chosen, policies.FixedExit(M - 1)]))


def family(policy: str | type[ExitPolicy] | ExitPolicy, outputs: Outputs) -> list[ExitPolicy]:
    """Settings of one policy over its whole range, from nobody to everyone leaving early.

    Args:
        policy: its name on the command line, its class, or one whose first number is tried.
        outputs: of the model.

    Raises:
        ValueError: an unknown name, or a policy that doesn't fit the model.
    """
    if isinstance(policy, str):
        if policy not in policies.POLICIES:
            raise unknown("policy", policy, sorted(policies.POLICIES))
        policy = policies.POLICIES[policy]
    return policies.sweep_settings(policy, _known(outputs))


def _known(outputs: Outputs) -> policies.Known:
    """What decides over a sweep's range."""
    M, _, C = outputs.logits_MBC.shape
    moves = outputs.logits_MBC.diff(dim=0).abs()
    return policies.Known(M, C, float(moves.max()) if C == 1 and M > 1 else 1.0)


def _certain(outputs: Outputs) -> bool:
    return outputs.certainty_MB is not None


def report_on(
    model: MultiExitModel,
    task: TaskData,
    folder: Path,
    choose: Callable[[Outputs], list[ExitPolicy]],
    title: str,
    history: History | None = None,
    time_batch: int | None = None,
    certificate: Certificate | None = None,
    **about: Any,
) -> None:
    """Judge a model on each of a task's sets, and write and print what came out.

    Args:
        model, task: as elsewhere.
        folder: for the results; with several sets, each has a folder in it.
        choose: the policies to judge, from what the model said.
        title, history, about: as in `multiexit.report.results_json`.
        time_batch: measure seconds too, at this batch size.
        certificate: of a policy that was calibrated for a risk; its rows are left out.
    """
    for name, rows in task.sets.items():
        outputs = collect(model, rows, task.metric, spread=True)
        if certificate is not None and (seen := int(outputs.seen(certificate).sum())):
            outputs = outputs.without(certificate)
            kept = len(outputs.labels_B)
            if processes().is_main_process:
                print(
                    f"left out: {seen} rows that the policy was calibrated on; {kept} are judged\n"
                )
        judged = sweep(outputs, choose(outputs))
        if time_batch is not None:
            judged = [
                replace(row, speedup_time=measured_speedup(model, row.policy, rows, time_batch))
                for row in judged
            ]
        where = folder if len(task.sets) == 1 else folder / name
        write_results(where, outputs, judged, history, title=f"{title} ({name})", **about)


def write_results(
    folder: Path,
    outputs: Outputs,
    rows: list[Row],
    history: History | None = None,
    **about: Any,
) -> None:
    """Save a run's results as `results.json` and `results.png`, and print the tables."""
    if not processes().is_main_process:
        return
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(type(row.policy).__name__, []).append(row)
    if len(curves) > 1:  # fixed exits are a control, drawn if they are all there is
        curves.pop("FixedExit", None)
    W_MM = history.weights[-1][1] if history is not None and history.weights else None
    print(report.exit_table(outputs))
    print()
    print(report.policy_table(rows))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", report.results_json(outputs, rows, history, **about))
    shown = min(rows, key=lambda row: abs(row.speedup_layers - 2))
    pictures.draw_summary(outputs, curves, shown, W_MM, folder / "results.png")
    print(f"\nwritten: {folder / 'results.json'}, {folder / 'results.png'}")


def demo(folder: Path, epochs: int = 30, overwrite: bool = False) -> None:
    """Train, judge and plot a small multi-exit ResNet on scikit-learn's digits."""
    begin = time.perf_counter()
    config = replace(config_for("digits"), epochs=epochs, output=folder, overwrite=overwrite)
    runfolder.check(config)
    task = tasks.load("digits")
    recipe = recipe_for("leebert", "digits", {})
    model, history = train(task, backbone_for(task, None), recipe, config)
    seconds = round(time.perf_counter() - begin, 1)
    title = "LeeBERT's recipe on the digits, ResNet-20"
    about = {"recipe": recipe.name, "command": "multiexit demo", "seconds": seconds}
    report_on(
        model,
        task,
        folder,
        lambda outputs: default_policies(outputs, model.policy),
        title=title,
        history=history,
        **about,
    )
