"""The inputs of a run, to identify and repeat it: `run.json`.

They are the command, the data, the code, the versions and the settings.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from multiexit import _version
from multiexit.backbones import adapters, kinds, same
from multiexit.data import loaders
from multiexit.data.fingerprint import fingerprint
from multiexit.evaluation import metrics
from multiexit.files import schema
from multiexit.files.json_files import read_table, write_json
from multiexit.files.names import RUN
from multiexit.losses import topology
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase, Recipe
from multiexit.runtime import versions
from multiexit.training.config import TrainConfig
from multiexit.training.phase import factors
from multiexit.training.records.identity import FREE
from multiexit.training.records.part_text import PLAIN, Place, changes_below, part_text

FUNCTIONS = FunctionType | BuiltinFunctionType
CITED = ("name", "paper", "section", "year", "summary", "phases")
"""Fields of a recipe that say where it comes from, and its phases, which are told one by one."""


def describe(
    model: MultiExitModel,
    recipe: Recipe,
    config: TrainConfig,
    data: dict[str, Any],
    processes: int,
    changing: Collection[Place] = frozenset(),
) -> dict[str, Any]:
    """A run as plain data.

    Args:
        model: before it is trained.
        recipe: the method.
        config: the run's settings.
        data: data sets by name; None where there is none.
        processes: how many train.
        changing: what in the recipe doesn't count, from `changes`.
    """
    shapes = repr([(name, tuple(p.shape)) for name, p in model.named_parameters()])
    known = _parts_of(model)
    run = {
        "recipe": {
            "name": recipe.name,
            "phases": len(recipe.phases),
            **{
                field.name: part_text(getattr(recipe, field.name), known, changing)
                for field in fields(recipe)
                if field.name not in CITED
            },
            **{
                f"phase {i}": _phase_fields(model, phase, known, changing)
                for i, phase in enumerate(recipe.phases)
            },
        },
        "config": {**vars(config), "metric": config.metric and metrics.name(config.metric)},
        "data": {
            name: _data_identity(name, rows) for name, rows in data.items() if rows is not None
        },
        "backbone": adapters.described(model.backbone),
        "model": {
            "exits": model.exits,
            "problem": model.problem,
            "head": part_text(model.head),
            "pool": model.pool,
            "labels": model.labels,
            "frozen": _frozen("backbone", model.backbone) + _frozen("heads", model.heads),
            "parts": _own_parts(model, known),
            "shapes of the parameters": hashlib.sha256(shapes.encode()).hexdigest()[:12],
        },
        "processes": processes,
        "versions": {**versions(), "code of multiexit": _code_hash()},
    }
    return json.loads(json.dumps(run, default=part_text))


def changes(
    model: MultiExitModel, recipe: Recipe, config: TrainConfig
) -> AbstractContextManager[set[Place]]:
    """What in the recipe the block changes, such as a log that a hook fills; see `part_text`."""
    described = recipe if config.output is not None else None
    return changes_below(described, _parts_of(model))


def _parts_of(model: MultiExitModel) -> list[object]:
    return [*model.modules(), *model.parameters(), *model.buffers()]


def record(folder: Path, run: dict[str, Any], resumed: str | None = None) -> None:
    """Write `run.json`; a resumed run appends how it went on.

    Args:
        folder: the run's.
        run: what `describe` gave.
        resumed: the checkpoint from which it goes on.

    Raises:
        ValueError: the `run.json` to keep is damaged.
    """
    path = folder / RUN
    now = {
        "command": shlex.join(sys.orig_argv),
        "arguments": sys.argv[1:],
        "folder": str(Path.cwd()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_commit(),
        **run,
    }
    if resumed is not None and path.exists():
        try:
            facts = _read_run(path)
            facts.setdefault("resumed", []).append({"from": resumed, **now})
        except ValueError as error:
            raise ValueError(f"{error}; move {path.name} away to go on") from error
        now = facts
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def finish(folder: Path, checkpoint: str) -> None:
    """Note in `run.json` that the run is done, model and all, behind its last checkpoint."""
    facts = _read_run(folder / RUN)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / RUN, {**facts, "finished": {"checkpoint": checkpoint, "at": now}})


def finished(folder: Path, checkpoint: str) -> bool:
    """Whether `finish` was noted behind this checkpoint."""
    try:
        noted = _read_run(folder / RUN).get("finished")
    except (OSError, ValueError):
        return False
    return isinstance(noted, dict) and noted.get("checkpoint") == checkpoint


def settings(folder: Path) -> dict[str, Any]:
    """The recipe's name, how long it trained, and what else counts and is no default, of a run.

    Args:
        folder: the run's.

    Returns:
        Them by name; nothing of a folder without a record.

    Raises:
        ValueError: the record is damaged.
    """
    if not (folder / RUN).is_file():
        return {}
    run, plain = _read_run(folder / RUN), TrainConfig()
    recipe, config = (run.get(part) for part in ("recipe", "config"))
    name = {"recipe": recipe.get("name")} if isinstance(recipe, dict) else {}
    defaults = {k: v for k, v in json.loads(json.dumps(vars(plain))).items() if k not in FREE}
    given = config if isinstance(config, dict) else {}
    length = "epochs" if given.get("max_steps") is None else "max_steps"  # which one counts
    other = {k: v for k, v in given.items() if k in defaults and v != defaults[k]}
    other.pop("epochs", None)
    return name | {k: v for k, v in given.items() if k == length} | other


def _read_run(path: Path) -> dict[str, Any]:
    return read_table(path, "record of a run", _RUN, finite=False)


_RUN = schema.table({}, {"resumed": schema.listed(schema.anything)}, rest=schema.anything)


def _phase_fields(
    model: MultiExitModel, phase: Phase, known: Collection[object], changing: Collection[Place]
) -> dict[str, Any]:
    """Every field of a phase; what depends on the number of exits as the matrices it makes too."""
    teaches_MM = topology.resolve(phase.topology, model.num_exits)
    turns = factors(phase, teaches_MM, 0.5, model.cost().shares_M)
    return {
        **{
            field.name: part_text(getattr(phase, field.name), known, changing)
            for field in fields(phase)
        },
        "topology": teaches_MM.tolist(),
        "coefficients": [A_MM.tolist() for A_MM in turns],
        "rules": [part_text(rule, known, changing) for rule in phase.turns],
    }


def _own_parts(model: MultiExitModel, known: Collection[object]) -> dict[str, str]:
    """The modules that nothing else describes, by name: each with its class and settings."""
    described = kinds.describable(adapters.described(model.backbone))
    own = [] if described else [("backbone", model.backbone)]
    own += [] if isinstance(model.head, str) else [("heads", model.heads)]
    return {
        name: f"{type(module).__qualname__}({', '.join(_settings(module, known))})"
        for prefix, part in own
        for name, module in part.named_modules(prefix=prefix, remove_duplicate=False)
    }


def _frozen(name: str, module: nn.Module) -> list[str]:
    """The largest parts of a module of which nothing learns, and parameters that don't."""
    learns = [p.requires_grad for p in module.parameters()]
    if all(learns):
        return []
    if not any(learns):
        return [name]
    own = module.named_parameters(name, recurse=False)
    parts = [(f"{name}.{child}", part) for child, part in module.named_children()]
    inside = [full for inner, part in parts for full in _frozen(inner, part)]
    return [full for full, p in own if not p.requires_grad] + inside


def _settings(module: nn.Module, known: Collection[object]) -> list[str]:
    """A module's plain settings and functions; what has an underscore is its own affair."""
    return [
        f"{name}={part_text(value, known) if callable(value) else repr(value)}"
        for name, value in sorted(same.settings(module).items())
        if not name.startswith("_") and (_is_plain(value) or isinstance(value, FUNCTIONS))
    ]


def _is_plain(value: Any) -> bool:
    """Whether a value is one that says all of itself, a number or words or several."""
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


@cache
def _code_hash() -> str:
    """A hash of the package's own source, which changes more often than its version does."""
    folder = Path(_version.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _data_identity(name: str, data: Any) -> dict[str, Any]:
    rows: Any = data.dataset if isinstance(data, DataLoader) else data
    count = len(rows) if hasattr(rows, "__len__") else None
    order = loaders.identity(data) if isinstance(data, DataLoader) and name != "dev" else {}
    return {"rows": count, "hash": fingerprint(rows), **order}


def _git_commit() -> dict[str, Any] | None:
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
