"""Commands that choose: the best setting, and the better of two methods."""

import inspect
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiexit.cli import chosen, training, typed
from multiexit.cli.row_options import TrainingRows
from multiexit.cli.words import (
    LAST_SEED,
    BackboneName,
    ChannelsLast,
    CheckpointGradients,
    Compile,
    Exits,
    HeadName,
    MaxSteps,
    MixedPrecision,
    Pool,
    Progress,
    RecipeName,
    spread,
)
from multiexit.files.paths import check_folder

if TYPE_CHECKING:
    from multiexit.training.search.queue import Trial, Tuning

SCORE = "mean over exits (%)"


@spread
def tune(
    output: Annotated[Path, typer.Option(help="the search's folder; its name is the study's")],
    rows: TrainingRows,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="lr=1e-5..1e-4:log, batch_size=16,32, option.cycle=1,2,4; may be repeated"
        ),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="LeeBERT's own grid; --space changes parts of it")
    ] = False,
    sampler: Annotated[
        str | None, typer.Option(help="tpe, random or grid; default: grid with --grid, else tpe")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="in all; default: the whole grid, else 20")
    ] = None,
    folds: Annotated[
        int, typer.Option(min=1, help="parts of train that are held out in turn; 1: one fifth")
    ] = 5,
    storage: Annotated[
        str | None,
        typer.Option(help="a database for many machines, postgresql://…; default: OUTPUT/study.db"),
    ] = None,
    recipe: RecipeName = "leebert",
    option: Annotated[list[str] | None, typer.Option(help="a recipe's option that stays")] = None,
    backbone: BackboneName = None,
    exits: Exits = "all",
    head: HeadName = None,
    pool: Pool = None,
    max_steps: MaxSteps = None,
    validation: Annotated[
        float | None, typer.Option(help="share of the rest that selects the epoch, as for `train`")
    ] = None,
    mixed_precision: MixedPrecision = "no",
    compile: Compile = False,
    channels_last: ChannelsLast = False,
    checkpoint_gradients: CheckpointGradients = False,
    seed: Annotated[
        int,
        typer.Option(min=0, max=LAST_SEED, help="of the draws, the folds and every training"),
    ] = 0,
    progress: Progress = True,
) -> None:
    """Search the setting whose mean over the exits is best, by cross-validation inside train.

    Stopped, the same command goes on; run several times, or on several machines that share
    --storage, it shares the trials. The reported sets are never read.

    Examples:

    multiexit tune --task mrpc --grid --output tuning/mrpc

    multiexit tune --task rte --space lr=1e-5..1e-4:log --space option.cycle=2,4,8 --output t/rte
    """
    from multiexit import MultiExitModel
    from multiexit.cli import sources
    from multiexit.evaluation import report, results
    from multiexit.files import json_files
    from multiexit.runtime import processes, versions
    from multiexit.training import experiment
    from multiexit.training.records import run_folder
    from multiexit.training.search import crossval, queue

    source = sources.find(rows, seed, channels_last=channels_last or None)
    known_as = source.name
    check_folder("--output", output)
    if run_folder.holds_run(output):
        raise ValueError(f"--output {output} holds a run: name another folder, for the search")
    options, places = typed.options(option or []), typed.exits(exits)
    method = experiment.recipe_for(recipe, known_as, options)
    share = experiment.validation_for(known_as, validation)
    dimensions = {
        **(crossval.paper_grid(recipe, known_as) if grid else {}),
        **typed.space(space or []),
    }
    if not dimensions:
        raise ValueError("nothing to search: give --space NAME=VALUES, or --grid")
    for name in options:
        if crossval.OPTION + name in dimensions:
            raise ValueError(f"{name} is searched by --space, so --option {name} has no effect")
    if processes().num_processes > 1:
        raise ValueError("a trial runs in one process: start `multiexit tune` several times")
    config = replace(
        experiment.config_for(known_as),
        max_steps=max_steps,
        mixed_precision=mixed_precision,
        compile=compile,
        channels_last=channels_last,
        checkpoint_gradients=checkpoint_gradients,
        seed=seed,
        progress=progress,
    )
    config = chosen.all_steps(config, dimensions.get("early_stopping"))
    crossval.check(dimensions, recipe, known_as, config)
    tokenizer = typed.tokenizer(backbone or "albert-base-v2") if source.kind == "text" else None
    source = chosen.cut(source, backbone or "albert-base-v2", tokenizer)
    fits = partial(experiment.check_classes, config, method)
    read = source.load(tokenizer, output, fits, chosen.preparation(source, backbone))
    if folds > len(read.train):
        raise ValueError(f"--folds {folds}: there are {len(read.train)} rows to be parted")
    network = experiment.backbone_for(read, backbone, seed=seed)
    config, pool = chosen.suited(config, pool, dimensions.get("lr"), known_as, network)
    MultiExitModel(  # refuses now
        network, read.num_classes, places, head or method.head, pool, None, read.problem
    )
    settings = {
        **{name: value for name, value in vars(rows).items() if name != "data_dir"},
        "task": None if rows.task is None else read.name,
        "label": rows.label or [],
        "recipe": recipe,
        "option": option or [],
        "backbone": backbone,
        "exits": exits,
        "head": head,
        "pool": pool,
        "max_steps": max_steps,
        "validation": validation,
        "mixed_precision": mixed_precision,
        "compile": compile,
        "channels_last": channels_last,
        "checkpoint_gradients": checkpoint_gradients,
    }

    def watch(tuning: "Tuning") -> None:
        ended = sum(trial.state in ("done", "failed") for trial in tuning.trials)
        best = "" if tuning.best is None else f"; best so far {_cells(tuning.best)[SCORE]}"
        print(f"{ended} of {len(tuning.trials)} trials{best}", flush=True)
        write(tuning)

    def write(tuning: "Tuning") -> None:
        record = {
            "format": results.FORMAT,
            "about": {**settings, "folds": folds, "seed": seed, "versions": versions()},
            "best": None if tuning.best is None else asdict(tuning.best),
            "train": None if tuning.best is None else train_command(tuning.best.setting),
            "trials": [asdict(trial) for trial in tuning.trials],
        }
        json_files.write_json(output / "tuning.json", record)

    def train_command(setting: dict[str, Any]) -> str:
        recipe_options, fields = crossval.split(setting)
        words = {
            **settings,
            **fields,
            "data_dir": rows.data_dir,
            "seed": seed,
            "output": output / "best",
        }
        words["option"] = [f"{k}={json.dumps(v)}" for k, v in {**options, **recipe_options}.items()]
        return _typed("train", training.train, words)

    tuning = queue.tune(
        crossval.judge(
            read,
            recipe,
            options,
            config,
            folds,
            backbone,
            exits=places,
            head=head,
            pool=pool,
            validation=share,
        ),
        dimensions,
        output,
        folds,
        trials,
        sampler or ("grid" if grid else "tpe"),
        seed,
        storage,
        about={**settings, "rows": len(read.train)},
        watch=watch,
    )
    write(tuning)
    best_first = sorted(tuning.trials, key=lambda trial: -(trial.score or 0.0))
    print("\n" + report.table([_cells(trial) for trial in best_first]))
    if tuning.best is None:
        raise ValueError(f"every trial failed; {output / 'tuning.json'} says why")
    print(f"\nwritten: {output / 'tuning.json'}; the best setting:\n")
    print(train_command(tuning.best.setting))


def compare(
    one: Annotated[Path, typer.Argument(help="a folder that `train --seeds` wrote")],
    other: Annotated[Path, typer.Argument(help="another, on the same task and seeds")],
    output: Annotated[Path | None, typer.Option(help="a JSON file for the numbers")] = None,
) -> None:
    """Compare two methods by their runs: a paired t-test over the seeds.

    Example: multiexit compare runs/rte-leebert runs/rte-pabee
    """
    from multiexit.evaluation import seeds
    from multiexit.files import json_files

    if output is not None:
        check_folder("--output", output.absolute().parent)
        if output.is_dir():
            raise ValueError(f"--output {output} is a folder: name a file")
    compared = seeds.compare(seeds.read(one), seeds.read(other))
    print(seeds.comparison_table(compared))
    if output is not None:
        json_files.write_json(output, compared)
        print(f"\nwritten: {output}")


def _cells(trial: "Trial") -> dict[str, str]:
    score = trial.error or "failed" if trial.score is None else f"{100 * trial.score:.2f}"
    folds = ", ".join(f"{100 * value:.2f}" for value in trial.folds)
    rounded = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in trial.setting.items()
    }
    return {SCORE: score, "its folds": folds, **rounded}


def _typed(name: str, command: Callable[..., None], words: dict[str, Any]) -> str:
    """A command as one would type it; what is its default is left out."""
    parameters = inspect.signature(command).parameters
    typed_words = ["multiexit", name]
    for word, value in words.items():
        if value in (None, []) or value == parameters[word].default:
            continue
        for one in value if isinstance(value, list) else [value]:
            typed_words += [f"--{word.replace('_', '-')}", *([] if one is True else [str(one)])]
    return shlex.join(typed_words)
