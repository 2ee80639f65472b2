"""The identity of a run: only the same one may go on from a checkpoint."""

import reprlib
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from multiexit.files import schema
from multiexit.training.config import TrainConfig
from multiexit.training.records import checkpoint
from multiexit_runner.user_line import user_level

FREE = {
    *("output", "resume", "force", "overwrite", "checkpoint_every", "keep_checkpoints"),
    *("trackers", "workers", "progress"),
}
"""Settings that may change between a run and its continuation."""

VERSIONS = {"multiexit", "code of multiexit", "torch", "transformers"}
"""Those on which a run's numbers depend."""

ORIGIN = {"_name_or_path", "transformers_version"}
"""Entries of a backbone's description that say where its settings came from."""


def _check_tensor(key: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise schema.wrong(key, value, "a tensor")


_COUNT = schema.whole(0, 2**62)
_ROWS = schema.listed(schema.table({}, rest=schema.anything))
_WEIGHTS = schema.table({}, rest=_check_tensor)
_STATE = schema.table(
    {
        "run": schema.table({}, rest=schema.anything),
        "position": schema.table(
            dict.fromkeys(("phase", "epoch", "batch", "step", "total", "second", "stale"), _COUNT),
            rest=schema.anything,
        ),
        "history": schema.table(
            {
                "steps": _ROWS,
                "epochs": _ROWS,
                "best": schema.optional(
                    schema.table({"phase": _COUNT, "step": _COUNT}, rest=schema.anything)
                ),
            }
        ),
        "unread": schema.listed(schema.listed(schema.anything)),
        "best": schema.optional(_WEIGHTS),
        "model": _WEIGHTS,
        "stepper": schema.table(
            dict.fromkeys(("optimizer", "omega", "tau", "scaler"), schema.anything),
            rest=schema.anything,
        ),
        "random": schema.listed(
            schema.table(dict.fromkeys(("torch", "cuda", "numpy", "python"), schema.anything)), 1
        ),
    },
    rest=schema.anything,
)


def check_state(key: str, state: Any) -> None:
    """Refuse what is no run's state; what lies deeper is looked at when it is put to use."""
    _STATE(key, state)
    phases = state["run"].get("recipe phases")
    if isinstance(phases, int):  # compared with this run's own later
        schema.whole(0, phases - 1)(f"{key}.position.phase", state["position"]["phase"])


LENGTH = {"config epochs", "config max_steps"}
"""Settings that rates and curricula follow: a longer run is another one from its first step on."""

PATIENCE = "config early_stopping"

FIXED = ("model exits", "model shapes", "model frozen", "config optimizer", "recipe phases")
"""Entries that must be the same for a checkpoint to fit, even by force."""

MOST_TOLD = 20  # differences, in one message

_TEXT = reprlib.Repr()
_TEXT.maxstring = 100


def identity(run: dict[str, Any]) -> dict[str, Any]:
    """The entries of `provenance.describe` that must be the same to go on, by name."""
    compared = {
        **{k: run[k] for k in ("recipe", "data", "backbone", "model", "processes")},
        "config": {k: v for k, v in run["config"].items() if k not in FREE},
        "versions": {k: v for k, v in run["versions"].items() if k in VERSIONS},
    }
    return {k: v for k, v in _leaves(compared, "") if k.rpartition(" ")[2] not in ORIGIN}


def saved_state(config: TrainConfig, current: dict[str, Any]) -> tuple[str, Any] | None:
    """The checkpoint to go on from and its name, if that is wanted and there is one.

    Args:
        config: with `output`, `resume` and `force`.
        current: the `identity` of this run.

    Raises:
        ValueError: it is of another run; the message names each difference.
    """
    latest = checkpoint.load(Path(str(config.output)), check_state) if config.resume else None
    if latest is None:
        return None
    saved = latest[1]["run"]
    different = {key for key in {*saved, *current} if saved.get(key) != current.get(key)}
    if PATIENCE in different and _more_patient(saved, current, latest[1]):
        different.discard(PATIENCE)
    if different := sorted(different):
        differences = ", ".join(
            f"{key} ({_recorded(saved, key, current)} there, {_recorded(current, key, saved)} here)"
            for key in different[:MOST_TOLD]
        )
        if more := different[MOST_TOLD:]:
            differences += f" and {len(more)} more"
        message = (
            f"the checkpoint in {config.output} is of another run; it differs in {differences}"
        )
        if LENGTH & {*different}:
            message += "; with another length it isn't the run that had it from the start"
        if any(key.startswith(FIXED) for key in different):
            raise ValueError(f"{message}; it can't go on as this one")
        if not config.force:
            raise ValueError(f"{message}; force=True goes on nevertheless")
        warnings.warn(f"{message}; going on by force", stacklevel=user_level())
    return latest


def _recorded(facts: dict[str, Any], key: str, other: dict[str, Any]) -> str:
    """The text of what a run says of itself under a key; of a list, what differs from another's."""
    if key not in facts:
        return "none"
    mine, theirs = facts[key], other.get(key)
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        mine = [a for a, b in zip(mine, theirs, strict=True) if a != b]
    return _TEXT.repr(mine)


def _more_patient(saved: dict[str, Any], current: dict[str, Any], state: Any) -> bool:
    """Whether more patience from the start would have led to the same place."""
    old, new = saved.get(PATIENCE), current.get(PATIENCE)
    first = state["position"]["phase"] == 0  # a phase before may have ended too early
    return first and old is not None and (new is None or new > old)


def _leaves(tree: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(name, tree)]
    return [leaf for key, item in tree.items() for leaf in _leaves(item, f"{name} {key}".strip())]
