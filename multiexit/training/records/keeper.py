"""Keeps a run's records in its folder: its inputs, checkpoints, its history, its model."""

import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from multiexit.evaluation.history import History
from multiexit.files.names import HISTORY, MODEL
from multiexit.model.folder import backbone_spec, save_folder
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Recipe
from multiexit.runtime import modes_kept
from multiexit.training.config import TrainConfig
from multiexit.training.records import checkpoint, identity, provenance, run_folder
from multiexit.training.records.part_text import Place
from multiexit.training.records.state import Position
from multiexit_runner.user_line import user_level


class Keeper:
    """Keeps a run, or nothing without `output`; only the first process writes.

    Args:
        model, config, tokenizer: of the trainer.
        first: whether this is the first process.
        changing: what in the recipe doesn't count, from `provenance.changes`.
    """

    def __init__(
        self,
        model: MultiExitModel,
        config: TrainConfig,
        tokenizer: Any,
        first: bool,
        changing: Collection[Place],
    ):
        self.model, self._tokenizer, self._first = model, tokenizer, first
        self._changing = changing
        saves = config.output is not None and first
        self._spec = backbone_spec(model.backbone) if saves else None

    def begin(
        self, recipe: Recipe, config: TrainConfig, sets: tuple[Any, Any, Any], processes: int
    ) -> Any:
        """The state that a run goes on from, if any; nothing is written yet.

        Args:
            sets: what is trained on, the dev set, and rows without labels.

        Raises:
            ValueError: the checkpoint is of another run.
        """
        self._config, self._started = config, False
        self._checkpoints: list[str] = []
        if config.output is None:
            return None
        self._output = Path(config.output)
        train, dev, unlabelled = sets
        data = {"train": train, "dev": dev, "unlabelled": unlabelled}
        self._description = provenance.describe(
            self.model, recipe, config, data, processes, self._changing
        )
        self._identity = identity.identity(self._description)
        name, saved = identity.saved_state(config, self._identity) or (None, None)
        self._resumed_from = name
        if name is not None:
            names = checkpoint.names(self._output)
            self._checkpoints = names[: names.index(name) + 1]
        return saved

    def record_start(self) -> bool:
        """Record what the run is made from, once all is well; whether work starts by it."""
        if self._started:
            return False
        self._started = True
        if self._config.output is None or not self._first:
            return True
        if self._config.overwrite:
            run_folder.clear(self._output)
        provenance.record(self._output, self._description, self._resumed_from)
        if self._config.resume and self._resumed_from is None:
            message = f"resume: nothing is saved in {self._output} yet, so the run starts anew"
            print(message, file=sys.stderr)
        return True

    def load_finished(self, recipe: Recipe) -> bool:
        """Give the model what the finished run saved; False if that isn't whole."""
        folder = self._output / MODEL
        if not provenance.finished(self._output, self._checkpoints[-1]):
            return False
        with modes_kept(self.model):
            try:
                head = None if isinstance(self.model.head, str) else self.model.head
                finished = MultiExitModel.from_pretrained(
                    folder, self.model.backbone, head, [type(recipe.policy)]
                )
            except ValueError as error:
                warnings.warn(
                    f"the finished model can't be read ({error}); it is made again from the "
                    "last checkpoint",
                    stacklevel=user_level(),
                )
                return False
        self.model.load_state_dict(finished.state_dict())
        self.model.policy, self.model.latency = finished.policy, finished.latency
        self.model.calibration, self.model.labels = finished.calibration, finished.labels
        if self._first:
            message = f"resume: the run in {self._output} is complete, and stays as it is"
            print(message, file=sys.stderr)
        return True

    def checkpoint(self, state: dict[str, Any], history: History) -> None:
        """Write a state, and let go of those that aren't to be kept."""
        position, best = state["position"], history.best
        name = checkpoint.name_of(position["phase"], position["step"])
        self._checkpoints = [*self._checkpoints, name][-self._config.keep_checkpoints :]
        best_name = [checkpoint.name_of(best["phase"], best["step"])] if best else []
        keep = [*self._checkpoints, *best_name]
        checkpoint.save(self._output, name, {"run": self._identity, **state}, keep)
        history.save(self._output / HISTORY)

    def folder(self, position: Position) -> Path:
        """The folder of a checkpoint."""
        name = checkpoint.name_of(position.phase, position.step)
        return self._output / checkpoint.FOLDER / name

    def save_model(self, history: History) -> None:
        """Write the model as it is, and the history."""
        if self._config.output is not None and self._first:
            folder = self._output / MODEL
            save_folder(folder, self.model, self.model.settings(self._spec), self._tokenizer)
            history.save(self._output / HISTORY)

    def finish(self) -> None:
        """Write down that the run is complete."""
        if self._config.output is not None and self._first:
            provenance.finish(self._output, self._checkpoints[-1])
