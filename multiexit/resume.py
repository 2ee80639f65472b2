"""Which run a checkpoint belongs to: only the same one may go on from it."""

import hashlib
import reprlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multiexit import checkpoint, phases, topology
from multiexit.config import TrainConfig
from multiexit.model import MultiExitModel
from multiexit.recipes import Recipe

FREE = {"output", "resume", "checkpoint_every", "trackers", "workers", "progress"}
"""Settings that may change between a run and its continuation."""


def describe(
    model: MultiExitModel, recipe: Recipe, config: TrainConfig, rows: list[int], processes: int
) -> dict[str, Any]:
    """What must be the same for a run to go on, as plain data."""
    shares_M = model.cost().shares_M
    shapes = repr([(name, tuple(p.shape)) for name, p in model.named_parameters()])
    described: dict[str, Any] = {
        "recipe": recipe.name,
        "shapes of the parameters": hashlib.sha256(shapes.encode()).hexdigest()[:12],
        "rows of each phase": rows,
        "processes": processes,
        "exits": list(model.exits),
        **{k: v for k, v in asdict(config).items() if k not in FREE},
    }
    for index, phase in enumerate(recipe.phases):
        teaches_MM = topology.resolve(phase.topology, model.num_exits)
        turns = phases.factors(phase, teaches_MM, 0.5, shares_M)
        rest = (phase.train, phase.extra, phase.branch, phase.surgery, phase.before_step)
        described |= {
            f"learner of phase {index}": repr(phase.learner),
            f"temperature of phase {index}": repr(phase.temperature),
            f"topology of phase {index}": teaches_MM.tolist(),
            f"coefficients of phase {index}": [A_MM.tolist() for A_MM in turns],
            f"rest of phase {index}": [phase.divergence, phase.epochs, phase.lr, *map(_name, rest)],
        }
    return described


def _name(part: Any) -> str:
    """A function by its name, anything else as it is written."""
    return getattr(part, "__qualname__", None) or repr(part)


def saved_state(config: TrainConfig, run: dict[str, Any]) -> Any | None:
    """The checkpoint to go on from, if that is wanted and there is one.

    Raises:
        ValueError: it is of another run; the message names each difference.
    """
    if not config.resume:
        return None
    state = checkpoint.load(Path(str(config.output)))
    if state is None:
        return None
    there = state["run"]
    different = sorted(key for key in run if run[key] != there.get(key))
    if different:
        raise ValueError(
            f"the checkpoint in {config.output} is of another run; it differs in "
            + ", ".join(
                f"{k} ({reprlib.repr(there.get(k))} there, {reprlib.repr(run[k])} here)"
                for k in different
            )
        )
    return state
