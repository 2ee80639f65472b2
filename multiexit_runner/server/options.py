"""What an operator sets: by flags, else by variables of the environment, else by a file."""

import argparse
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from math import inf, isnan
from pathlib import Path
from typing import Any, NoReturn

from multiexit_runner.backends import MOST_THREADS
from multiexit_runner.naming import OptionError, SpelledError, unknown

PREFIX = "MULTIEXIT_SERVE_"

NO_LOSS = 100.0
"""Points that a setting may lose at most, where nothing is said."""

TURNING = ("target_ms", "budget_layers", "budget_ms")
"""Options that turn the policy, of which a service has one at most."""


def _braced(name: str) -> str:
    """An option in a sentence of `OptionError`."""
    return f"{{{name}}}"


ONE_OF = ", ".join(map(_braced, TURNING))


def _option(default: Any, words: str, least: float | None = None, most: float = inf) -> Any:
    shown = "" if default in ("", NO_LOSS, -inf) else f"; default {default}"
    return field(default=default, metadata={"help": words + shown, "least": least, "most": most})


@dataclass(frozen=True)
class Options:
    """The options of a service; each is a flag, a variable and a key of the file.

    Raises:
        ValueError: a value that won't do, by its name.
    """

    host: str = _option("127.0.0.1", "address to listen at; 0.0.0.0 is all")
    port: int = _option(8000, "port to listen at; 0 is a free one", 0, 65535)
    policy: str = _option("", "policy of requests without one; default the model's own")
    policies: str = _option(
        "", "kinds of policy that requests may name beside that of --policy, with commas"
    )
    limits: str = _option(
        "", "numbers that requests may give, such as threshold=0.7..1,max_exit=1..3; default any"
    )
    target_ms: float = _option(
        0.0, "time, in ms, that 95 % of requests stay below: turns the policy; 0 is none", 0
    )
    budget_layers: float = _option(
        0.0, "layers per row, on average: turns the policy as rows change; 0 is none", 0
    )
    budget_ms: float = _option(
        0.0, "the network's time per row, in ms, on average: turns the policy; 0 is none", 0
    )
    min_score: float = _option(
        -inf,
        "lowest score of the settings among which the policy is turned, as observed on the "
        "calibration rows: a share such as 0.84, in the table's metric; default any",
    )
    max_loss: float = _option(
        NO_LOSS,
        "highest bound on what settings among which the policy is turned lose, in points of what "
        "the table bounds, accuracy (0.5 is 84.5 to 84.0); default the risk of its certificate, or "
        "any where it has none",
        0,
    )
    batch_size: int = _option(32, "rows that go through a segment together, at most", 1)
    max_wait_ms: float = _option(0.0, "age of the oldest row, in ms, from which it goes first", 0)
    max_rows: int = _option(1024, "rows on their way, at most; others get 429", 1)
    max_request_rows: int = _option(256, "rows of a request, at most", 1)
    max_characters: int = _option(20_000, "characters of a text, at most", 1)
    max_body_mb: float = _option(8.0, "size of a request, in MB, at most", 0.001, 1e6)
    read_seconds: float = _option(
        30.0, "time for a request's headers to come, and for its body", 0.01
    )
    max_pixels: int = _option(50_000_000, "pixels of an image, at most", 1)
    drift_alpha: float = _option(
        0.01,
        "chance that a certificate or a calibration table is voided though no row drifts; 0 "
        "doesn't watch",
        0,
    )
    threads: int = _option(
        0, "threads of the network; 0 is as many as there are cores", 0, MOST_THREADS
    )
    backend: str = _option(
        "", "what runs an export: onnxruntime, which is the default, openvino or openvino-bf16"
    )
    providers: str = _option(
        "",
        "onnxruntime's providers, with commas, such as "
        "TensorrtExecutionProvider,CUDAExecutionProvider; default the CPU",
    )
    shutdown_seconds: int = _option(30, "seconds for requests on their way at the end", 1)
    log_level: str = _option("info", "debug, info, warning or error")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least, most = getattr(self, f.name), f.metadata["least"], f.metadata["most"]
            if type(value) is int and f.type is float:
                value = _float(value)
                object.__setattr__(self, f.name, value)
            if type(value) is not f.type:
                raise OptionError(_braced(f.name) + " must be {}, got {!r}", _name(f.type), value)
            if least is not None and not abs(value) < inf:
                raise OptionError(_braced(f.name) + " must be a finite number, got {!r}", value)
            if least is not None and value < least:
                raise OptionError(_braced(f.name) + " must be at least {}, got {!r}", least, value)
            if least is not None and value > most:
                raise OptionError(_braced(f.name) + " must be at most {}, got {!r}", most, value)
        self._check_dial()
        if self.drift_alpha >= 1:
            raise OptionError("{drift_alpha} must be below 1, got {!r}", self.drift_alpha)
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise OptionError(
                "{log_level} must be debug, info, warning or error, got {!r}", self.log_level
            )

    def info(self) -> dict[str, Any]:
        """Those that aren't as by default."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def _check_dial(self) -> None:
        """Options of a turned policy, which are all or none."""
        if isnan(self.min_score):
            raise OptionError("{min_score} must be a number, got {!r}", self.min_score)
        if self.max_loss > NO_LOSS:
            raise OptionError(
                "{max_loss} is in points, at most {:g}, got {!r}", NO_LOSS, self.max_loss
            )
        turning = [name for name in TURNING if getattr(self, name)]
        if len(turning) > 1:
            both = " and ".join(map(_braced, turning))
            raise OptionError(f"a service has one of {ONE_OF}, got {both}")
        if turning and self.policy:
            turns = _braced(turning[0])
            raise OptionError(
                f"a service has a policy or {turns}, not both: {turns} turns the policy among "
                "the settings of the calibration table"
            )
        for name in ("min_score", "max_loss"):
            if not turning and getattr(self, name) not in (-inf, NO_LOSS):
                raise OptionError(
                    f"{_braced(name)} bounds how far the policy is turned: give one of {ONE_OF}"
                )


NAMES = [f.name for f in fields(Options)]


def words(text: str) -> list[str]:
    """Words with commas between them."""
    return [word for word in map(str.strip, text.split(",")) if word]


def read(args: Sequence[str]) -> tuple[str, Path | None, dict[str, Any]]:
    """The folder to serve, the file of options and the flags, from words of a command line.

    Raises:
        ValueError: flags that there aren't, or that are there twice.
        SystemExit: from argparse, for help.
    """
    parsed, others = _parser().parse_known_args(args)
    if others:
        raise unknown("option", others[0].partition("=")[0], map(_flag, NAMES), listed_by="--help")
    flags = vars(parsed)
    return flags.pop("folder"), flags.pop("config"), flags


@contextmanager
def merged(
    file: Path | None,
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Options]:
    """The options: flags, else variables, else the file. What is wrong with them, inside of it
    too, is said by the names by which they were given, where it is an `OptionError`.

    Args:
        file: TOML with options by name.
        flags: by name; None where one wasn't given.
        environment: variables, `MULTIEXIT_SERVE_PORT` for `port`.

    Raises:
        ValueError: a value that won't do, a file that can't be read, or a name that is no option.
    """
    in_file, in_variables = _of_file(file), _of_environment(environment)
    in_flags = {name: value for name, value in flags.items() if value is not None}
    names = {name: _flag(name) for name in NAMES}
    names |= {name: f"{file}'s {name!r}" for name in in_file}
    names |= {name: _variable(name) for name in in_variables}
    names |= {name: _flag(name) for name in in_flags}
    types: dict[str, Any] = {f.name: f.type for f in fields(Options)}
    given = {**in_file, **in_variables, **in_flags}
    try:
        yield Options(**{name: _typed(name, types[name], value) for name, value in given.items()})
    except OptionError as error:
        raise SpelledError(error.named(names)) from error


class _Parser(argparse.ArgumentParser):
    """Argparse's, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _Once(argparse.Action):
    """A flag that is there once: of two values the first would be lost."""

    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            raise ValueError(f"{flag} is given twice: give it once")
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="multiexit serve",
        description="Serve a model folder, or an exported one, over HTTP.",
        epilog=f"Each option can be set by a variable {PREFIX}… or in the file too.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="that was trained, saved or exported")
    config = "TOML file with these options, as batch_size"
    parser.add_argument("--config", type=Path, help=config, action=_Once)
    for f in fields(Options):
        help = f.metadata["help"].replace("%", "%%")
        parser.add_argument(_flag(f.name), metavar=f.name.upper(), help=help, action=_Once)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _of_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    for name in table:
        if name not in NAMES:
            raise SpelledError(f"{path}: {unknown('option', name, NAMES)}")
    return table


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {_variable(name): name for name in NAMES}
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    for name in given:
        if name not in known:
            raise unknown("variable", name, known, listed_by="--help")
    return {known[name]: value for name, value in given.items()}


def _typed(name: str, kind: type, value: Any) -> Any:
    """A value as its type, where it came as text."""
    if not isinstance(value, str) or kind is str:
        return value
    try:
        return kind(value)
    except ValueError as error:
        raise OptionError(_braced(name) + " must be {}, got {!r}", _name(kind), value) from error


def _float(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return inf if number > 0 else -inf


def _name(kind: Any) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, "text")
