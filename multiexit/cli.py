"""The command line: `multiexit COMMAND --help` shows examples."""

import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from multiexit import typed

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train networks with many exits and make them stop early, for text and for images.",
)

Task = Annotated[str, typer.Option(help="a GLUE task (mrpc, sst2, …), cifar10, cifar100 or digits")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="where the data lies; else GLUE comes from the hub, CIFAR from ~/.cache"),
]
Model = Annotated[Path, typer.Argument(help="a folder that `train` wrote (RUN/model)")]
Policies = Annotated[
    list[str] | None, typer.Option("--policy", help="patience=4, max-prob=0.9, …; may be repeated")
]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder for the model and the picture")] = Path(
        "demo"
    ),
    epochs: Annotated[int, typer.Option(min=1)] = 30,
) -> None:
    """Train, judge and plot a small multi-exit ResNet on real images, without any download.

    Example: multiexit demo
    """
    from multiexit import runs

    runs.demo(output, epochs)


@app.command()
def train(
    task: Task,
    output: Annotated[Path, typer.Option(help="the run's folder")],
    data_dir: DataDir = None,
    download: Annotated[bool, typer.Option(help="fetch CIFAR into the data folder")] = False,
    recipe: Annotated[str, typer.Option(help="see `multiexit recipes`")] = "leebert",
    option: Annotated[
        list[str] | None, typer.Option(help="a recipe's own option, e.g. temperature=2")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="hub name, folder, cifar-resnet-N, timm:NAME, torchvision:NAME"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="safetensors to start a CIFAR ResNet from (see --normalisation)"),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(help="of CIFAR's images: imagenet for published weights; default: its own"),
    ] = None,
    exits: Annotated[
        str, typer.Option(help="all, a number k (every k-th), stages 3,7,11 or shares 0.25,0.5,1.0")
    ] = "all",
    head: Annotated[
        str | None,
        typer.Option(
            help="linear, pooler, own-pooler, attention, mixed-pool; +lte, +mix or +cascade behind"
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="first or mean")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="steps per phase, in place of epochs")
    ] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate of the network")] = None,
    omega_lr: Annotated[
        float | None, typer.Option(help="learning rate of the loss weights")
    ] = None,
    early_stopping: Annotated[
        int | None, typer.Option(help="epochs without a better one; text 5, images never")
    ] = None,
    workers: Annotated[int, typer.Option(help="processes that prepare batches")] = 0,
    schedule: Annotated[str, typer.Option(help="CIFAR: strong or appendix-f")] = "strong",
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16")] = "no",
    accumulation: Annotated[int, typer.Option(help="batches per step")] = 1,
    validation: Annotated[
        float | None,
        typer.Option(help="share of train that selects the epoch; text 0.1, images 0 (the last)"),
    ] = None,
    max_length: Annotated[int, typer.Option(help="tokens per row at most")] = 128,
    seed: Annotated[int, typer.Option()] = 0,
    checkpoint_every: Annotated[int | None, typer.Option(help="steps, beside epochs' ends")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the run's checkpoint")] = False,
    tracker: Annotated[list[str] | None, typer.Option(help="tensorboard, wandb, …")] = None,
    progress: Annotated[bool, typer.Option(help="show a bar")] = True,
) -> None:
    """Put exits on a backbone, train it by a recipe, and report every exit and many policies.

    Examples:

    multiexit train --task mrpc --backbone albert-base-v2 --recipe leebert --output runs/mrpc

    multiexit train --task cifar10 --data-dir data --recipe leebert --epochs 20 --output runs/cifar
    """
    from multiexit import runs, tasks

    kind = tasks.kind(task)
    chosen = runs.recipe_for(recipe, task, typed.options(option or []))
    given = {
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "lr": lr,
        "omega_lr": omega_lr,
        "early_stopping": early_stopping,
    }
    config = replace(
        runs.config_for(task, schedule),
        output=output,
        mixed_precision=mixed_precision,
        accumulation=accumulation,
        seed=seed,
        checkpoint_every=checkpoint_every,
        resume=resume,
        trackers=tuple(tracker or ()),
        progress=progress,
        workers=workers,
        **{name: value for name, value in given.items() if value is not None},
    )
    begin = time.perf_counter()
    tokenizer = typed.tokenizer(backbone or "albert-base-v2") if kind == "text" else None
    data = tasks.load(task, data_dir, tokenizer, max_length, normalisation, download)
    model, history = runs.train(
        data,
        runs.backbone_for(data, backbone, weights, seed),
        chosen,
        config,
        exits=typed.exits(exits),
        head=head,
        pool=pool,
        validation=(0.1 if kind == "text" else 0.0) if validation is None else validation,
        tokenizer=tokenizer,
    )
    seconds = round(time.perf_counter() - begin, 1)
    runs.report_on(
        model,
        data,
        output,
        lambda outputs: runs.default_policies(outputs, model.policy),
        title=f"{chosen.name} on {data.name}",
        history=history,
        recipe=chosen.name,
        command=_command(),
        seconds=seconds,
    )


@app.command()
def evaluate(
    model: Model,
    task: Annotated[str | None, typer.Option(help="default: what the model was trained on")] = None,
    data_dir: DataDir = None,
    policy: Policies = None,
    output: Annotated[Path | None, typer.Option(help="default: beside the model")] = None,
    time_batch: Annotated[
        int | None, typer.Option(help="also measure seconds, at this batch size")
    ] = None,
) -> None:
    """Score every exit, and the policies named, on a task's development or test set.

    Example: multiexit evaluate runs/mrpc/model --data-dir data --policy patience=4 --time-batch 1
    """
    from multiexit import runs
    from multiexit.policies import parse

    named = [parse(text) for text in policy or []]
    loaded, data = typed.load(model, task, data_dir)
    own = None if named else loaded.policy
    folder = output or model.parent / "evaluation"
    runs.report_on(
        loaded,
        data,
        folder,
        lambda outputs: named or runs.default_policies(outputs, own),
        title=data.name,
        time_batch=time_batch,
        certificate=None if own is None else own.certificate,
        command=_command(),
    )


@app.command()
def calibrate(
    model: Model,
    policy: Annotated[
        str,
        typer.Option(help="max-prob, patience, …; patient-confident=0.2,3 keeps the 3"),
    ] = "max-prob",
    speedup: Annotated[float | None, typer.Option(help="at least; see --by")] = None,
    score: Annotated[float | None, typer.Option(help="at least, in 0..1")] = None,
    milliseconds: Annotated[float | None, typer.Option(help="per batch, at most")] = None,
    risk: Annotated[float | None, typer.Option(help="mean loss on new rows, at most")] = None,
    budget: Annotated[
        float | None, typer.Option(help="a threshold per exit, that spend 1/BUDGET of the MACs")
    ] = None,
    by: Annotated[str, typer.Option(help="what a speed-up is: layers, macs or time")] = "layers",
    batch_size: Annotated[int, typer.Option(min=1, help="for time and milliseconds")] = 1,
    confidence: Annotated[float, typer.Option(help="with which the risk is kept")] = 0.9,
    loss: Annotated[str, typer.Option(help="disagreement or accuracy")] = "disagreement",
    temperatures: Annotated[
        bool, typer.Option("--temperatures", help="fit one per exit, on half of the share")
    ] = False,
    share: Annotated[float, typer.Option(help="of the set, to calibrate on")] = 0.5,
    seed: Annotated[int, typer.Option(help="of the rows' draw")] = 0,
    task: Annotated[str | None, typer.Option(help="default: what the model was trained on")] = None,
    data_dir: DataDir = None,
) -> None:
    """Set the model's policy for one target, on a share of the development set.

    The rest of the set judges it. The policy is saved in the model's folder; one for a risk with
    a certificate, by which `evaluate` leaves its rows out.

    Examples:

    multiexit calibrate runs/mrpc/model --policy max-prob --speedup 2 --data-dir data

    multiexit calibrate runs/mrpc/model --policy patience --risk 0.05 --confidence 0.95
    """
    from multiexit import calibrate_run

    wanted = {
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
    kind = calibrate_run.named(policy)
    loaded, data = typed.load(model, task, data_dir)
    calibrate_run.run(loaded, model, data, kind, wanted, share, seed, temperatures)


@app.command()
def sweep(
    model: Model,
    policy: Annotated[
        str, typer.Option(help="patience, entropy, max-prob, margin, …")
    ] = "patience",
    task: Annotated[str | None, typer.Option(help="default: what the model was trained on")] = None,
    data_dir: DataDir = None,
    output: Annotated[Path | None, typer.Option(help="default: beside the model")] = None,
) -> None:
    """One policy over its whole range, from one pass over the data.

    Example: multiexit sweep runs/mrpc/model --policy entropy --data-dir data
    """
    from multiexit import runs

    loaded, data = typed.load(model, task, data_dir)
    folder = output or model.parent / f"sweep-{policy}"
    runs.report_on(
        loaded,
        data,
        folder,
        lambda outputs: runs.family(policy, outputs),
        title=f"{policy} on {data.name}",
        command=_command(),
    )


@app.command()
def predict(
    model: Model,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="image files; for text one file of lines, or stdin")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="default: the model's own")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
) -> None:
    """Labels, exits and confidences as JSON lines, in the inputs' order.

    Text comes one per line, sentence pairs with a tab between them.

    Examples:

    echo "a fine film" | multiexit predict runs/sst2/model --policy patience=3

    multiexit predict runs/cifar/model cat.png dog.png --policy max-prob=0.9
    """
    from multiexit import MultiExitModel
    from multiexit.policies import parse
    from multiexit.prediction import predict_images, predict_lines

    loaded = MultiExitModel.from_pretrained(model).to(typed.device())
    chosen = parse(policy) if policy else loaded.policy
    if chosen is None:
        raise ValueError(
            "this model was saved without a policy: give one, e.g. --policy patience=4"
        )
    kind = loaded.preprocessing.get("kind")
    if kind not in ("image", "text"):
        raise ValueError(
            f"{model} doesn't say how its inputs are made: set model.preprocessing before saving "
            "(see the documentation on saving), or predict in Python"
        )
    if kind == "image":
        if not inputs:
            raise ValueError("give image files to predict")
        answers = predict_images(loaded, chosen, [Path(name) for name in inputs], batch_size)
    else:
        reader, lines = typed.tokenizer(model), typed.lines(inputs)
        answers = predict_lines(loaded, chosen, reader, lines, batch_size)
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False))


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(help="a folder that doesn't exist yet")],
    policy: Annotated[str | None, typer.Option(help="default: the model's own")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers, for CPUs")] = False,
    agreement: Annotated[
        float, typer.Option(help="share of rows whose answer int8 must leave as it is")
    ] = 0.95,
    task: Annotated[
        str | None, typer.Option(help="compare on its development set too, not on random inputs")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a model and its policy as ONNX graphs, to be run by `multiexit_runner` without torch.

    Examples:

    multiexit export runs/mrpc/model mrpc-onnx --policy max-prob=0.9

    multiexit export runs/mrpc/model mrpc-int8 --int8 --task mrpc --data-dir data
    """
    from multiexit import MultiExitModel
    from multiexit import export as write
    from multiexit.policies import parse

    chosen = parse(policy) if policy else None
    rows = None
    if task is None and data_dir is None:
        loaded = MultiExitModel.from_pretrained(model)
    else:
        loaded, data = typed.load(model, task, data_dir)
        rows = next(iter(data.sets.values()))
    reads = (model / "tokenizer_config.json").is_file()
    reader = typed.tokenizer(model) if reads else None
    parity = write(
        loaded, output, chosen, tokenizer=reader, rows=rows, int8=int8, agreement=agreement
    )
    print(
        f"{output}: {loaded.num_exits} graphs. Over {parity.rows} rows logits differ from the "
        f"model's by at most {parity.largest_difference:.1g}; {parity.same_exit:.1%} leave at the "
        f"same exit, {parity.same_answer:.1%} get the same answer"
    )


@app.command()
def recipes() -> None:
    """List the training methods with paper, section and year.

    Example: multiexit recipes
    """
    from multiexit.recipes import RECIPES

    for make in RECIPES.values():
        made = make()
        print(f"{made.name:<18} {made.summary}")
        print(f"{'':<18} {made.paper} ({made.year}), section {made.section}")


@app.command()
def info(
    backbone: Annotated[
        str, typer.Argument(help="hub name, folder, cifar-resnet-N, timm:NAME, torchvision:NAME")
    ],
    classes: Annotated[int, typer.Option(min=1)] = 2,
    exits: Annotated[
        str, typer.Option(help="all, k, stages 3,7,11 or shares 0.25,0.5,1.0")
    ] = "all",
    head: Annotated[str | None, typer.Option()] = None,
) -> None:
    """The exits that a backbone can have, with parameters and MACs up to each.

    Example: multiexit info cifar-resnet-56 --classes 10
    """
    from multiexit import MultiExitModel, report, wrap

    model = MultiExitModel(wrap(backbone), classes, typed.exits(exits), head)
    print(report.cost_table(model.cost()))


def main() -> None:
    """Run a command; what the user can mend is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"multiexit: {error}", file=sys.stderr)
        sys.exit(2)


def _command() -> str:
    return shlex.join(["multiexit", *sys.argv[1:]])


if __name__ == "__main__":
    main()
