"""Timing in turns, and a table with its JSON."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from multiexit.evaluation.report import table
from multiexit.files.writing import write
from multiexit.runtime import versions


def seconds(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each call; they run in turn, so that all see the same machine.

    Each reading repeats a call for about 50 ms at least; there is one warm-up round.
    """
    counts = []
    for call in calls:
        call()
        counts.append(max(1, int(0.05 / max(_once(call, 1), 1e-6))))
    readings: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, count, kept in zip(calls, counts, readings, strict=True):
            kept.append(_once(call, count))
    return [statistics.median(kept) for kept in readings]


def _once(call: Callable[[], Any], count: int) -> float:
    _wait()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    _wait()
    return (time.perf_counter() - begin) / count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(rows: Sequence[dict[str, Any]], output: str | None, command: str) -> None:
    """Print rows as a table; with `output`, write them as JSON with machine and command."""
    cells = [
        {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows
    ]
    print(table(cells))
    if output:
        about = {
            "command": f"python {command}",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": versions(),
        }
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": about, "rows": list(rows)}, indent=1)
        write(path, lambda target: target.write_text(text))
