"""Arguments that `multiexit train` takes."""

from pathlib import Path
from typing import Annotated

import typer

from multiexit.cli import panels
from multiexit.cli.words import LAST_SEED

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="options by name in YAML or JSON, or a run's run.json"),
]
Download = Annotated[bool, panels.data(help="fetch CIFAR into the data folder")]
Option = Annotated[
    list[str] | None, panels.method(help="a recipe's own option, e.g. temperature=2")
]
Pretrained = Annotated[
    bool, panels.network("--pretrained", help="timm, torchvision: with their weights")
]
Weights = Annotated[
    str | None,
    panels.network(help="safetensors to start a CIFAR ResNet from (see --normalisation)"),
]
Normalisation = Annotated[
    str | None,
    panels.data(help="of CIFAR's and your own images: imagenet; default: their own, the network's"),
]
Epochs = Annotated[int | None, panels.training(help="of each phase; default: the task's preset")]
BatchSize = Annotated[int | None, panels.training(help="rows a batch; default: the task's preset")]
Lr = Annotated[
    float | None, panels.training(help="learning rate of the network; default: the task's preset")
]
OmegaLr = Annotated[
    float | None,
    panels.method(
        help="learning rate of the loss weights; default: the task's preset, or 2 / steps"
    ),
]
WeightDecay = Annotated[
    float | None, panels.training(help="of the network's optimiser; default: the task's preset")
]
Warmup = Annotated[
    float | None,
    panels.training(
        help="share of the steps over which the rate rises; default: the task's preset"
    ),
]
LrSchedule = Annotated[
    str | None,
    panels.training(
        help="linear, cosine, step, constant, or one of transformers; default: the task's preset"
    ),
]
LrScheduleOption = Annotated[
    list[str] | None, panels.training(help="of a schedule of transformers, e.g. num_cycles=3")
]
LayerDecay = Annotated[
    float | None,
    panels.training(
        help="factor of the rate from a stage to the one before, as 0.9; default: one rate"
    ),
]
LabelSmoothing = Annotated[
    float | None, panels.training(help="of labels that are classes, in [0, 1); default 0")
]
ClassWeights = Annotated[
    str | None,
    panels.training(
        help="in the loss against labels, one a class: 1,2.5; or balanced; default: all 1"
    ),
]
Sampling = Annotated[
    str | None, panels.training(help="balanced: every class as often as any other")
]
Mixup = Annotated[float | None, panels.training(help="of images: α of MixUp, e.g. 0.2")]
Cutmix = Annotated[float | None, panels.training(help="of images: α of CutMix, e.g. 1.0")]
Ema = Annotated[
    float | None, panels.training(help="decay of the weights' moving average, which is kept: 0.999")
]
Clip = Annotated[
    float | None,
    panels.training(
        min=0, help="largest norm of the gradient; 0 is none; default: the task's preset"
    ),
]
EarlyStopping = Annotated[
    int | None,
    panels.training(help="evaluations without a better one; text 2, images 5, CIFAR never"),
]
Workers = Annotated[int, panels.speed(min=0, max=256, help="processes that prepare batches")]
Schedule = Annotated[
    str | None,
    panels.training(
        help="CIFAR: strong (the default), appendix-f, or fine-tune, of a trained network"
    ),
]
Accumulation = Annotated[int, panels.training(help="batches per step")]
Validation = Annotated[
    float | None,
    panels.training(
        help="share of train that selects the epoch; text and --data 0.1, else images 0 (the last)"
    ),
]
Seed = Annotated[int, panels.run(min=0, max=LAST_SEED, help="of weights, draws and order")]
Seeds = Annotated[
    int | None, panels.run(min=1, max=1000, help="train so many, from --seed on, in OUTPUT/seed-N")
]
Against = Annotated[Path | None, panels.run(help="another run with --seeds, for a paired test")]
EvaluateEvery = Annotated[
    int | None, panels.training(help="steps between evaluations; default: at epochs' ends")
]
CheckpointEvery = Annotated[
    int | None, panels.run(help="steps between checkpoints, beside epochs' ends and evaluations")
]
LogEvery = Annotated[
    int | None, panels.run(help="steps between readings of the losses; default 20")
]
KeepCheckpoints = Annotated[
    int, panels.run(help="how many of the latest stay, beside that of the best epoch")
]
Resume = Annotated[bool, panels.run(help="go on from the run's last checkpoint")]
Overwrite = Annotated[
    bool, panels.run("--overwrite", help="clear away the run in OUTPUT and start anew")
]
Force = Annotated[
    bool, panels.run(help="resume a run with another recipe, settings, data or versions")
]
Push = Annotated[str | None, panels.run(help="upload the model to the hub's repository USER/NAME")]
Private = Annotated[bool | None, panels.run("--private", help="of a repository that is made now")]
Tracker = Annotated[list[str] | None, panels.run(help="tensorboard, wandb, …")]
