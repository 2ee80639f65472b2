"""How much load `multiexit serve` carries with exits and without, from a client that never waits.

    multiexit export runs/sst2 sst2-onnx --policy max-prob=0.95
    python benchmarks/serving_load.py sst2-onnx dev.tsv --column sentence --output results/load.json

An open loop: requests of one text each come as a Poisson process, whether or not those before were
answered, at rates that rise until the 95th percentile is above `--target-ms`. Then a burst: the
first rate, ten times as many for some seconds, and the first again. Each policy has a service of
its own on the same export, one after the other; latency is from when a request was due to its
answer. The client runs on the same machine and takes a part of it.
"""

import argparse
import asyncio
import csv
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import report

PORT = 8123
Row = dict[str, Any]


class Connection:
    """One connection that is kept alive, with just as much HTTP as the service needs."""

    def __init__(self) -> None:
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Send a request, and read status and body."""
        if self.reader is None or self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", PORT)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(int(x[15:]) for x in lines if x.lower().startswith(b"content-length:"))
        return int(lines[0].split()[1]), await self.reader.readexactly(length)


async def offered(bodies: list[bytes], rate: float, duration: float, seed: int) -> Row:
    """Requests at this rate for so many seconds, and what became of them."""
    draw = np.random.default_rng(seed)
    due = np.cumsum(draw.exponential(1 / rate, int(rate * duration)))
    idle: list[Connection] = []
    latencies: list[float] = []
    statuses: Counter[int | str] = Counter()
    layers: list[int] = []
    start = time.perf_counter()

    async def one(when: float, body: bytes) -> None:
        connection = idle.pop() if idle else Connection()
        try:
            status, answer = await connection.ask(body)
        except (OSError, asyncio.IncompleteReadError):
            statuses["lost"] += 1
            return
        idle.append(connection)
        statuses[status] += 1
        if status == 200:
            latencies.append(time.perf_counter() - start - when)
            layers.append(json.loads(answer)["answers"][0]["layers"])

    tasks = []
    for number, when in enumerate(due.tolist()):
        if (wait := when - (time.perf_counter() - start)) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(when, bodies[number % len(bodies)])))
    await asyncio.gather(*tasks)
    seconds = time.perf_counter() - start
    p50, p95, p99 = (1000 * np.percentile(latencies, [50, 95, 99])).round(2).tolist()
    return {
        "rate": rate, "requests": len(due), "answered": statuses.pop(200, 0),
        "refused": statuses.pop(429, 0), "others": dict(statuses), "seconds": round(seconds, 2),
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
        "mean_layers": round(float(np.mean(layers)), 3),
    }  # fmt: skip


@asynccontextmanager
async def service(folder: Path, policy: str) -> AsyncIterator[None]:
    """The export served under a policy."""
    words = [sys.executable, "-m", "multiexit_runner.server", str(folder), "--policy", policy]
    words += ["--port", str(PORT), "--log-level", "warning"]
    with subprocess.Popen(words, cwd=Path(__file__).parents[1]) as process:
        try:
            for _ in range(600):
                try:
                    await Connection().ask(b'{"inputs": "warm"}')
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            yield
        finally:
            process.terminate()


async def measured(options: argparse.Namespace, bodies: list[bytes], policy: str) -> list[Row]:
    """Rising rates until the target is missed, then a burst."""
    rows: list[Row] = []
    async with service(options.folder, policy):
        await offered(bodies, options.rates[0], 3, seed=1)  # warm
        for rate in options.rates:
            rows.append({"policy": policy, "kind": "steady"})
            rows[-1] |= await offered(bodies, rate, options.seconds, seed=0)
            print(rows[-1], flush=True)
            if rows[-1]["p95_ms"] > options.target_ms:
                break
        first = options.rates[0]
        for kind, rate, seconds in (
            ("before the burst", first, options.seconds / 2),
            ("burst", 10 * first, options.seconds / 4),
            ("after the burst", first, options.seconds / 2),
        ):
            rows.append({"policy": policy, "kind": kind} | await offered(bodies, rate, seconds, 2))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an export")
    parser.add_argument("table", type=Path, help="a TSV of texts")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--policies", nargs="+", default=["max-prob=0.95", "max-prob=2"])
    parser.add_argument("--rates", nargs="+", type=float, default=[20, 40, 80, 120, 160, 240, 320])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--target-ms", type=float, default=50)
    parser.add_argument("--output")
    options = parser.parse_args()
    with open(options.table, encoding="utf-8") as lines:
        texts = [row[options.column] for row in csv.DictReader(lines, delimiter="\t")]
    bodies = [json.dumps({"inputs": text}).encode() for text in texts]
    rows = []
    for policy in options.policies:
        rows += asyncio.run(measured(options, bodies, policy))
    command = shlex.join(["benchmarks/serving_load.py", *sys.argv[1:]])
    report(rows, options.output, command, f"target {options.target_ms:g} ms")


if __name__ == "__main__":
    main()
