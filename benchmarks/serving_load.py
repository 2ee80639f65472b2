"""How much load a service carries with exits and without, from a client that never waits.

    multiexit calibrate runs/sst2 --table
    multiexit export runs/sst2 sst2-onnx --policy max-prob=0.85
    python benchmarks/serving_load.py sst2-onnx dev.tsv --output results/serving_load.json

An open loop: requests of one text each come as a Poisson process, whether or not those before were
answered, and one in 64 asks for the whole network. Latency is from when a request was due to its
answer. The client runs on the same machine and takes a part of it. *way*:

- **without exits**: the same service, where no row leaves early;
- **fixed exit**: all rows but the hard ones leave at `--fixed-exit`;
- **hardest row**: what waits is run as one batch, whose rows leave by the policy and are answered
  when the last one has left;
- **exits**: the service, under each of `--policies`;
- **turned**: the service under `--target-ms`.

All ways run in turns, `--repeats` times; figures are medians. *steady*: rates rise until the 95th
percentile is above twice the target, or a third is refused; on the side are clients that send
garbage and others that hang. *burst*: `--base` requests a second, ten times as many, and `--base`
again. *ended*: the process is told to end in the middle; *away* are requests that found no service
any more. *at the target*: the rate at which the 95th percentile first meets the target, between the
two measured ones, and how many times that of the service without exits.
"""

import argparse
import asyncio
import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import report

PORT, HARD, IDLE = 8123, 64, 2.0
NEVER = "max-prob=1.01"
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
    b'POST /predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"inputs"',
)
Row = dict[str, Any]


class Connection:
    """One connection that is kept alive, with just as much HTTP as the service needs."""

    def __init__(self) -> None:
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.used = 0.0

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Send a request, and read status and body.

        A connection that was idle for long may be closed just now: another one is opened.
        """
        stale = time.perf_counter() - self.used > IDLE
        self.used = time.perf_counter()
        if self.reader is None or self.writer is None or stale:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", PORT)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(int(x[15:]) for x in lines if x.lower().startswith(b"content-length:"))
        return int(lines[0].split()[1]), await self.reader.readexactly(length)


async def offered(
    bodies: list[bytes], parts: list[tuple[float, float]], seed: int = 0
) -> list[Row]:
    """Requests at rates for so many seconds each, part after part, and what became of them."""
    draw, start, due, begin = np.random.default_rng(seed), time.perf_counter(), [], 0.0
    for part, (rate, seconds) in enumerate(parts):
        times = begin + np.cumsum(draw.exponential(1 / rate, int(rate * seconds)))
        due += [(when, part) for when in times.tolist()]
        begin += seconds
    idle: list[Connection] = []
    latencies: list[list[float]] = [[] for _ in parts]
    statuses: list[Counter[int | str]] = [Counter() for _ in parts]
    layers: list[list[int]] = [[] for _ in parts]

    async def one(when: float, part: int, body: bytes) -> None:
        connection = idle.pop() if idle else Connection()
        try:
            status, answer = await connection.ask(body)
        except ConnectionRefusedError:
            statuses[part]["away"] += 1
            return
        except (OSError, asyncio.IncompleteReadError):
            statuses[part]["away" if await gone() else "lost"] += 1
            return
        idle.append(connection)
        statuses[part][status] += 1
        if status == 200:
            latencies[part].append(time.perf_counter() - start - when)
            layers[part].append(json.loads(answer)["answers"][0]["layers"])

    tasks = []
    for number, (when, part) in enumerate(due):
        if (wait := when - (time.perf_counter() - start)) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(when, part, bodies[number % len(bodies)])))
    await asyncio.gather(*tasks)
    return [
        {"rate": rate} | found(statuses[part], latencies[part], layers[part])
        for part, (rate, _) in enumerate(parts)
    ]


def found(statuses: Counter[int | str], latencies: list[float], layers: list[int]) -> Row:
    """The columns of a table, of one part."""
    p50, p95, p99 = (1000 * np.percentile(latencies or [np.nan], [50, 95, 99])).round(1).tolist()
    others = {str(k): v for k, v in statuses.items() if k not in (200, 429, 503, "away")}
    return {
        "answered": statuses[200], "refused": statuses[429] + statuses[503],
        "away": statuses["away"], "lost": sum(others.values()), "p50 (ms)": p50,
        "p95 (ms)": p95, "p99 (ms)": p99,
        "mean layers": round(float(np.mean(layers or [np.nan])), 2),
    }  # fmt: skip


async def gone() -> bool:
    """Whether nobody listens any more."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", PORT)
    except OSError:
        return True
    writer.close()
    return False


@asynccontextmanager
async def bad_clients(count: int = 4) -> AsyncIterator[None]:
    """Clients that send what is no request, and others that never end one."""

    async def send(data: bytes, seconds: float) -> None:
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", PORT)
                writer.write(data)
                await asyncio.sleep(seconds)
                writer.close()

    tasks = [asyncio.create_task(send(GARBAGE[n % 2], 0.2 + n % 2)) for n in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def service(words: list[str]) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A service as a process of its own, warm."""
    with subprocess.Popen([sys.executable, *words], cwd=Path(__file__).parents[1]) as process:
        try:
            for _ in range(600):
                with suppress(OSError):
                    await Connection().ask(b'{"inputs": "warm"}')
                    break
                await asyncio.sleep(0.1)
            yield process
        finally:
            process.terminate()


def words_of(options: argparse.Namespace, way: str) -> list[str]:
    """What starts a service."""
    kind, _, policy = way.partition(", ")
    port, threads = str(PORT), str(options.threads)
    if kind == "hardest row":
        script = str(Path(__file__).with_name("serving_hardest.py"))
        return [script, str(options.folder), policy, port, threads]
    words = ["-m", "multiexit_runner.server", str(options.folder), "--port", port]
    words += ["--threads", threads, "--log-level", "error"]
    if kind == "turned":
        target = ["--target-ms", str(options.target_ms), "--max-loss", str(options.max_loss)]
        return [*words, *target]
    return [*words, "--policy", policy or NEVER]


def medians(runs: list[Row]) -> list[Row]:
    """One row for each way, kind and rate: of what was measured the medians over the repeats."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in runs:
        found.setdefault((row["way"], row["kind"], row["rate"]), []).append(row)
    most = max(map(len, found.values()))
    names = ("way", "kind", "rate")
    return [
        dict(zip(names, key, strict=True))
        | {name: median(row[name] for row in rows) for name in rows[0] if name not in names}
        for key, rows in found.items()
        if len(rows) > most / 2  # a rate that most repeats came to
    ]


def at_the_target(rows: list[Row], target: float) -> list[Row]:
    """The rate at which p95 meets the target, by way, and its ratio to the first way's."""
    found, plain = [], 0.0
    for way in dict.fromkeys(row["way"] for row in rows):
        steady = [row for row in rows if (row["way"], row["kind"]) == (way, "steady")]
        p95, rate = ([row[name] for row in steady] for name in ("p95 (ms)", "rate"))
        met = max(p95) >= target
        load = float(np.interp(target, np.maximum.accumulate(p95), rate)) if met else rate[-1]
        plain = plain or load
        row = {"way": way, "kind": "at the target" if met else "below the target"}
        found.append(row | {"rate": round(load, 1), "times": round(load / plain, 2)})
    return found


async def measured(options: argparse.Namespace, texts: list[str], way: str) -> list[Row]:
    """Rising rates until the target is missed, a burst, and an end in the middle."""
    served = words_of(options, way)
    easy: Row = {"max_exit": options.fixed_exit} if way == "fixed exit" else {}
    hard: Row = {} if way.startswith("hardest row") else {"policy": NEVER}
    bodies = [
        json.dumps({"inputs": text} | (easy if number % HARD else hard)).encode()
        for number, text in enumerate(texts)
    ]
    rows: list[Row] = []

    def note(kind: str, row: Row) -> None:
        rows.append({"way": way, "kind": kind} | row)
        print(rows[-1], flush=True)

    async with service(served):
        await offered(bodies, [(options.rates[0], 3)], seed=1)  # warm
        async with bad_clients():
            for rate in options.rates:
                (row,) = await offered(bodies, [(rate, options.seconds)])
                note("steady", row)
                late = row["p95 (ms)"] > 2 * options.target_ms
                if late or row["refused"] > 0.5 * row["answered"]:
                    break
        base, long = options.base, options.seconds
        parts = [(base, long / 2), (10 * base, long / 2), (base, long)]
        burst = await offered(bodies, parts, seed=2)
        for kind, row in zip(("before the burst", "burst", "after the burst"), burst, strict=True):
            note(kind, row)
    async with service(served) as process:
        asyncio.get_running_loop().call_later(2, process.send_signal, signal.SIGTERM)
        (row,) = await offered(bodies, [(base, 4)], seed=3)
        note("ended", row)
    return rows


def draw(rows: list[Row], target: float, picture: Path) -> None:
    """The 95th percentile against the rate, by way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(row["way"] for row in rows):
        steady = [row for row in rows if (row["way"], row["kind"]) == (way, "steady")]
        axes.plot(*([row[x] for row in steady] for x in ("rate", "p95 (ms)")), "o-", label=way)
    axes.axhline(target, color="grey", linestyle=":")
    axes.set(xlabel="requests a second", ylabel="95th percentile (ms)", ylim=(0, 2 * target))
    axes.legend()
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="an export by max-prob")
    parser.add_argument("table", type=Path, help="a TSV of texts")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--policies", nargs="+", default=["max-prob=0.85", "max-prob=0.8"])
    parser.add_argument("--fixed-exit", type=int, default=2)
    parser.add_argument("--rates", nargs="+", type=float, default=[20, 40, 80, 120, 160, 240, 320])
    parser.add_argument("--base", type=float, default=60, help="requests a second around a burst")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--target-ms", type=float, default=50)
    parser.add_argument("--max-loss", type=float, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="of all ways, in turns")
    parser.add_argument("--output")
    parser.add_argument("--picture", type=Path, help="a PNG of the curves")
    options = parser.parse_args()
    with open(options.table, encoding="utf-8") as lines:
        texts = [row[options.column] for row in csv.DictReader(lines, delimiter="\t")]
    exits = [f"exits, {policy}" for policy in options.policies]
    plain = ["without exits", "fixed exit", f"hardest row, {options.policies[0]}"]
    runs: list[Row] = []
    for _ in range(options.repeats):
        for way in [*plain, *exits, "turned"]:
            runs += asyncio.run(measured(options, texts, way))
    rows = medians(runs)
    if options.picture:
        draw(rows, options.target_ms, options.picture)
    rows += at_the_target(rows, options.target_ms)
    command = shlex.join(["benchmarks/serving_load.py", *sys.argv[1:]])
    report(rows, options.output, command, f"target {options.target_ms:g} ms")


if __name__ == "__main__":
    main()
