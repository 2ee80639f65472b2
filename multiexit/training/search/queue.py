"""Search for the best setting: trials in a database that any number of processes share, on Optuna.

The budget is a queue. Every trial has a slot; a slot whose trial was cut off goes back into the
queue, so the same command started again, or on another machine, goes on.
"""

import json
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multiexit.arguments import check_whole, unknown
from multiexit.files.paths import user_path
from multiexit.training.search import database
from multiexit.training.search.space import Choices, Range, Setting, Space, grid

Judge = Callable[[Setting, int], float]
"""`(setting, fold) -> score`; higher is better."""

SAMPLERS = ("tpe", "random", "grid")
TRIALS = 20
STATES = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "done", "PRUNED": "failed"}


@dataclass(frozen=True)
class Trial:
    """One setting that is, was or will be tried.

    Args:
        setting: its values by name, as far as they are drawn.
        state: `"waiting"`, `"running"`, `"done"` or `"failed"`.
        folds: the scores of the folds so far.
        score: their mean, once all are there.
        seconds: from start to end.
        error: why it failed.
    """

    setting: Setting
    state: str
    folds: tuple[float, ...] = ()
    score: float | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Tuning:
    """A search, as far as it is.

    Args:
        trials: by slot.

    Example:
        >>> done = [Trial({"lr": lr}, "done", score=score) for lr, score in ((1, 0.7), (2, 0.8))]
        >>> Tuning((*done, Trial({"lr": 3}, "running"))).best.setting
        {'lr': 2}
    """

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The trial with the highest score, the earliest of equal ones; None before any is done."""
        done = [trial for trial in self.trials if trial.score is not None]
        return max(done, key=lambda trial: trial.score or 0.0) if done else None


def tune(
    judge: Judge,
    space: Space,
    output: str | Path,
    folds: int = 1,
    trials: int | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    storage: str | None = None,
    about: Mapping[str, Any] | None = None,
    watch: Callable[[Tuning], None] | None = None,
) -> Tuning:
    """Find the setting whose mean score over the folds is highest.

    What is done stays in the database: the same call goes on where the last one was stopped, and
    calls on many machines that name the same storage and folder share the trials. A trial that
    runs into NaN or out of memory counts as failed and the search goes on; any other error ends
    the call, and its trial is tried again by the next.

    Args:
        judge: trains with a setting and scores it on fold 0..folds-1.
        space: what may be chosen, by name.
        output: a folder; its name is the study's.
        folds: how many scores a trial has.
        trials: how many in all, over all processes and calls; None is all of a grid, otherwise 20.
        sampler: `"tpe"` (Bergstra et al. 2011), `"random"`, or `"grid"`: every combination, in an
            order drawn from the seed.
        seed: of the draws; slot by slot, so that a search that was stopped draws the same.
        storage: SQLAlchemy's address of a database; None is SQLite in `output`.
        about: plain data that must be the same for a search to go on.
        watch: called after each trial that ended here.

    Returns:
        All trials, of all processes and calls.

    Raises:
        ValueError: Optuna is missing, a database that can't be opened or holds something else, an
            unknown sampler, nothing to search, a grid over a range, or folds or trials that are no
            whole number from 1.
        OSError: the database can't be written any more, as on a full disk.

    Example:
        >>> import tempfile, multiexit as mx
        >>> space = {"lr": mx.Choices((0.1, 0.2))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tuning = mx.tune(lambda chosen, fold: -chosen["lr"], space, folder, sampler="grid")
        >>> tuning.best.setting
        {'lr': 0.1}
    """
    optuna = _import_optuna()
    slots = _slots(space, sampler, trials, seed)
    check_whole("folds", folds)
    output = user_path(output)
    url = database.sqlite_address(output / "study.db") if storage is None else storage
    database.check_file(url)
    if storage is None:
        output.mkdir(parents=True, exist_ok=True)
    study = database.open_study(url, output.resolve().name)
    search = {"space": repr(dict(space)), "folds": folds, "sampler": sampler, "seed": seed}
    _check_same_search(study, {**search, **(about or {})})
    output.mkdir(parents=True, exist_ok=True)

    def objective(trial: Any) -> float:
        slot = trial.user_attrs.get("slot")
        if slot is None or any(t.number < trial.number for t in _live_trials(study, slot)):
            raise _Surplus
        # Optuna's own first sign of life comes from a thread: a process that dies before it would
        # leave a trial that counts as running for ever.
        study._storage.record_heartbeat(trial._trial_id)
        study.sampler = _sampler(sampler, seed, slot)
        setting = {name: _drawn_value(trial, name, values) for name, values in space.items()}
        scores = list(trial.user_attrs["folds"])
        try:
            for fold in range(len(scores), folds):
                scores.append(float(judge(dict(setting), fold)))
                if not math.isfinite(scores[-1]):
                    raise FloatingPointError(f"the score of fold {fold} is {scores[-1]}")
                trial.set_user_attr("folds", scores)
        except (FloatingPointError, torch.OutOfMemoryError) as error:
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error
        return statistics.fmean(scores)

    while True:
        try:
            _fill_queue(study, slots)
            states = {trial.state for trial in _tuning(study).trials}
            if "waiting" in states:
                study.optimize(objective, n_trials=1, catch=(_Surplus,))
                if watch is not None:
                    watch(_tuning(study))
            elif "running" in states:  # elsewhere; or it was cut off, and soon waits again
                time.sleep(database.HEARTBEAT)
            else:
                return _tuning(study)
        except database.storage_errors() as error:
            raise OSError(f"the database of the search: {database.reason_of(error)}") from error


class _Surplus(Exception):
    """A trial too many: two processes filled or emptied the queue at once."""


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError("tuning needs Optuna: pip install 'multiexit-torch[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _slots(space: Space, sampler: str, trials: int | None, seed: int) -> list[Setting]:
    """The part of each trial that is fixed: all of it for a grid, nothing for a sampler."""
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    if not space:
        raise ValueError("nothing to search: the space is empty")
    if trials is not None:
        check_whole("trials", trials)
    if sampler != "grid":
        return [{} for _ in range(trials or TRIALS)]
    every = grid(space)
    random.Random(seed).shuffle(every)  # so that a part of the grid is spread over all of it
    return every[:trials]


def _check_same_search(study: Any, search: dict[str, Any]) -> None:
    current = json.loads(json.dumps(search))
    stored = study.user_attrs.get("search")
    in_use = study.user_attrs or study.get_trials(deepcopy=False)
    foreign = [d.name for d in study.directions] != ["MAXIMIZE"] or (stored is None and in_use)
    if foreign or not isinstance(stored, dict | None):
        raise ValueError(
            f"the study {study.study_name!r} is of another program: take another output folder or "
            "storage"
        )
    if stored is None:
        study.set_user_attr("search", current)
        return
    differing = [key for key in {**stored, **current} if stored.get(key) != current.get(key)]
    if differing:
        raise ValueError(
            f"the study {study.study_name!r} is of another search; it differs in "
            + ", ".join(
                f"{k} ({stored.get(k)!r} there, {current.get(k)!r} here)" for k in differing
            )
            + ": take another output folder"
        )


def _fill_queue(study: Any, slots: list[Setting]) -> None:
    """Every slot gets a trial, and a new one where the last was cut off."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    every = study.get_trials(deepcopy=False)
    live = {trial.user_attrs.get("slot") for trial in every if trial.state.name != "FAIL"}
    cut_off = {trial.user_attrs.get("slot"): trial for trial in every}
    for slot, setting in enumerate(slots):
        if slot not in live:
            before = cut_off.get(slot)  # its folds count, if any was done
            scores = [] if before is None else before.user_attrs["folds"]
            fixed = before.params if before is not None and scores else setting
            study.enqueue_trial(fixed, {"slot": slot, "folds": scores})


def _live_trials(study: Any, slot: int) -> list[Any]:
    """The trials of a slot that were not cut off."""
    every = study.get_trials(deepcopy=False)
    return [t for t in every if t.user_attrs.get("slot") == slot and t.state.name != "FAIL"]


def _sampler(name: str, seed: int, slot: int) -> Any:
    import optuna

    drawn = random.Random(f"{seed} {slot}").getrandbits(32)
    sampler_class = optuna.samplers.TPESampler if name == "tpe" else optuna.samplers.RandomSampler
    return sampler_class(seed=drawn)


def _drawn_value(trial: Any, name: str, dimension: Choices | Range) -> Any:
    if isinstance(dimension, Choices):
        return trial.suggest_categorical(name, dimension.values)
    suggest = trial.suggest_int if dimension.whole else trial.suggest_float
    return suggest(name, dimension.low, dimension.high, log=dimension.log)


def _tuning(study: Any) -> Tuning:
    """The trials by slot."""
    first: dict[int, Any] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name != "FAIL" and "slot" in trial.user_attrs:
            first.setdefault(trial.user_attrs["slot"], trial)
    return Tuning(tuple(_trial(first[slot]) for slot in sorted(first)))


def _trial(trial: Any) -> Trial:
    return Trial(
        setting=trial.params or trial.system_attrs.get("fixed_params", {}),
        state=STATES[trial.state.name],
        folds=tuple(trial.user_attrs["folds"]),
        score=trial.value if trial.state.name == "COMPLETE" else None,
        seconds=trial.duration.total_seconds() if trial.duration else None,
        error=trial.user_attrs.get("error"),
    )
