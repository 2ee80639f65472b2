"""Serving from the command line."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from multiexit_runner.server.options import Options, read
from multiexit_runner.server.served import Served, ServedExport

Load = Callable[[Path, Options], Served]


def load_export(folder: Path, options: Options) -> Served:
    """An exported folder.

    Raises:
        ValueError: what is none, or can't be served.
    """
    from multiexit_runner.classifier import Classifier

    if not (folder / "export.json").exists():
        raise ValueError(
            f"{folder} is no export: write one with `multiexit export`, or serve a model folder "
            "with `multiexit serve`, which needs torch"
        )
    providers = [name.strip() for name in options.providers.split(",") if name.strip()]
    classifier = Classifier.from_pretrained(folder, options.threads or None, providers or None)
    return ServedExport(classifier, options.policy)


def main(args: Sequence[str], load: Load = load_export) -> int:
    """Serve until the process is told to end.

    Args:
        args: of the command line.
        load: makes what is served of a folder.

    Returns:
        The exit code: 0, or 2 where there is nothing to serve.
    """
    try:
        import uvicorn

        from multiexit_runner.server.app import Service
    except ImportError as error:
        print(f"Error: {error}: pip install 'multiexit-torch[serve]'", file=sys.stderr)
        return 2
    try:
        folder, options = read(args)
        service = Service(load(Path(folder).expanduser(), options), options)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=options.log_level.upper(), format="%(message)s", stream=sys.stderr)
    print(
        f"{folder}: {len(service.served.exits)} exits, policy {service.served.policy}; "
        f"http://{options.host}:{options.port}/docs",
        file=sys.stderr,
        flush=True,
    )
    uvicorn.run(
        service.app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(options.shutdown_seconds)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    return 0
