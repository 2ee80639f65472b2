"""How far a run is, told on stderr: a bar on a terminal, lines elsewhere, and a line per epoch."""

import sys
import time
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from multiexit.training.callbacks import Callback, Run

PAUSE = 10.0
"""Seconds between lines inside an epoch, at least."""


class Progress(Callback):
    """Tells how far a run is, and how fast."""

    def on_begin(self, run: Run) -> None:
        self.on_end(run)
        step = run.position.step
        # None: a bar on a terminal only.
        self._bar = tqdm(total=run.steps, initial=step, desc=run.recipe.name, disable=None)
        self._began = self._clock = self._said = time.monotonic()
        self._first_step = self._said_step = step
        self._seconds = 0.0

    def on_step(self, run: Run, row: dict[str, Any] | None) -> None:
        now = time.monotonic()
        self._seconds += now - self._clock
        self._clock = now
        self._bar.update()
        if row is None:
            return
        self._bar.set_postfix(loss=f"{row['loss']:.3f}")
        ends = run.position.step == run.steps  # whose own line comes
        if self._bar.disable and now - self._said >= PAUSE and not ends:
            self._say(run, [])

    def on_evaluate(self, run: Run, row: dict[str, Any]) -> None:
        self._say(run, scores(row))
        stale, patience = run.position.stale, run.config.early_stopping
        if patience is not None and stale >= patience and run.position.step < run.steps:
            said = f"{stale} evaluations without a better one end it (early stopping)"
            tqdm.write(f"{run.recipe.name}: step {run.position.step}, {said}", file=sys.stderr)
        self._clock = time.monotonic()  # scoring is no training

    def on_end(self, run: Run) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()

    def _say(self, run: Run, more: list[str]) -> None:
        position, now = run.position, time.monotonic()
        steps = position.step - self._said_step
        rows = steps * run.config.batch_size * run.config.accumulation * run.processes
        each = (now - self._began) / max(position.step - self._first_step, 1)
        left = timedelta(seconds=round(each * (run.steps - position.step)))
        speed = [f"{rows / self._seconds:.0f} rows/s"] if self._seconds else []
        parts = [*place(run), *losses(run), *speed, f"{left} left", *more]
        tqdm.write(f"{run.recipe.name}: {', '.join(parts)}", file=sys.stderr)
        self._said, self._said_step, self._seconds = now, position.step, 0.0


def place(run: Run) -> list[str]:
    """Where a run is, counted from 1 as one reads it."""
    position, phases = run.position, len(run.recipe.phases)
    phase = [f"phase {position.phase + 1}/{phases}"] if phases > 1 else []
    epoch = f"epoch {position.epoch + 1}/{run.epochs}"
    return [*phase, epoch, f"step {position.step}/{run.steps}"]


def losses(run: Run) -> list[str]:
    """The newest loss and learning rate."""
    if not run.history.steps:
        return []
    row = run.history.steps[-1]
    return [f"loss {row['loss']:.4f}", f"lr {row['lr']:.3g}"]


def scores(row: dict[str, Any]) -> list[str]:
    """The scores of the first, the best and the last exit, and the mean; [] without any.

    >>> scores({"exits": [{"score": 0.5}, {"score": 0.9}, {"score": 0.8}], "mean": 0.73333})
    ['first exit 0.5000', 'best 0.9000 (exit 1)', 'last 0.8000', 'mean 0.7333']
    """
    if "exits" not in row:
        return []
    values = [figures["score"] for figures in row["exits"]]
    best = max(range(len(values)), key=values.__getitem__)
    ends = f"first exit {values[0]:.4f}", f"last {values[-1]:.4f}"
    return [ends[0], f"best {values[best]:.4f} (exit {best})", ends[1], f"mean {row['mean']:.4f}"]
