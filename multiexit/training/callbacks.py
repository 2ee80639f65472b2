"""Callbacks: what is called while a run goes on, to watch it or to end it early."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isfunction, signature
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn

from multiexit import randomness
from multiexit.evaluation.history import History
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Recipe
from multiexit.runtime import modes_kept
from multiexit.training.config import TrainConfig
from multiexit.training.records.state import Position
from multiexit_runner.user_line import user_level


@dataclass
class Run:
    """A phase of a run as its callbacks see it.

    Args:
        model: what is trained, as it is now; under FSDP2 a copy that is cut into shards, until the
            run ends.
        recipe, config: of the run.
        history: the log so far, of a resumed run from its very start.
        position: where the run is: `phase`, `epoch`, `step` in the phase, `total` steps.
        epochs, steps: how long the phase is.
        processes: how many train.
        first: whether this is the first of them, which writes and prints.
        stopping: whether a callback has asked for the phase's end.
    """

    model: MultiExitModel
    recipe: Recipe
    config: TrainConfig
    history: History
    position: Position
    epochs: int
    steps: int
    processes: int = 1
    first: bool = True
    stopping: bool = False

    def stop(self) -> None:
        """End the phase, as early stopping does: exits are scored, all is saved, the next begins.

        It takes effect where losses are next read (`log_every`) or exits scored; of several
        processes the first decides.
        """
        self.stopping = True


class Callback:
    """What a run calls; each method does nothing, and a subclass writes those that it needs.

    All processes call it at the same places. Random numbers that it draws, and modes that it sets,
    leave the run as it is without it. What it must know after a resume it finds in `run.history`.

    Example:
        Stop when every exit is good enough:

        >>> import torch, multiexit as mx
        >>> class GoodEnough(mx.Callback):
        ...     def on_evaluate(self, run, row):
        ...         if min(scores["score"] for scores in row["exits"]) >= 0.5:
        ...             run.stop()
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> rows = torch.utils.data.TensorDataset(torch.rand(8, 4), torch.zeros(8).long())
        >>> config = mx.TrainConfig(epochs=9, batch_size=4, lr=0.1, progress=False)
        >>> trainer = mx.Trainer(model, mx.recipe("joint"), config, callbacks=[GoodEnough()])
        >>> len(trainer.fit(rows, rows).epochs) < 9
        True
    """

    def on_begin(self, run: Run) -> None:
        """A phase begins, or goes on after a resume."""

    def on_step(self, run: Run, row: dict[str, Any] | None) -> None:
        """A step of Θ is done.

        Args:
            run: with its position behind the step.
            row: the newest of `history.steps`, where losses were just read (every `log_every`
                steps and at an epoch's end), or None.
        """

    def on_evaluate(self, run: Run, row: dict[str, Any]) -> None:
        """An epoch is over, or exits were scored inside one (`evaluate_every`).

        Args:
            run: with its position.
            row: the newest of `history.epochs`; where exits were scored it has `"exits"`, their
                scores, and `"mean"`.
        """

    def on_save(self, run: Run, folder: Path) -> None:
        """A checkpoint is written.

        Args:
            run: with its position.
            folder: of the checkpoint.
        """

    def on_end(self, run: Run) -> None:
        """The run is over: complete, or ended by a signal or an error."""


class Calls:
    """The calls of a run: to what watches it here, and to the user's callbacks.

    Args:
        watchers: our own, which draw no random numbers and set no modes.
        callbacks: the user's.

    Raises:
        ValueError: one that is no callback, or has a method that can't be called.
    """

    def __init__(self, watchers: Sequence[Callback], callbacks: Sequence[Callback]):
        _check(callbacks)
        self._watchers, self._callbacks = tuple(watchers), tuple(callbacks)
        self._run: Run | None = None

    def begin(self, run: Run) -> None:
        """A phase begins."""
        self._run = run
        self._call("on_begin")

    def step(self, row: dict[str, Any] | None) -> None:
        """A step is done, and perhaps losses were read."""
        self._call("on_step", row)
        if row is not None:
            self._hear()

    def evaluate(self, row: dict[str, Any]) -> None:
        """An epoch or an evaluation is over."""
        self._call("on_evaluate", row)
        self._hear()

    def save(self, folder: Path) -> None:
        """A checkpoint is written."""
        self._call("on_save", folder)

    def end(self, model: MultiExitModel) -> None:
        """The run is over, if it began; only the first such call counts.

        Args:
            model: whole, as the run leaves it.
        """
        if self._run is not None:
            self._run.model = model
        self._call("on_end")
        self._run = None

    def _call(self, method: str, *facts: Any) -> None:
        if self._run is None:
            return
        for watcher in self._watchers:
            getattr(watcher, method)(self._run, *facts)
        if self._callbacks:
            with _unnoticed(self._run.model):
                for callback in self._callbacks:
                    getattr(callback, method)(self._run, *facts)

    def _hear(self) -> None:
        """Stop where the first process was asked to; all processes meet here."""
        if self._callbacks and self._run is not None:
            position = self._run.position
            (position.stopped,) = broadcast_object_list([position.stopped or self._run.stopping])


def _check(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence):
        raise ValueError(f"callbacks are a list, such as [MyCallback()]; got {callbacks!r}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            is_class = isinstance(callback, type)
            what = f"the class {callback.__name__}" if is_class else repr(callback)
            raise ValueError(f"callbacks are instances of multiexit.Callback; got {what}")
        _check_methods(callback)


def _check_methods(callback: Callback) -> None:
    """Refuse methods that take other facts, and warn of those that are never called."""
    hooks = [name for name in vars(Callback) if name.startswith("on_")]
    for kind in type(callback).__mro__:
        for name in vars(kind) if issubclass(kind, Callback) else ():
            if name.startswith("on_") and name not in hooks and isfunction(vars(kind)[name]):
                warnings.warn(
                    f"{kind.__name__}.{name} isn't called in training: a callback's methods are "
                    f"{', '.join(hooks)}",
                    stacklevel=user_level(),
                )
    for name in hooks:
        facts = [*signature(getattr(Callback, name)).parameters][1:]
        try:
            signature(getattr(callback, name)).bind(*facts)
        except TypeError as error:
            raise ValueError(
                f"{type(callback).__name__}.{name} is called as {name}({', '.join(facts)}), and "
                f"takes others: {error}"
            ) from error


@contextmanager
def _unnoticed(model: nn.Module) -> Iterator[None]:
    """Inside, random numbers may be drawn and modes set; behind, they are as they were."""
    states = randomness.states()
    try:
        with modes_kept(model):
            yield
    finally:
        randomness.set_states(states)
