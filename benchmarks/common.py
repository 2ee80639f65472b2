"""Timing in turns, and a table with its JSON."""

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from multiexit.evaluation.report import table
from multiexit.files.writing import write
from multiexit.runtime import versions
from multiexit.serving.timing import median_seconds


def seconds(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each call; they run in turn, so that all see the same machine.

    Each reading repeats a call for about 50 ms at least.
    """
    return median_seconds(calls, repeats, least=0.05)


def report(
    rows: Sequence[dict[str, Any]], output: str | None, command: str, note: str = ""
) -> None:
    """Print rows as a table; with `output`, write them as JSON with machine, command and a note."""
    cells = [
        {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows
    ]
    print(table(cells))
    if output:
        save(rows, output, command, note)


def saved(output: str) -> list[dict[str, Any]]:
    """The rows in a file of `save`; none where it isn't there yet."""
    path = Path(output)
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def save(rows: Sequence[dict[str, Any]], output: str, command: str, note: str = "") -> None:
    """Write rows as JSON with machine, command and a note."""
    known = about(command) | ({"note": note} if note else {})
    write_json(Path(output), {"about": known, "rows": list(rows)})


def about(command: str) -> dict[str, Any]:
    """The command, the machine and the versions that figures depend on."""
    return {
        "command": f"python {command}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1)
    write(path, lambda target: target.write_text(text))
