"""Commands that train, and what can be trained."""

import time
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiexit.cli import typed
from multiexit.cli.words import (
    LAST_SEED,
    Augment,
    BackboneName,
    ChannelsLast,
    CheckpointGradients,
    Compile,
    Data,
    DataDir,
    Exits,
    HeadName,
    Image,
    ImageSize,
    Label,
    MaxLength,
    MaxSteps,
    MixedPrecision,
    Pool,
    Problem,
    Progress,
    RecipeName,
    SkipBad,
    Task,
    TestData,
    Text,
    TextPair,
    ValidationData,
    typed_command,
)

if TYPE_CHECKING:
    from multiexit.data.tasks import TaskData
    from multiexit.recipes import Recipe


def demo(
    output: Annotated[Path, typer.Option(help="folder for the model and the picture")] = Path(
        "demo"
    ),
    epochs: Annotated[int, typer.Option(min=1)] = 30,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="clear a run in OUTPUT")] = False,
) -> None:
    """Train, judge and plot a small multi-exit ResNet on real images, without any download.

    Example: multiexit demo
    """
    from multiexit.cli import reporting

    typed.folder("--output", output)
    reporting.demo(output, epochs, overwrite)


def train(
    output: Annotated[Path, typer.Option(help="the run's folder")],
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="options by name in YAML or JSON, or a run's run.json"),
    ] = None,
    task: Task = None,
    data: Data = None,
    text: Text = None,
    text_pair: TextPair = None,
    image: Image = None,
    label: Label = None,
    problem: Problem = None,
    validation_data: ValidationData = None,
    test_data: TestData = None,
    image_size: ImageSize = None,
    augment: Augment = None,
    skip_bad: SkipBad = False,
    data_dir: DataDir = None,
    download: Annotated[bool, typer.Option(help="fetch CIFAR into the data folder")] = False,
    recipe: RecipeName = "leebert",
    option: Annotated[
        list[str] | None, typer.Option(help="a recipe's own option, e.g. temperature=2")
    ] = None,
    backbone: BackboneName = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="timm, torchvision: with their weights")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="safetensors to start a CIFAR ResNet from (see --normalisation)"),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(help="of CIFAR's images: imagenet for published weights; default: its own"),
    ] = None,
    exits: Exits = "all",
    head: HeadName = None,
    pool: Pool = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate of the network")] = None,
    omega_lr: Annotated[
        float | None, typer.Option(help="learning rate of the loss weights")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="of the network's optimiser")] = None,
    warmup: Annotated[
        float | None, typer.Option(help="share of the steps over which the rate rises")
    ] = None,
    lr_schedule: Annotated[
        str | None, typer.Option(help="linear, cosine, step, constant, or one of transformers")
    ] = None,
    lr_schedule_option: Annotated[
        list[str] | None, typer.Option(help="of a schedule of transformers, e.g. num_cycles=3")
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="factor of the rate from a stage to the one before, 0.9")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="of labels that are classes, in [0, 1)")
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="in the loss against labels, one a class: 1,2.5")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(min=0, help="largest norm of the gradient; 0 is none")
    ] = None,
    early_stopping: Annotated[
        int | None, typer.Option(help="evaluations without a better one; text 5, images never")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=256, help="processes that prepare batches")
    ] = 0,
    schedule: Annotated[
        str | None, typer.Option(help="CIFAR: strong (the default) or appendix-f")
    ] = None,
    mixed_precision: MixedPrecision = "no",
    compile: Compile = False,
    channels_last: ChannelsLast = False,
    checkpoint_gradients: CheckpointGradients = False,
    accumulation: Annotated[int, typer.Option(help="batches per step")] = 1,
    validation: Annotated[
        float | None,
        typer.Option(help="share of train that selects the epoch; text 0.1, images 0 (the last)"),
    ] = None,
    max_length: MaxLength = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED)] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="train so many, from --seed on, in OUTPUT/seed-N"),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="another run with --seeds, for a paired test")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="steps between evaluations; default: at epochs' ends")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="steps, beside epochs' ends and evaluations")
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(help="steps between readings of the losses")
    ] = None,
    keep_checkpoints: Annotated[
        int, typer.Option(help="how many of the latest stay, beside that of the best epoch")
    ] = 2,
    resume: Annotated[bool, typer.Option(help="go on from the run's last checkpoint")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="clear away the run in OUTPUT and start anew")
    ] = False,
    force: Annotated[
        bool, typer.Option(help="resume a run with another recipe, settings, data or versions")
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="upload the model to the hub's repository USER/NAME")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private", help="of a repository that is made now")
    ] = None,
    tracker: Annotated[list[str] | None, typer.Option(help="tensorboard, wandb, …")] = None,
    progress: Progress = True,
) -> None:
    """Put exits on a backbone, train it by a recipe, and report every exit and many policies.

    Examples:

    multiexit train --data reviews.csv --text review --label stars --output runs/reviews

    multiexit train --task mrpc --backbone albert-base-v2 --recipe leebert --output runs/mrpc

    multiexit train --task cifar10 --data-dir data --recipe leebert --epochs 20 --output runs/cifar

    multiexit train --task rte --seeds 5 --output runs/rte-leebert --against runs/rte-pabee

    multiexit train --config runs/mrpc/run.json --output runs/mrpc-again
    """
    del config_file  # `main` has written its options out
    from multiexit.cli import reporting, sources
    from multiexit.data import tasks
    from multiexit.evaluation import grids
    from multiexit.model import hub
    from multiexit.runtime import processes
    from multiexit.training import experiment
    from multiexit.training.records import run_folder
    from multiexit.training.search import crossval

    typed.folder("--output", output)
    if push is not None:
        if seeds is not None:
            raise ValueError("--push uploads one model, and --seeds trains several: leave one out")
        hub.check_name(push)
    elif private:
        raise ValueError("--private is of what --push uploads: leave it out")
    source = sources.find(
        task,
        data,
        {
            "text": text,
            "text_pair": text_pair,
            "image": image,
            "label": label,
            "problem": problem,
            "validation_data": validation_data,
            "test_data": test_data,
            "image_size": image_size,
            "augment": augment,
            "skip_bad": skip_bad,
        },
        data_dir,
        seed,
        download=download or None,
        pretrained=pretrained or None,
        weights=weights,
        normalisation=normalisation,
        schedule=schedule,
        channels_last=channels_last or None,
        max_length=max_length,
    )
    known_as = source.name
    places = typed.exits(exits)
    share = experiment.validation_for(known_as, validation)
    for name, value in (("early-stopping", early_stopping), ("evaluate-every", evaluate_every)):
        if value is not None and not share:
            raise ValueError(f"--{name} needs rows to judge exits on: give --validation 0.1")
    if against is not None and seeds is None:
        raise ValueError("--against compares runs of several seeds: give --seeds")
    method = experiment.recipe_for(recipe, known_as, typed.options(option or []))
    fields = {
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "lr": lr,
        "omega_lr": omega_lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "schedule": lr_schedule,
        "layer_decay": layer_decay,
        "label_smoothing": label_smoothing,
        "class_weights": class_weights and typed.weights("--class-weights", class_weights),
        "clip": clip or None,
        "early_stopping": early_stopping,
        "log_every": log_every,
    }
    config = replace(
        experiment.config_for(known_as, schedule),
        output=output,
        mixed_precision=mixed_precision,
        compile=compile,
        channels_last=channels_last,
        checkpoint_gradients=checkpoint_gradients,
        accumulation=accumulation,
        seed=seed,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
        resume=resume,
        force=force,
        overwrite=overwrite,
        trackers=tuple(tracker or ()),
        progress=progress,
        workers=workers,
        schedule_options=typed.options(lr_schedule_option or [], "--lr-schedule-option"),
        **{name: value for name, value in fields.items() if value is not None},
    )
    if clip == 0:
        config = replace(config, clip=None)
    crossval.check_effect(recipe, known_as, config, omega_lr=omega_lr, epochs=epochs)
    numbers = range(seed, seed + (seeds or 1))
    other = None
    if against is not None:
        named = source.own.name if source.own is not None else tasks.canonical(known_as)
        other = _other_seeds(against, named, numbers)
    folders = [output if seeds is None else output / f"seed-{number}" for number in numbers]
    for folder in folders:
        run_folder.check(replace(config, output=folder))
    tokenizer = typed.tokenizer(backbone or "albert-base-v2") if source.kind == "text" else None
    read = source.load(tokenizer, max_length, output / typed.SKIPPED if skip_bad else None)
    method = experiment.tolerant(method, read)
    for number, folder in zip(numbers, folders, strict=True):
        begin = time.perf_counter()
        model, history = experiment.train(
            read,
            experiment.backbone_for(read, backbone, weights, number, pretrained),
            method,
            replace(config, output=folder, seed=number),
            exits=places,
            head=head,
            pool=pool,
            validation=share,
            tokenizer=tokenizer,
        )
        reporting.report_on(
            model,
            read,
            folder,
            lambda outputs, policy=model.policy: grids.default_policies(outputs, policy),
            title=f"{method.name} on {read.name}",
            history=history,
            certificate=model.policy.certificate if model.policy else None,
            recipe=method.name,
            command=typed_command(),
            seconds=round(time.perf_counter() - begin, 1),
        )
        if processes().is_main_process:
            reporting.write_card(folder, read, backbone)
            if push is not None:
                print(f"pushed: {hub.push(folder / run_folder.MODEL, push, private=private)}")
    if seeds is not None and processes().is_main_process:
        _report_seeds(output, numbers, read, method, other)


def _other_seeds(folder: Path, task: str, numbers: Sequence[int]) -> dict[str, Any]:
    """The results of another run with the same seeds."""
    from multiexit.evaluation import seeds

    other = seeds.read(folder)
    seeds.check_pair(other, task, numbers)
    return other


def _report_seeds(
    output: Path,
    numbers: Sequence[int],
    data: "TaskData",
    recipe: "Recipe",
    other: dict[str, Any] | None,
) -> None:
    """Print and write the results of several seeds together, and beside another run's."""
    from multiexit.evaluation import seeds
    from multiexit.files import json_files
    from multiexit.runtime import versions

    together = seeds.gather(
        output,
        numbers,
        list(data.sets),
        type(recipe.policy).__name__,
        task=data.name,
        recipe=recipe.name,
        command=typed_command(),
        versions=versions(),
    )
    print(f"\n{seeds.table(together)}\n\nwritten: {output / seeds.NAME}")
    if other is not None:
        comparison = seeds.compare(together, other)
        json_files.write_json(output / "against.json", comparison)
        print(f"\n{seeds.comparison_table(comparison)}\n\nwritten: {output / 'against.json'}")


def recipes() -> None:
    """List the training methods, and the networks without early exits, with paper and section.

    Example: multiexit recipes
    """
    from multiexit.recipes import RECIPES
    from multiexit.recipes.static import BASELINES

    print("With exits: multiexit train --recipe NAME\n")
    for make in RECIPES.values():
        recipe = make()
        print(f"{recipe.name:<18} {recipe.summary}")
        print(f"{'':<18} {recipe.paper} ({recipe.year}), section {recipe.section}")
    print("\nWithout early exits: multiexit baseline NAME\n")
    for make in BASELINES.values():
        network, options = make(), signature(make).parameters.values()
        print(f"{network.name:<18} {network.summary} ({network.rows})")
        print(f"{'':<18} {network.paper} ({network.year}), section {network.section}")
        if options:
            typed_options = ", ".join(f"{each.name}={each.default}" for each in options)
            print(f"{'':<18} --option {typed_options}")


def info(
    backbone: Annotated[
        str, typer.Argument(help="hub name, folder, cifar-resnet-N, timm:NAME, …; or a trained run")
    ],
    classes: Annotated[int | None, typer.Option(min=1, max=100_000, help="default 2")] = None,
    exits: Annotated[
        str | None, typer.Option(help="all, k, stages 3,7,11 or shares 0.25,0.5,1.0; default all")
    ] = None,
    head: Annotated[str | None, typer.Option()] = None,
) -> None:
    """What a run's or model's folder holds; or the exits that a backbone can have.

    Both with parameters and MACs up to each exit.

    Examples:

    multiexit info cifar-resnet-56 --classes 10

    multiexit info runs/reviews
    """
    from multiexit import MultiExitModel, wrap
    from multiexit.evaluation import card, report
    from multiexit.model.folder import SETTINGS
    from multiexit.model.settings import read_settings

    folder = typed.model_folder(Path(backbone))
    if (folder / SETTINGS).is_file():
        given = {"--classes": classes, "--exits": exits, "--head": head}
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"{option} is for a backbone, and {folder} has exits: leave it")
        settings = read_settings(folder / SETTINGS)
        how = settings["preprocessing"]
        known = {
            "a trained model": str(folder),
            **card.facts(settings),
            "reads": how.get("kind"),
            "trained on": how.get("task") or (how.get("data") or {}).get("data"),
        }
        print("\n".join(f"{key}: {value}" for key, value in known.items() if value) + "\n")
        print(report.cost_table(MultiExitModel.from_pretrained(folder).cost()))
        return
    model = MultiExitModel(wrap(backbone), classes or 2, typed.exits(exits or "all"), head)
    print(report.cost_table(model.cost()))
