"""An option under one of the headings of a command's help."""

from functools import partial

import typer

data = partial(typer.Option, rich_help_panel="Data")
method = partial(typer.Option, rich_help_panel="Method")
network = partial(typer.Option, rich_help_panel="Network")
training = partial(typer.Option, rich_help_panel="Training")
speed = partial(typer.Option, rich_help_panel="Speed and memory")
run = partial(typer.Option, rich_help_panel="Run")
