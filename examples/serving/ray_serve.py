"""Serve a model, run or export on many machines by Ray Serve: the app of `multiexit serve`.

    python examples/serving/ray_serve.py runs/reviews --min-replicas 2 --max-replicas 8

It needs `pip install 'multiexit-torch[serve]' 'ray[serve]'`. Each replica is a process with the
network and a queue of its own. Ray spreads requests over them, and starts and ends replicas by the
work that waits. On a cluster (`ray start`) the folder has the same path on each machine.
"""

import argparse
import signal
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingContext

from multiexit.serving import service
from multiexit_runner.server.options import Options, merged


@serve.ingress()
class MultiExit:
    """The app of `multiexit serve`, with what Ray asks of a replica."""

    def __init__(self, folder: str, options: Options):
        self.service = service(folder, options)

    def __serve_build_asgi_app__(self) -> Any:
        return Unnamed(self.service.app)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The seconds of work in the queue: a row that leaves early is little of it."""
        return {"seconds": self.service.scheduler.backlog}


class Unnamed:
    """An app without the id in its responses: Ray puts the same one there."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                message["headers"] = [each for each in headers if each[0] != b"x-request-id"]
            await send(message)

        await self.app(scope, receive, sent)


class ByWork:
    """As many replicas as share the work that waits, so many seconds of it each."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        waiting = (context.aggregated_metrics or {}).get("seconds", {})
        return sum(waiting.values()) / self.seconds, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a model, run or export")
    parser.add_argument("--config", type=Path, help="options of `multiexit serve`, in TOML")
    parser.add_argument("--min-replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.1, help="of work that waits at each")
    parser.add_argument("--cpus", type=float, default=1, help="of each")
    parser.add_argument("--gpus", type=float, default=0, help="of each")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"no such folder: {args.folder}")
    if not 0 < args.min_replicas <= args.max_replicas or not args.seconds > 0:
        parser.error("1 ≤ --min-replicas ≤ --max-replicas, and --seconds above 0")
    try:
        with merged(args.config, {}) as options:
            deployment = serve.deployment(
                max_ongoing_requests=options.max_rows,  # they wait in replicas, which batch them
                graceful_shutdown_timeout_s=options.shutdown_seconds,
                ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
                autoscaling_config={
                    "min_replicas": args.min_replicas,
                    "max_replicas": args.max_replicas,
                    "policy": {
                        "policy_function": ByWork,
                        "policy_kwargs": {"seconds": args.seconds},
                    },
                },
            )(MultiExit)
    except ValueError as error:
        parser.error(str(error))

    serve.start(http_options={"host": options.host, "port": options.port})
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; Ray has set its own
    try:
        serve.run(deployment.bind(str(args.folder.absolute()), options), blocking=True)
    except KeyboardInterrupt:
        serve.delete("default")  # requests on their way are answered


if __name__ == "__main__":
    main()
