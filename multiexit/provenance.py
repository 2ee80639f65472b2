"""What a run was made from, so that it can be told from others, and repeated: `run.json`."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from multiexit import phases, topology
from multiexit.config import TrainConfig
from multiexit.data.fingerprint import fingerprint
from multiexit.model import MultiExitModel
from multiexit.recipes import Phase, Recipe
from multiexit.saving import write

NAME = "run.json"


def describe(
    model: MultiExitModel,
    recipe: Recipe,
    config: TrainConfig,
    data: dict[str, Any],
    processes: int,
) -> dict[str, Any]:
    """A run as plain data.

    Args:
        model, recipe, config: as elsewhere.
        data: data sets by name; None where there is none.
        processes: how many train.
    """
    shapes = repr([(name, tuple(p.shape)) for name, p in model.named_parameters()])
    described = {
        "recipe": {
            "name": recipe.name,
            "phases": len(recipe.phases),
            **{f"phase {i}": _phase(model, phase) for i, phase in enumerate(recipe.phases)},
        },
        "config": asdict(config),
        "data": {name: _data(some) for name, some in data.items() if some is not None},
        "backbone": model.backbone.spec,
        "model": {
            "exits": model.exits,
            "shapes of the parameters": hashlib.sha256(shapes.encode()).hexdigest()[:12],
        },
        "processes": processes,
        "versions": versions(),
    }
    return json.loads(json.dumps(described, default=str))


def versions() -> dict[str, Any]:
    """Of what a result depends on: python, libraries, the number of CPUs and the device."""
    from multiexit import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "multiexit": __version__,
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


def record(folder: Path, run: dict[str, Any], resumed: str | None = None) -> None:
    """Write `run.json`; a run that goes on keeps it, and adds how it went on.

    Args:
        folder: the run's.
        run: what `describe` gave.
        resumed: the checkpoint from which it goes on.
    """
    path = folder / NAME
    now = {
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        **run,
    }
    if resumed is not None and path.exists():
        facts = json.loads(path.read_text())
        facts.setdefault("resumed", []).append({"from": resumed, **now})
        now = facts
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(now, indent=1)
    write(path, lambda target: target.write_text(text))


def _phase(model: MultiExitModel, phase: Phase) -> dict[str, Any]:
    teaches_MM = topology.resolve(phase.topology, model.num_exits)
    turns = phases.factors(phase, teaches_MM, 0.5, model.cost().shares_M)
    rest = (phase.train, phase.extra, phase.branch, phase.surgery, phase.before_step)
    return {
        "learner": repr(phase.learner),
        "temperature": repr(phase.temperature),
        "topology": teaches_MM.tolist(),
        "coefficients": [A_MM.tolist() for A_MM in turns],
        "rest": [phase.divergence, phase.epochs, phase.lr, *map(_name, rest)],
    }


def _name(part: Any) -> str:
    """A function by its name, anything else as it is written."""
    return getattr(part, "__qualname__", None) or repr(part)


def _data(data: Any) -> dict[str, Any]:
    rows: Any = data.dataset if isinstance(data, DataLoader) else data
    return {"rows": len(rows) if hasattr(rows, "__len__") else None, "hash": fingerprint(rows)}


def _git() -> dict[str, Any] | None:
    """The commit of the repository around the working directory, and whether files differ."""
    try:
        commit, changed = (
            subprocess.run(
                ["git", *words], capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}
