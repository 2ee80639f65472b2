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
any more. *a second*: the answered ones over the seconds up to the last answer. *in time*: percent
of all that were offered, so that what is refused is a miss. *expected score*: of the export's
calibration table; of a policy that of the nearest setting, of a turned one the mean over answers.
*at the target*: the rate at which 95 % of all offered are still in time, between two measured ones,
and how many times that of the service without exits.
"""

import argparse
import asyncio
import csv
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import report
from serving_client import PORT, Connection, Part, Row, bad_clients, offered

HARD = 64
IN_TIME = 95.0
"""Percent of all offered that are to be answered within the target."""
NEVER = "max-prob=1.01"


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


def at_the_target(rows: list[Row]) -> list[Row]:
    """The rate at which so many are in time, by way, and its ratio to the first way's."""
    found, plain = [], 0.0
    for way in dict.fromkeys(row["way"] for row in rows):
        steady = [row for row in rows if (row["way"], row["kind"]) == (way, "steady")]
        steady.sort(key=lambda row: row["rate"])
        late = np.maximum.accumulate([0.0, *(100 - row["in time (%)"] for row in steady)])
        rate = [0.0, *(row["rate"] for row in steady)]
        met = late[-1] >= 100 - IN_TIME
        load = float(np.interp(100 - IN_TIME, late, rate)) if met else rate[-1]
        plain = plain or load
        row = {"way": way, "kind": "at the target" if met else "below the target"}
        found.append(row | {"rate": round(load, 1), "times": round(load / plain, 2)})
    return found


def expected(folder: Path, way: str) -> Row:
    """The score of the calibration table's setting that is nearest to a way's policy."""
    table = json.loads((folder / "export.json").read_text(encoding="utf-8"))["calibration"]
    if table is None or way in ("fixed exit", "turned"):
        return {}
    threshold = float((way if "=" in way else NEVER).partition("=")[2])
    nearest = min(table["settings"], key=lambda row: abs(row["policy"]["threshold"] - threshold))
    return {"expected score": round(nearest["score"], 4)}


async def measured(
    options: argparse.Namespace, texts: list[str], way: str
) -> tuple[list[Row], list[Part]]:
    """Rising rates until the target is missed, a burst, and an end in the middle.

    Returns:
        The rows, and the parts of the burst.
    """
    served, score = words_of(options, way), expected(options.folder, way)
    easy: Row = {"max_exit": options.fixed_exit} if way == "fixed exit" else {}
    bodies = [
        json.dumps({"inputs": text} | (easy if number % HARD else {"policy": NEVER})).encode()
        for number, text in enumerate(texts)
    ]
    rows: list[Row] = []

    def note(kind: str, part: Part) -> Row:
        rows.append({"way": way, "kind": kind} | part.row(options.target_ms / 1000) | score)
        print(rows[-1], flush=True)
        return rows[-1]

    async with service(served):
        await offered(bodies, [(options.rates[0], 3)], seed=1)  # warm
        async with bad_clients():
            for rate in options.rates:
                (part,) = await offered(bodies, [(rate, options.seconds)])
                row = note("steady", part)
                late = row["p95 (ms)"] > 2 * options.target_ms
                if late or row["refused"] > 0.5 * row["answered"]:
                    break
        base, long = options.base, options.seconds
        rates = [(base, long / 2), (10 * base, long / 2), (base, long)]
        burst = await offered(bodies, rates, seed=2)
        for kind, part in zip(("before the burst", "burst", "after the burst"), burst, strict=True):
            note(kind, part)
    async with service(served) as process:
        asyncio.get_running_loop().call_later(2, process.send_signal, signal.SIGTERM)
        (part,) = await offered(bodies, [(base, 4)], seed=3)
        note("ended", part)
    return rows, burst


def draw(rows: list[Row], bursts: dict[str, list[Part]], target: float, picture: Path) -> None:
    """The 95th percentile, by way: against the rate, and by tenths of a second around a burst."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 8), layout="constrained")
    axes, course = figure.subplots(2)
    for parts in bursts.values():  # in the order, and so the colours, of the ways above
        ms: dict[int, list[float]] = {}
        for when, latency, _ in (each for part in parts for each in part.answered):
            ms.setdefault(int(10 * when), []).append(1000 * latency)
        course.plot(*zip(*((t / 10, np.percentile(ms[t], 95)) for t in sorted(ms)), strict=True))
    course.axhline(target, color="grey", linestyle=":")
    course.set(xlabel="due (s)", ylabel="95th percentile (ms)", yscale="log")
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
    bursts: dict[str, list[Part]] = {}
    for _ in range(options.repeats):
        for way in [*plain, *exits, "turned"]:
            rows, parts = asyncio.run(measured(options, texts, way))
            runs += rows
            bursts.setdefault(way, []).extend(parts)
    rows = medians(runs)
    if options.picture:
        draw(rows, bursts, options.target_ms, options.picture)
    rows += at_the_target(rows)
    command = shlex.join(["benchmarks/serving_load.py", *sys.argv[1:]])
    report(rows, options.output, command, f"target {options.target_ms:g} ms")


if __name__ == "__main__":
    main()
