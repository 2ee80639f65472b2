"""Arguments that `multiexit train` takes."""

from pathlib import Path
from typing import Annotated

import typer

from multiexit.cli.words import LAST_SEED

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="options by name in YAML or JSON, or a run's run.json"),
]
Download = Annotated[bool, typer.Option(help="fetch CIFAR into the data folder")]
Option = Annotated[list[str] | None, typer.Option(help="a recipe's own option, e.g. temperature=2")]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="timm, torchvision: with their weights")
]
Weights = Annotated[
    str | None,
    typer.Option(help="safetensors to start a CIFAR ResNet from (see --normalisation)"),
]
Normalisation = Annotated[
    str | None,
    typer.Option(help="of CIFAR's images: imagenet for published weights; default: its own"),
]
Epochs = Annotated[int | None, typer.Option()]
BatchSize = Annotated[int | None, typer.Option()]
Lr = Annotated[float | None, typer.Option(help="learning rate of the network")]
OmegaLr = Annotated[float | None, typer.Option(help="learning rate of the loss weights")]
WeightDecay = Annotated[float | None, typer.Option(help="of the network's optimiser")]
Warmup = Annotated[float | None, typer.Option(help="share of the steps over which the rate rises")]
LrSchedule = Annotated[
    str | None, typer.Option(help="linear, cosine, step, constant, or one of transformers")
]
LrScheduleOption = Annotated[
    list[str] | None, typer.Option(help="of a schedule of transformers, e.g. num_cycles=3")
]
LayerDecay = Annotated[
    float | None, typer.Option(help="factor of the rate from a stage to the one before, 0.9")
]
LabelSmoothing = Annotated[float | None, typer.Option(help="of labels that are classes, in [0, 1)")]
ClassWeights = Annotated[
    str | None, typer.Option(help="in the loss against labels, one a class: 1,2.5")
]
Sampling = Annotated[str | None, typer.Option(help="balanced: every class as often as any other")]
Mixup = Annotated[float | None, typer.Option(help="of images: α of MixUp, e.g. 0.2")]
Cutmix = Annotated[float | None, typer.Option(help="of images: α of CutMix, e.g. 1.0")]
Ema = Annotated[
    float | None, typer.Option(help="decay of the weights' moving average, which is kept: 0.999")
]
Clip = Annotated[float | None, typer.Option(min=0, help="largest norm of the gradient; 0 is none")]
EarlyStopping = Annotated[
    int | None, typer.Option(help="evaluations without a better one; text 5, images never")
]
Workers = Annotated[int, typer.Option(min=0, max=256, help="processes that prepare batches")]
Schedule = Annotated[str | None, typer.Option(help="CIFAR: strong (the default) or appendix-f")]
Accumulation = Annotated[int, typer.Option(help="batches per step")]
Validation = Annotated[
    float | None,
    typer.Option(help="share of train that selects the epoch; text 0.1, images 0 (the last)"),
]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED)]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="train so many, from --seed on, in OUTPUT/seed-N"),
]
Against = Annotated[Path | None, typer.Option(help="another run with --seeds, for a paired test")]
EvaluateEvery = Annotated[
    int | None, typer.Option(help="steps between evaluations; default: at epochs' ends")
]
CheckpointEvery = Annotated[
    int | None, typer.Option(help="steps, beside epochs' ends and evaluations")
]
LogEvery = Annotated[int | None, typer.Option(help="steps between readings of the losses")]
KeepCheckpoints = Annotated[
    int, typer.Option(help="how many of the latest stay, beside that of the best epoch")
]
Resume = Annotated[bool, typer.Option(help="go on from the run's last checkpoint")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="clear away the run in OUTPUT and start anew")
]
Force = Annotated[
    bool, typer.Option(help="resume a run with another recipe, settings, data or versions")
]
Push = Annotated[
    str | None, typer.Option(help="upload the model to the hub's repository USER/NAME")
]
Private = Annotated[bool | None, typer.Option("--private", help="of a repository that is made now")]
Tracker = Annotated[list[str] | None, typer.Option(help="tensorboard, wandb, …")]
