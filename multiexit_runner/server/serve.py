"""Serving from the command line."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from multiexit_runner.folder import SETTINGS
from multiexit_runner.server.logs import Said, json_lines, log
from multiexit_runner.server.options import Options, merged, read, words
from multiexit_runner.server.served import Served, of_export

Load = Callable[[Path, Options], Served]

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers do, who would otherwise send
on one that is being closed."""


SWITCH = 0.0005
"""Seconds for which the thread of HTTP, while it is busy, keeps the network's waiting, at each
segment; Python's own are 0.005, as long as a segment takes."""


def load_export(folder: Path, options: Options) -> Served:
    """An exported folder.

    Raises:
        ValueError: what is none, or can't be served.
    """
    from multiexit_runner.classifier import Classifier

    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if not (folder / SETTINGS).exists():
        raise ValueError(
            f"{folder} is no export: write one with `multiexit export`, or serve a model folder "
            "with `multiexit serve`, which needs torch"
        )
    classifier = Classifier.from_pretrained(
        folder,
        options.threads or None,
        words(options.providers) or None,
        options.policy or None,
        options.backend or "onnxruntime",
    )
    return of_export(classifier, words(options.policies))


def main(args: Sequence[str]) -> int:
    """Serve an export, without torch, as words of a command line say.

    Returns:
        The exit code: 0, or 2 where there is nothing to serve.
    """
    try:
        folder, file, flags = read(args)
        with merged(file, flags) as options:
            run(Path(folder).expanduser(), options, load_export)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def run(folder: Path, options: Options, load: Load) -> None:
    """Serve until the process is told to end.

    Args:
        folder: what is served.
        options: of the operator.
        load: makes what is served of the folder.

    Raises:
        ValueError: what can't be served, packages that aren't there, or a port that can't be had.
    """
    server = None

    def end(*_: object) -> None:  # uvicorn has its own once it runs, and raises them once more
        if server is None or not server.started:
            os._exit(0)  # an exception could come where a module in C begins, which takes it wrong

    with ExitStack() as stack:
        for each in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, each, signal.signal(each, end))
        try:
            import uvicorn

            from multiexit_runner.server.app import Service
            from multiexit_runner.server.ending import Server
            from multiexit_runner.server.listening import listen, sockets_at
            from multiexit_runner.server.wire import LimitedHttp
        except ImportError as error:
            raise ValueError(f"{error}: pip install 'multiexit-torch[serve]'") from error
        sockets = sockets_at(options.host, options.port)
        for each in sockets:
            stack.callback(each.close)
        stack.enter_context(json_lines(options.log_level))
        service = Service(load(folder, options), options)
        listen(sockets)
        host = f"[{options.host}]" if ":" in options.host else options.host
        log.info(
            Said(
                message="serving",
                folder=str(folder),
                exits=len(service.served.exits),
                policy=service.policy,
                options=options.info(),
                **service.served.runtime,
                url=f"http://{host}:{sockets[0].getsockname()[1]}/docs",
            )
        )
        config = uvicorn.Config(
            service.app,
            ws="none",
            http=partial(LimitedHttp, seconds=options.read_seconds),  # type: ignore[arg-type]
            log_config=None,
            log_level="error" if options.log_level == "error" else "warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=options.shutdown_seconds,
        )
        server = Server(config)
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH)
        server.run(sockets)
        if not server.started:
            sys.exit(3)
