"""The command line: `multiexit COMMAND --help` shows examples."""

import os
import sys
from typing import Any

import typer

from multiexit import starting
from multiexit.cli import (
    baselines,
    judging,
    looking,
    recommending,
    served,
    serving,
    training,
    tuning,
)
from multiexit.cli.noted import warnings_noted
from multiexit.cli.run_files import expanded
from multiexit.cli.spelling import as_typed
from multiexit.cli.words import Sections, check_words, finite, options_of
from multiexit_runner.naming import SpelledError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train networks with many exits and make them stop early, for text and for images.",
)

for command in (
    training.demo,
    training.train,
    baselines.baseline,
    tuning.tune,
    tuning.compare,
    judging.evaluate,
    judging.sweep,
    looking.report,
    judging.calibrate,
    recommending.recommend,
    judging.profile,
    serving.predict,
    serving.export,
    serving.truncate,
    served.serve,
    looking.recipes,
    looking.info,
):
    app.command(cls=Sections)(finite(command))


def main() -> None:
    """Run a command; what the user can mend is one line on stderr and exit code 2."""
    starting.disarm()
    run = app
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun's summary then names the reason
        from torch.distributed.elastic.multiprocessing.errors import record

        run = record(app)
    program: Any = typer.main.get_command(app)
    try:
        check_words(program, sys.argv[1:])
        sys.argv = [sys.argv[0], *expanded(program, sys.argv[1:])]
        check_words(program, sys.argv[1:])
        options = options_of(program, sys.argv[1:])
        with warnings_noted(lambda text: as_typed(text, options, sys.argv[1:])):
            run()
    except (ValueError, OSError, FloatingPointError, RuntimeError, MemoryError) as error:
        # Of the many RuntimeErrors only those of memory; torch isn't imported for a name.
        memory = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
        if isinstance(error, RuntimeError) and not memory:
            raise
        message = str(error)
        if not isinstance(error, SpelledError):
            message = as_typed(message, options_of(program, sys.argv[1:]), sys.argv[1:])
        print(f"multiexit: {message or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
