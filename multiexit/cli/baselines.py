"""The command that trains networks without early exits, and how fast they are."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from multiexit.cli import chosen, typed
from multiexit.cli.row_options import TrainingRows
from multiexit.cli.words import (
    LAST_SEED,
    MaxSteps,
    Pool,
    Progress,
    spread,
    typed_command,
)
from multiexit.files.names import HISTORY, MODEL
from multiexit.files.paths import check_folder


@spread
def baseline(
    name: Annotated[
        str, typer.Argument(help="full, first, layerdrop, headprune, distilbert, pkd or theseus")
    ],
    output: Annotated[Path, typer.Option(help="the run's folder")],
    rows: TrainingRows,
    backbone: Annotated[
        str | None,
        typer.Option(help="hub name or folder; default bert-base-uncased, or DistilBERT's"),
    ] = None,
    full: Annotated[
        str | None,
        typer.Option(
            help="the network that speed-ups are against; default: the backbone with all its "
            "layers, of distilbert bert-base-uncased"
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="a baseline's own option, e.g. layers=9")
    ] = None,
    pool: Pool = None,
    epochs: Annotated[int | None, typer.Option(help="of each training; default 5")] = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[
        int | None, typer.Option(help="rows a batch; default: the task's preset")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="of weights, draws and order")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="clear away the run in OUTPUT and start anew")
    ] = False,
    progress: Progress = True,
) -> None:
    """Train a network without early exits, to compare with: shorter, thinner or distilled.

    Examples:

    multiexit baseline first --option layers=9 --task mrpc --backbone albert-base-v2 --output runs/9

    multiexit baseline headprune --data reviews.csv --output runs/heads

    multiexit baseline pkd --option layers=6 --task mrpc --output runs/pkd
    """
    from multiexit import Trainer, wrap
    from multiexit.cli import reporting, sources
    from multiexit.data.showing import shown
    from multiexit.data.splits import holdout
    from multiexit.evaluation.judging import judge, relative_to
    from multiexit.evaluation.outputs import collect
    from multiexit.policies import FixedExit
    from multiexit.recipes.static import baselines
    from multiexit.recipes.static.layers import check_encoder
    from multiexit.runtime import processes
    from multiexit.training import experiment, text_rows
    from multiexit.training.records import run_folder

    method = baselines.baseline(name, **typed.options(option or []))
    source = sources.find(rows, seed)
    if source.kind != "text":
        these = rows.task or rows.data
        raise ValueError(f"static baselines are of BERT-like encoders, and {these} is images")
    if epochs is not None and max_steps is not None:
        raise ValueError("--epochs and --max-steps both say how long: give one")
    check_folder("--output", output)
    fields = {"epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "lr": lr}
    config = replace(
        experiment.config_for(source.name),
        seed=seed,
        progress=progress,
        **{field: value for field, value in fields.items() if value is not None},
    )
    config = chosen.all_steps(config)
    place = replace(config, output=output, overwrite=overwrite)
    if not overwrite and run_folder.holds_run(output):
        raise ValueError(
            f"{output} holds a run: overwrite=True clears it away and starts anew; or name another "
            "output"
        )
    run_folder.check(place)
    distilled = name == "distilbert"
    network = backbone or ("distilbert-base-uncased" if distilled else "bert-base-uncased")
    tokenizer = typed.tokenizer(network)
    source = chosen.cut(source, network, tokenizer)
    data = source.load(tokenizer, output)
    if data.problem == "multi-label":
        raise ValueError(
            f"static baselines answer one class or one number a row, and rows of {data.name} have "
            "several labels: train the whole network, multiexit train --exits 1.0"
        )
    learned, dev = holdout(data.train, experiment.validation_for(source.name, None), seed)

    def encoder() -> Any:
        made = experiment.backbone_for(data, network, seed=seed)
        check_encoder(made)
        return made

    def fit(model: Any, recipe: Any) -> Any:
        return Trainer(model, recipe, replace(config, metric=data.metric)).fit(learned, dev)

    first = encoder()
    text_rows.check(first, {"train": data.train, **data.sets})
    config, pool = chosen.suited(config, pool, lr, source.name, first)
    parts = baselines.Parts(encoder, fit, learned, data.num_classes, pool, data.labels)
    whole = full or ("bert-base-uncased" if distilled else network)
    measure = parts.on(first if whole == network else wrap(whole))
    begin = time.perf_counter()
    with run_folder.held(place):
        model, history = method.train(parts)
        seconds = round(time.perf_counter() - begin, 1)
        model.preprocessing, model.policy = data.preprocessing, FixedExit(0)
        if processes().is_main_process:
            if overwrite:
                run_folder.clear(output)
            model.save_pretrained(output / MODEL, tokenizer)
            history.save(output / HISTORY)
        for label, some in data.sets.items():
            outputs = collect(model, some, data.metric)
            faster = speedup(measure, model, some)
            row = relative_to(judge(outputs, FixedExit(0)), outputs.cost, measure.cost(), faster)
            layers = model.exits[0] + 1
            reporting.write_results(
                output if len(data.sets) == 1 else output / label,
                outputs,
                [row],
                history,
                lambda number, some=some: shown(some, number, data.preprocessing),
                model.labels,
                title=f"{name}, {layers} layers of {network} on {data.name} ({label})",
                recipe=name,
                note=f"A static network; its speed-ups are against {whole} with one head.",
                command=typed_command(),
                seconds=seconds,
            )


def speedup(full: Any, short: Any, rows: Any) -> float:
    """Seconds of the full network ÷ seconds of the short one, on 4 batches of 8 rows."""
    from torch.utils.data import Subset

    from multiexit.data.batches import loader, move, unpack
    from multiexit.data.columns import Columns
    from multiexit.serving.timing import median_seconds

    device = next(short.parameters()).device

    def running(model: Any) -> Any:
        columns = Columns(model.backbone.start)
        batches, _ = loader(Subset(rows, range(min(32, len(rows)))), batch_size=8)
        inputs = [move(unpack(columns(batch))[1], device) for batch in batches]
        model.to(device).eval()
        return lambda: [model.full(**each) for each in inputs]

    slow, fast = median_seconds([running(full), running(short)], 5)
    return slow / fast
