"""Commands that train."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from multiexit.cli import chosen, train_options, typed
from multiexit.cli.row_options import TrainingRows
from multiexit.cli.words import (
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
    typed_command,
)
from multiexit.files.names import MODEL
from multiexit.files.paths import check_folder


def demo(
    output: Annotated[Path, typer.Option(help="folder for the model and the picture")] = Path(
        "demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="of training")] = 30,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="clear a run in OUTPUT")] = False,
) -> None:
    """Train, judge and plot a small multi-exit ResNet on real images, without any download.

    Example: multiexit demo
    """
    from multiexit.cli import reporting

    check_folder("--output", output)
    reporting.demo(output, epochs, overwrite)


@spread
def train(
    output: Annotated[Path, typer.Option(help="the run's folder")],
    rows: TrainingRows,
    config_file: train_options.ConfigFile = None,
    download: train_options.Download = False,
    recipe: RecipeName = "leebert",
    option: train_options.Option = None,
    backbone: BackboneName = None,
    pretrained: train_options.Pretrained = False,
    weights: train_options.Weights = None,
    normalisation: train_options.Normalisation = None,
    exits: Exits = "all",
    head: HeadName = None,
    pool: Pool = None,
    epochs: train_options.Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: train_options.BatchSize = None,
    lr: train_options.Lr = None,
    omega_lr: train_options.OmegaLr = None,
    weight_decay: train_options.WeightDecay = None,
    warmup: train_options.Warmup = None,
    lr_schedule: train_options.LrSchedule = None,
    lr_schedule_option: train_options.LrScheduleOption = None,
    layer_decay: train_options.LayerDecay = None,
    label_smoothing: train_options.LabelSmoothing = None,
    class_weights: train_options.ClassWeights = None,
    sampling: train_options.Sampling = None,
    mixup: train_options.Mixup = None,
    cutmix: train_options.Cutmix = None,
    ema: train_options.Ema = None,
    clip: train_options.Clip = None,
    early_stopping: train_options.EarlyStopping = None,
    workers: train_options.Workers = 0,
    schedule: train_options.Schedule = None,
    mixed_precision: MixedPrecision = "no",
    compile: Compile = False,
    channels_last: ChannelsLast = False,
    checkpoint_gradients: CheckpointGradients = False,
    accumulation: train_options.Accumulation = 1,
    validation: train_options.Validation = None,
    seed: train_options.Seed = 0,
    seeds: train_options.Seeds = None,
    against: train_options.Against = None,
    evaluate_every: train_options.EvaluateEvery = None,
    checkpoint_every: train_options.CheckpointEvery = None,
    log_every: train_options.LogEvery = None,
    keep_checkpoints: train_options.KeepCheckpoints = 2,
    resume: train_options.Resume = False,
    overwrite: train_options.Overwrite = False,
    force: train_options.Force = False,
    push: train_options.Push = None,
    private: train_options.Private = None,
    tracker: train_options.Tracker = None,
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
    from multiexit.cli import next_steps, reporting, sources
    from multiexit.data import tasks
    from multiexit.evaluation import grids
    from multiexit.model import hub
    from multiexit.runtime import processes
    from multiexit.training import experiment
    from multiexit.training.records import run_folder
    from multiexit.training.search import crossval

    check_folder("--output", output)
    if push is not None:
        if seeds is not None:
            raise ValueError("--push uploads one model, and --seeds trains several: leave one out")
        hub.check_push(push)
    elif private:
        raise ValueError("--private is of what --push uploads: leave it out")
    source = sources.find(
        rows,
        seed,
        download=download or None,
        pretrained=pretrained or None,
        weights=weights,
        normalisation=normalisation,
        schedule=schedule,
        channels_last=channels_last or None,
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
        "class_weights": typed.weights("--class-weights", class_weights),
        "sampling": sampling,
        "mixup": mixup,
        "cutmix": cutmix,
        "ema": ema,
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
    config = chosen.all_steps(config, early_stopping)
    crossval.check_effect(recipe, known_as, config, omega_lr=omega_lr, epochs=epochs)
    numbers = range(seed, seed + (seeds or 1))
    other = None
    if against is not None:
        named = source.own.name if source.own is not None else tasks.canonical(known_as)
        other = reporting.other_seeds(against, named, numbers)
    folders = [output if seeds is None else output / f"seed-{number}" for number in numbers]
    for folder in folders:
        run_folder.check(replace(config, output=folder))
    tokenizer = typed.tokenizer(backbone or "albert-base-v2") if source.kind == "text" else None
    source = chosen.cut(source, backbone or "albert-base-v2", tokenizer)
    fits = partial(experiment.check_classes, config, method)
    read = source.load(tokenizer, output, fits, chosen.preparation(source, backbone, pretrained))
    if class_weights == "balanced":
        config = replace(config, class_weights=experiment.balanced(read))
    if share:
        chosen.say_held(experiment.check_validation(read, share), len(read.train))
    method = experiment.tolerant(method, read)
    chosen.say_untrained(backbone, pretrained)
    for number, folder in zip(numbers, folders, strict=True):
        begin = time.perf_counter()
        network = experiment.backbone_for(read, backbone, weights, number, pretrained)
        settings, pooling = chosen.suited(config, pool, lr, known_as, network, number != seed)
        model, history = experiment.train(
            read,
            network,
            method,
            replace(settings, output=folder, seed=number),
            exits=places,
            head=head,
            pool=pooling,
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
            if seeds is None:
                data = [] if rows.data_dir is None else ["--data-dir", str(rows.data_dir)]
                dev: Any = next(iter(read.sets.values()))
                print(next_steps.after_training(output, model, len(dev), data))
            if push is not None:
                print(f"pushed: {hub.push(folder / MODEL, push, private=private)}")
    if seeds is not None and processes().is_main_process:
        reporting.report_seeds(output, numbers, read, method, other, typed_command())
