"""`multiexit serve`: a service over HTTP."""

from dataclasses import asdict, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from multiexit.cli.words import ModelOrExport, spread
from multiexit_runner.server.options import Options


def _flag(option: Any) -> tuple[str, Any, None]:
    """An option as a field that typer reads."""
    help = option.metadata["help"]
    return option.name, Annotated[option.type | None, typer.Option(help=help)], None


Flags: Any = make_dataclass("Flags", [_flag(option) for option in fields(Options)])
"""The options of a service, each None where it isn't typed."""


@spread
def serve(
    folder: ModelOrExport,
    flags: Flags,  # pyright: ignore[reportInvalidTypeForm]
    config: Annotated[
        Path | None, typer.Option(help="a TOML file with these options, as batch_size = 16")
    ] = None,
) -> None:
    """Serve a model or an export over HTTP: each row leaves as early as its policy allows.

    What isn't typed is read from variables such as MULTIEXIT_SERVE_PORT, else from --config.
    `python -m multiexit_runner.server` serves an export without torch, with the same options.

    Examples:

    multiexit serve runs/reviews --port 8000

    curl localhost:8000/predict -H 'content-type: application/json' -d '{"inputs": "a fine film"}'
    """
    from multiexit.serving.hosting import load
    from multiexit_runner.server.options import merged
    from multiexit_runner.server.serve import run

    with merged(config, asdict(flags)) as options:
        run(folder.expanduser(), options, load)
