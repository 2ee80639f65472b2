"""Commands that judge a trained model, and set it up for a target."""

from pathlib import Path
from typing import Annotated, Any

import typer

from multiexit.cli import typed
from multiexit.cli.row_options import ModelRows
from multiexit.cli.words import LAST_SEED, Model, Policies, spread, typed_command
from multiexit.files.paths import check_folder


@spread
def evaluate(
    model: Model,
    rows: ModelRows,
    policy: Policies = None,
    output: Annotated[Path | None, typer.Option(help="default: beside the model")] = None,
    time_batch: Annotated[
        int | None, typer.Option(min=1, help="also measure seconds, at this batch size")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the results in OUTPUT")
    ] = False,
) -> None:
    """Score every exit, and the policies named, on a task's development or test set.

    Example: multiexit evaluate runs/mrpc --data-dir data --policy patience=4 --time-batch 1
    """
    from multiexit.cli import reporting, sources
    from multiexit.evaluation import grids
    from multiexit.policies import check, parse

    model = typed.model_folder(model)
    named_policies = [parse(name) for name in policy or []]
    if output is not None:
        check_folder("--output", output)
    loaded, task = sources.load(model, rows)
    for named_policy in named_policies:
        check(named_policy, loaded.num_exits, loaded.num_classes, loaded.problem)
    model_policy = None if named_policies else loaded.policy
    folder = output or model.parent / "evaluation"
    reporting.check_free(folder, task, overwrite or output is None)
    reporting.report_on(
        loaded,
        task,
        folder,
        lambda outputs: named_policies or grids.default_policies(outputs, model_policy),
        title=task.name,
        time_batch=time_batch,
        certificate=None if model_policy is None else model_policy.certificate,
        command=typed_command(),
    )


@spread
def sweep(
    model: Model,
    rows: ModelRows,
    policy: Annotated[
        str, typer.Option(help="patience, entropy, max-prob, margin, …")
    ] = "patience",
    output: Annotated[Path | None, typer.Option(help="default: beside the model")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the results in OUTPUT")
    ] = False,
) -> None:
    """One policy over its whole range, from one pass over the data.

    Example: multiexit sweep runs/mrpc --policy entropy --data-dir data
    """
    from multiexit.arguments import unknown
    from multiexit.cli import reporting, sources
    from multiexit.evaluation import grids
    from multiexit.policies import POLICIES

    model = typed.model_folder(model)
    if policy not in POLICIES:
        raise unknown("policy", policy, sorted(POLICIES))
    if output is not None:
        check_folder("--output", output)
    loaded, task = sources.load(model, rows)
    folder = output or model.parent / f"sweep-{policy}"
    reporting.check_free(folder, task, overwrite or output is None)
    reporting.report_on(
        loaded,
        task,
        folder,
        lambda outputs: grids.family(policy, outputs),
        title=f"{policy} on {task.name}",
        command=typed_command(),
    )


@spread
def calibrate(
    model: Model,
    rows: ModelRows,
    policy: Annotated[
        str | None,
        typer.Option(
            help="max-prob, which is the default, patience, …; patient-confident=0.2,3 keeps the "
            "3; of a model without classes its own is the default"
        ),
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="at least; see --by")] = None,
    score: Annotated[float | None, typer.Option(help="at least, in 0..1: 0.84")] = None,
    milliseconds: Annotated[float | None, typer.Option(help="per batch, at most")] = None,
    risk: Annotated[
        float | None, typer.Option(help="mean loss on new rows, at most, in 0..1: 0.05")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="thresholds, one per exit, that spend 1/BUDGET of the MACs"),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="what a speed-up is: layers (the default), macs or time"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="for time and milliseconds; default 1")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="with which the risk is kept, in 0..1; default 0.9")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="of the risk: disagreement (default), accuracy, brier or consistency"),
    ] = None,
    temperatures: Annotated[
        bool, typer.Option("--temperatures", help="fit one per exit, on half of the share")
    ] = False,
    table: Annotated[
        bool,
        typer.Option("--table", help="no target: keep what each setting gives, on the whole set"),
    ] = False,
    share: Annotated[
        float | None, typer.Option(help="of the set, to calibrate on; default 0.5")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LAST_SEED, help="of the rows' draw; default 0")
    ] = None,
) -> None:
    """Set the model's policy for one target, on a share of the development set.

    The rest of the set judges it. The policy is saved in the model's folder; one for a risk with
    a certificate, by which `evaluate` leaves its rows out. With --table the policy stays as it is,
    and a table of settings is saved, among which a call can choose: classify(texts, speedup=2).

    Examples:

    multiexit calibrate runs/reviews --policy max-prob --speedup 2

    multiexit calibrate runs/mrpc --policy max-prob --speedup 2 --data-dir data

    multiexit calibrate runs/mrpc --policy patience --risk 0.05 --confidence 0.95

    multiexit calibrate runs/reviews --table
    """
    from multiexit.cli import calibrating, next_steps, sources
    from multiexit.policies import MaxProb

    target = {
        "speedup": speedup,
        "score": score,
        "milliseconds": milliseconds,
        "risk": risk,
        "budget": budget,
        "by": by,
        "batch_size": batch_size,
        "confidence": confidence,
        "loss": loss,
    }
    run, model = model, typed.model_folder(model)
    kind = None if policy is None else calibrating.named(policy)
    if table:
        calibrating.check_table({**target, "share": share, "seed": seed}, temperatures)
    else:
        target = calibrating.complete(target, 0.5 if share is None else share)
    check_folder("the model's folder", model)
    loaded, task = sources.load(model, rows)
    if kind is None:
        kind = MaxProb if budget is not None else calibrating.default_kind(loaded)
    if table:
        other = calibrating.tabulate(loaded, model, task, kind, confidence or 0.9)
        print(next_steps.after_calibrating(run, other))
        return
    share, seed = 0.5 if share is None else share, seed or 0
    calibrating.run(loaded, model, task, kind, target, share, seed, temperatures)
    print(next_steps.after_calibrating(run))


def profile(
    model: Model,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="per row of text; default: as its own rows have, else 128"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="texts of your own, by whose length it is measured")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="rising")] = "1,2,4,8,16,32",
    repeats: Annotated[int, typer.Option(min=1, help="readings of each part")] = 5,
) -> None:
    """Measure how long a model's parts take on this machine, and keep that with the model.

    Texts are as long as the mean of the rows that are named, or of those to judge on that the run
    remembers.

    Examples:

    multiexit profile runs/reviews

    multiexit profile runs/mrpc --tokens 50
    """
    from multiexit import MultiExitModel
    from multiexit.evaluation import report
    from multiexit.model.folder import SETTINGS, backbone_spec, save_settings
    from multiexit.serving import profiling

    model = typed.model_folder(model)
    sizes = typed.whole_numbers("--batch-sizes", batch_sizes)
    if tokens is not None and data is not None:
        raise ValueError("--tokens and --data both say how long rows are: give one")
    check_folder("the model's folder", model)
    loaded = MultiExitModel.from_pretrained(model).to(typed.device())
    inputs = loaded.backbone.example_inputs()
    if tokens is None:
        inputs = _usual_row(loaded, model, data) or inputs
    else:
        if "input_ids" not in inputs:
            raise ValueError(f"--tokens {tokens}: this model reads {', '.join(inputs)}, not text")
        most = inputs["input_ids"].shape[1]
        if tokens > most:
            raise ValueError(f"--tokens {tokens}: a row of the example has {most} at most")
        inputs = {name: value[:, :tokens] for name, value in inputs.items()}
    loaded.latency = profiling.profile(loaded, inputs=inputs, batch_sizes=sizes, repeats=repeats)
    save_settings(model, loaded.settings(backbone_spec(loaded.backbone)))
    print(report.latency_table(loaded.latency))
    print(f"\nwritten: {model / SETTINGS} ({loaded.latency.machine})")


def _usual_row(model: Any, folder: Path, data: str | None) -> dict[str, Any] | None:
    """The text whose length is nearest to the mean, as inputs; None where there are none."""
    from statistics import fmean

    from multiexit.cli import sources
    from multiexit.data.own.notes import say

    if model.preprocessing.get("kind") != "text":
        if data is not None:
            raise ValueError(f"--data {data} is for texts, whose lengths differ: leave it out")
        return None
    if data is None and "data" not in model.preprocessing:
        return None
    try:
        task = sources.load(folder, ModelRows(data=data))[1]
    except (ValueError, OSError) as error:
        if data is not None:
            raise
        say(f"the run's own rows can't be read, so 128 tokens are measured (--tokens): {error}")
        return None
    name, rows = next(iter(task.sets.items()))
    mean = fmean(rows.lengths)
    nearest = min(range(len(rows)), key=lambda row: abs(rows.lengths[row] - mean))
    say(
        f"measured at {rows.lengths[nearest]} tokens, as rows of {name} have in the mean (--tokens)"
    )
    batch = rows.collate([rows[nearest]])
    return {key: value for key, value in batch.items() if key != "labels"}
