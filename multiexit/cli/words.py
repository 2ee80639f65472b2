"""Arguments that several commands take."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Task = Annotated[str, typer.Option(help="a GLUE task (mrpc, sst2, …), cifar10, cifar100 or digits")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="where the data lies; else GLUE comes from the hub, CIFAR from ~/.cache"),
]
Model = Annotated[Path, typer.Argument(help="a folder that `train` wrote (RUN/model)")]
ModelTask = Annotated[str | None, typer.Option(help="default: what the model was trained on")]
Policies = Annotated[
    list[str] | None, typer.Option("--policy", help="patience=4, max-prob=0.9, …; may be repeated")
]
Policy = Annotated[str | None, typer.Option(help="default: the model's own")]


def typed_command() -> str:
    """The command as it was typed."""
    return shlex.join(["multiexit", *sys.argv[1:]])
