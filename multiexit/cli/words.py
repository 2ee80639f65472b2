"""Arguments that several commands take."""

import dataclasses
import functools
import inspect
import math
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
import typer.core

from multiexit.arguments import ELSEWHERE
from multiexit.cli import panels

LAST_SEED = 2**32 - 1
Model = Annotated[Path, typer.Argument(help="a folder that `train` wrote, or the model in it")]
ModelOrExport = Annotated[
    Path, typer.Argument(help="a folder that `train` wrote, the model in it, or an export")
]
Policies = Annotated[
    list[str] | None, typer.Option("--policy", help="patience=4, max-prob=0.9, …; may be repeated")
]
Policy = Annotated[str | None, typer.Option(help="default: the model's own")]
RecipeName = Annotated[str, panels.method(help="see `multiexit recipes`")]
BackboneName = Annotated[
    str | None, panels.network(help="hub name, folder, cifar-resnet-N, timm:NAME, …")
]
Exits = Annotated[
    str, panels.network(help="all, a number k (every k-th), stages 3,7,11 or shares 0.25,0.5,1.0")
]
HeadName = Annotated[
    str | None,
    panels.network(
        help="linear, pooler, attention, …, with +lte, +mix, … behind; an unknown one lists all"
    ),
]
Pool = Annotated[
    str | None,
    panels.network(help="first, last or mean token; default: the network's, for --data the mean"),
]
MaxSteps = Annotated[int | None, panels.training(help="steps per phase, in place of epochs")]
MixedPrecision = Annotated[str, panels.speed(help="no, bf16 or fp16")]
Compile = Annotated[bool, panels.speed(help="compile the training pass")]
ChannelsLast = Annotated[
    bool, panels.speed(help="images: lay out channels innermost, faster on many machines")
]
CheckpointGradients = Annotated[bool, panels.speed(help="less memory, about a third more time")]
Progress = Annotated[bool, typer.Option(help="say how far it is, on stderr")]


def typed_command() -> str:
    """The command as it was typed."""
    return shlex.join(["multiexit", *sys.argv[1:]])


def options_of(program: Any, words: Sequence[str]) -> dict[str, str]:
    """The options of the command that was typed, by their names in Python.

    Args:
        program: the click group.
        words: what was typed behind its name.
    """
    command = program.commands.get(words[0]) if words else None
    names = {} if command is None else {p.name: p.opts[0] for p in command.params}
    return {name: option for name, option in names.items() if option.startswith("--")}


def check_words(program: Any, words: Sequence[str]) -> None:
    """Refuse empty words, options that other tools have, and those given twice that count once.

    Args:
        program: the click group.
        words: what was typed behind its name.

    Raises:
        ValueError: it names the option.
    """
    before = ""
    for word in words:
        name, equals, value = word.partition("=")
        if not word.strip() or (name.startswith("--") and equals and not value.strip()):
            raise ValueError(f"{name.strip() or before or 'the first word'}: an empty value")
        before = name if word.startswith("--") else "a word"
    command = program.commands.get(words[0]) if words else None
    options = [] if command is None else [p for p in command.params if p.opts[0].startswith("--")]
    once = {n: p.opts[0] for p in options if not p.multiple for n in (*p.opts, *p.secondary_opts)}
    names = [word.partition("=")[0] for word in words]
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    for name in (name for name in names if name.startswith("--")):
        meant = ELSEWHERE.get(name[2:].replace("-", "_"), "")
        meant = f"--{meant.replace('_', '-')}"
        if meant in known and name not in known:
            raise ValueError(f"{words[0]} has no option {name}: did you mean {meant}?")
    typed = Counter(once[name] for name in names if name in once)
    twice = next((option for option, times in typed.items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given {typed[twice]} times: give it once")


def finite(command: Callable[..., None]) -> Callable[..., None]:
    """The command, refusing NaN and infinite numbers."""

    @functools.wraps(command)
    def checked(**arguments: Any) -> None:
        for name, value in arguments.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} must be a finite number, got {value}")
        command(**arguments)

    return checked


class Sections(typer.core.TyperCommand):
    """A command whose help puts options under the headings of their `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections, each where its first option comes."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            usual = "Options" if param.param_type_name == "option" else "Arguments"
            record = param.get_help_record(ctx)
            if record is not None:
                name = getattr(param, "rich_help_panel", None) or usual
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of those of its parameters that are dataclasses.

    What is typed sees single options, by the fields' annotations and defaults; the command gets
    the dataclasses, so that options that go together are written once and handed on as one.
    """
    parameters: list[inspect.Parameter] = []
    parts: dict[str, type] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        parts[parameter.name] = kind  # type: ignore[assignment]
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def gathered(**arguments: Any) -> None:
        for name, kind in parts.items():
            fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
            arguments[name] = kind(**{f: arguments.pop(f) for f in fields if f in arguments})
        command(**arguments)

    gathered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gathered.__annotations__ = {each.name: each.annotation for each in parameters}
    return gathered
