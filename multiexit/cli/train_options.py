"""Arguments that `multiexit train` takes."""

from pathlib import Path
from typing import Annotated

import typer

from multiexit.cli.words import LAST_SEED

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="options by name in YAML or JSON, or a run's run.json"),
]
Download = Annotated[
    bool, typer.Option(help="fetch CIFAR into the data folder", rich_help_panel="Data")
]
Option = Annotated[
    list[str] | None,
    typer.Option(help="a recipe's own option, e.g. temperature=2", rich_help_panel="Method"),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained", help="timm, torchvision: with their weights", rich_help_panel="Network"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="safetensors to start a CIFAR ResNet from (see --normalisation)",
        rich_help_panel="Network",
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(
        help="of CIFAR's images: imagenet for published weights; default: its own",
        rich_help_panel="Data",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="of each phase; default: the task's preset", rich_help_panel="Training"),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="rows a batch; default: the task's preset", rich_help_panel="Training"),
]
Lr = Annotated[
    float | None,
    typer.Option(
        help="learning rate of the network; default: the task's preset", rich_help_panel="Training"
    ),
]
OmegaLr = Annotated[
    float | None,
    typer.Option(
        help="learning rate of the loss weights; default: the task's preset, or 2 / steps",
        rich_help_panel="Method",
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        help="of the network's optimiser; default: the task's preset", rich_help_panel="Training"
    ),
]
Warmup = Annotated[
    float | None,
    typer.Option(
        help="share of the steps over which the rate rises; default: the task's preset",
        rich_help_panel="Training",
    ),
]
LrSchedule = Annotated[
    str | None,
    typer.Option(
        help="linear, cosine, step, constant, or one of transformers; default: the task's preset",
        rich_help_panel="Training",
    ),
]
LrScheduleOption = Annotated[
    list[str] | None,
    typer.Option(
        help="of a schedule of transformers, e.g. num_cycles=3", rich_help_panel="Training"
    ),
]
LayerDecay = Annotated[
    float | None,
    typer.Option(
        help="factor of the rate from a stage to the one before, as 0.9; default: one rate",
        rich_help_panel="Training",
    ),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(
        help="of labels that are classes, in [0, 1); default 0", rich_help_panel="Training"
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        help="in the loss against labels, one a class: 1,2.5; or balanced; default: all 1",
        rich_help_panel="Training",
    ),
]
Sampling = Annotated[
    str | None,
    typer.Option(help="balanced: every class as often as any other", rich_help_panel="Training"),
]
Mixup = Annotated[
    float | None, typer.Option(help="of images: α of MixUp, e.g. 0.2", rich_help_panel="Training")
]
Cutmix = Annotated[
    float | None, typer.Option(help="of images: α of CutMix, e.g. 1.0", rich_help_panel="Training")
]
Ema = Annotated[
    float | None,
    typer.Option(
        help="decay of the weights' moving average, which is kept: 0.999",
        rich_help_panel="Training",
    ),
]
Clip = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="largest norm of the gradient; 0 is none; default: the task's preset",
        rich_help_panel="Training",
    ),
]
EarlyStopping = Annotated[
    int | None,
    typer.Option(
        help="evaluations without a better one; text 2, images 5, CIFAR never",
        rich_help_panel="Training",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=0, max=256, help="processes that prepare batches", rich_help_panel="Speed and memory"
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="CIFAR: strong (the default), appendix-f, or fine-tune, of a trained network",
        rich_help_panel="Training",
    ),
]
Accumulation = Annotated[int, typer.Option(help="batches per step", rich_help_panel="Training")]
Validation = Annotated[
    float | None,
    typer.Option(
        help="share of train that selects the epoch; text and --data 0.1, else images 0 (the last)",
        rich_help_panel="Training",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=LAST_SEED, help="of weights, draws and order", rich_help_panel="Run"),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        help="train so many, from --seed on, in OUTPUT/seed-N",
        rich_help_panel="Run",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(help="another run with --seeds, for a paired test", rich_help_panel="Run"),
]
EvaluateEvery = Annotated[
    int | None,
    typer.Option(
        help="steps between evaluations; default: at epochs' ends", rich_help_panel="Training"
    ),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        help="steps between checkpoints, beside epochs' ends and evaluations", rich_help_panel="Run"
    ),
]
LogEvery = Annotated[
    int | None,
    typer.Option(help="steps between readings of the losses; default 20", rich_help_panel="Run"),
]
KeepCheckpoints = Annotated[
    int,
    typer.Option(
        help="how many of the latest stay, beside that of the best epoch", rich_help_panel="Run"
    ),
]
Resume = Annotated[
    bool, typer.Option(help="go on from the run's last checkpoint", rich_help_panel="Run")
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="clear away the run in OUTPUT and start anew", rich_help_panel="Run"
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        help="resume a run with another recipe, settings, data or versions", rich_help_panel="Run"
    ),
]
Push = Annotated[
    str | None,
    typer.Option(help="upload the model to the hub's repository USER/NAME", rich_help_panel="Run"),
]
Private = Annotated[
    bool | None,
    typer.Option("--private", help="of a repository that is made now", rich_help_panel="Run"),
]
Tracker = Annotated[
    list[str] | None, typer.Option(help="tensorboard, wandb, …", rich_help_panel="Run")
]
