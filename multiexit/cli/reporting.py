"""Reports of a run, as commands print and write them."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiexit.data import tasks
from multiexit.data.own.notes import say
from multiexit.data.showing import shown
from multiexit.data.tasks import TaskData
from multiexit.evaluation import alike, card, examples, pictures, report, results, seeds
from multiexit.evaluation.grids import default_policies
from multiexit.evaluation.history import History
from multiexit.evaluation.judging import Row, sweep
from multiexit.evaluation.outputs import Outputs, collect
from multiexit.files import writing
from multiexit.files.json_files import write_json
from multiexit.files.names import MODEL, PICTURE, RESULTS
from multiexit.model.model import MultiExitModel
from multiexit.policies import Certificate, ExitPolicy
from multiexit.recipes import Recipe
from multiexit.runtime import processes, versions
from multiexit.serving.speedup import measured_speedup
from multiexit.training.experiment import backbone_for, config_for, recipe_for, train
from multiexit.training.records import run_folder


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
        model: trained.
        task: whose sets it is judged on.
        folder: for the results; with several sets, each has a folder in it.
        choose: the policies to judge, from what the model said.
        title, history, about: as in `multiexit.evaluation.results.results_json`.
        time_batch: measure seconds too, at this batch size.
        certificate: of a policy that was calibrated for a risk; its rows are left out.
    """
    for name, rows in task.sets.items():
        outputs = collect(model, rows, task.metric, spread=True)
        kept: list[int] | None = None
        if certificate is not None and (calibrated := int(outputs.seen(certificate).sum())):
            kept = (~outputs.seen(certificate)).nonzero().flatten().tolist()
            outputs = outputs.without(certificate)
            left = len(outputs.labels_B)
            if processes().is_main_process:
                print(
                    f"left out: {calibrated} rows that the policy was calibrated on; {left} are "
                    "judged\n"
                )
        judged = sweep(outputs, choose(outputs))
        if time_batch is not None:
            judged = [
                replace(row, speedup_time=measured_speedup(model, row.policy, rows, time_batch))
                for row in judged
            ]
        set_folder = _set_folder(folder, task, name)

        def seen(row: int, rows: Any = rows, kept: list[int] | None = kept) -> dict[str, Any]:
            number = row if kept is None else kept[row]
            return {**shown(rows, number, model.preprocessing), "row": number}

        about_set = {"title": f"{title} ({name})", **about}
        write_results(set_folder, outputs, judged, history, seen, model.labels, **about_set)


def check_free(folder: Path, task: TaskData, overwrite: bool) -> None:
    """Refuse to replace results before there are others, or say that they will be.

    Args:
        folder, task: as for `report_on`.
        overwrite: they may be replaced.

    Raises:
        ValueError: there are some.
    """
    for name in task.sets:
        place = _set_folder(folder, task, name)
        if not (place / RESULTS).exists():
            continue
        if not overwrite:
            raise ValueError(
                f"{place} holds results: overwrite=True replaces them; or name another output"
            )
        if processes().is_main_process:
            say(f"the results in {place} will be replaced")


def _set_folder(folder: Path, task: TaskData, name: str) -> Path:
    """Where the results of one of a task's sets lie."""
    return folder if len(task.sets) == 1 else folder / name


def write_card(run: Path, task: TaskData, backbone: str | None) -> None:
    """Write the card of a run's model, with the results on the task's main set.

    Args:
        run: the run's folder, in which `report_on` has written.
        task: whose sets were reported on.
        backbone: the name that the network came by.
    """
    folder = run if len(task.sets) == 1 else run / next(iter(task.sets))
    model = run / MODEL
    picture = folder / PICTURE
    writing.write(model / PICTURE, lambda path: shutil.copyfile(picture, path))
    card.write_card(
        model,
        results.read_results(folder / RESULTS),
        name=run.name,
        backbone=Path(backbone).name if backbone and Path(backbone).is_dir() else backbone,
        licence=card.licence_of(backbone),
    )


def write_results(
    folder: Path,
    outputs: Outputs,
    rows: list[Row],
    history: History | None = None,
    inputs: Callable[[int], dict[str, Any]] | None = None,
    labels: Sequence[Any] | None = None,
    **about: Any,
) -> None:
    """Save results as `results.json`, `results.png` and `examples.json`, and print the tables.

    Args:
        folder: for the files.
        outputs: of the evaluation set.
        rows: a sweep on it.
        inputs: what a row of the outputs shows, for `examples.json`; None writes no such file.
        labels: the classes' names.
        history, about: as in `multiexit.evaluation.results.results_json`.
    """
    if not processes().is_main_process:
        return
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(type(row.policy).__name__, []).append(row)
    if len(curves) > 1:  # fixed exits are a control, drawn if they are all there is
        curves.pop("FixedExit", None)
    W_MM = history.weights[-1][1] if history is not None and history.weights else None
    print(report.exit_table(outputs))
    if (note := alike.advice(outputs)) is not None:
        say(note)
    print()
    print(report.policy_table(rows))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, results.results_json(outputs, rows, history, **about))
    shown_row = rows[results.nearest([row.speedup_layers for row in rows])]
    pictures.draw_summary(outputs, curves, shown_row, W_MM, folder / PICTURE)
    files = [RESULTS, PICTURE]
    if inputs is not None:
        found = examples.examples_json(outputs, shown_row.policy, inputs, labels)
        write_json(folder / examples.NAME, found)
        files.append(examples.NAME)
    print("\nwritten: " + ", ".join(str(folder / file) for file in files))


def demo(folder: Path, epochs: int = 30, overwrite: bool = False) -> None:
    """Train, judge and plot a small multi-exit ResNet on scikit-learn's digits."""
    begin = time.perf_counter()
    config = replace(config_for("digits"), epochs=epochs, output=folder, overwrite=overwrite)
    run_folder.check(config)
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


def other_seeds(folder: Path, task: str, numbers: Sequence[int]) -> dict[str, Any]:
    """The results of another run with the same seeds."""
    other = seeds.read(folder)
    seeds.check_pair(other, task, numbers)
    return other


def report_seeds(
    output: Path,
    numbers: Sequence[int],
    data: TaskData,
    recipe: Recipe,
    other: dict[str, Any] | None,
    command: str,
) -> None:
    """Print and write the results of several seeds together, and beside another run's."""
    together = seeds.gather(
        output,
        numbers,
        list(data.sets),
        type(recipe.policy).__name__,
        task=data.name,
        recipe=recipe.name,
        command=command,
        versions=versions(),
    )
    print(f"\n{seeds.table(together)}\n\nwritten: {output / seeds.NAME}")
    if other is not None:
        comparison = seeds.compare(together, other)
        write_json(output / "against.json", comparison)
        print(f"\n{seeds.comparison_table(comparison)}\n\nwritten: {output / 'against.json'}")
