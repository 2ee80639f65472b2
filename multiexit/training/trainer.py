"""The training loop, on accelerate: CPU, one GPU or many.

Letters: M exits. Θ are the network's parameters, Ω the loss weights.

    for each phase of the recipe
        for each epoch
            cut the training set into D1 and D2, from (seed, epoch)
            for each batch B1 of D1
                L ← the loss matrix of B1, over all exits
                Θ ← Θ − λ1 ∇ (W ∘ A ∘ L).sum()
                Ω ← what its learner plans, from B1 and a batch B2 of D2, at λ2
            score every exit on the dev set; keep the best mean over those that the phase trains
            write a checkpoint
        go on from the best
"""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from accelerate.utils import (
    broadcast,
    broadcast_object_list,
    set_seed,
)
from torch.utils.data import DataLoader, Dataset

from multiexit.data import loaders
from multiexit.data.columns import Columns
from multiexit.data.mixing import Mixing
from multiexit.data.order import Indices, chunks
from multiexit.data.training_set import TrainingSet
from multiexit.evaluation.history import History
from multiexit.evaluation.judging import exit_scores
from multiexit.evaluation.outputs import Outputs, collect
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase, Recipe
from multiexit.runtime import first_process_checks, modes_kept
from multiexit.training import (
    checks,
    out_of_memory,
    precision,
    selection,
    sharding,
    signals,
    text_rows,
)
from multiexit.training.accelerator import accelerator
from multiexit.training.callbacks import Callback, Calls, Run
from multiexit.training.config import REACH, TrainConfig
from multiexit.training.device_checks import check_devices
from multiexit.training.finite import check_parameters
from multiexit.training.phase import learns_from_labels
from multiexit.training.progress import Progress
from multiexit.training.records import provenance, room, run_folder
from multiexit.training.records.keeper import Keeper
from multiexit.training.records.state import Position, State
from multiexit.training.stepper import Stepper
from multiexit.training.trackers import Trackers


class Trainer:
    """Trains a model by a recipe.

    Args:
        model: changed in place.
        recipe: the method.
        config: the run's settings.
        tokenizer: saved with the model, where it is saved.
        callbacks: what is called while the run goes on.

    Raises:
        ValueError: a topology that doesn't fit the model's exits, a metric that can't judge it, or
            other parts that don't go together.

    Example:
        >>> import torch, multiexit as mx
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> rows = torch.utils.data.TensorDataset(torch.rand(8, 4), torch.arange(8) % 2)
        >>> config = mx.TrainConfig(max_steps=2, batch_size=4, log_every=1, progress=False)
        >>> history = mx.Trainer(model, mx.recipe("joint"), config).fit(rows)
        >>> [row["step"] for row in history.steps], model.policy
        ([1, 2], Entropy(threshold=0.3))
    """

    def __init__(
        self,
        model: MultiExitModel,
        recipe: Recipe,
        config: TrainConfig | None = None,
        tokenizer: Any = None,
        callbacks: Sequence[Callback] = (),
    ):
        self.model = model
        self.recipe = recipe
        self.config = TrainConfig() if config is None else config
        checks.check_parts(model, recipe, self.config)
        with provenance.changes(model, recipe, self.config) as changing:
            checks.check_all(model, recipe, self.config)
        self.accelerator = accelerator(self.config)
        check_devices(self.accelerator, model, recipe, self.config)
        first = self.accelerator.is_main_process
        self._keeper = Keeper(model, self.config, tokenizer, first, changing)
        shown = [Progress()] if first and self.config.progress else []
        self._calls = Calls([Trackers(self.accelerator), *shown], callbacks)
        self.state = State()
        self._signal = signals.NotedSignal()

    @property
    def history(self) -> History:
        """The log of the run so far."""
        return self.state.history

    def fit(
        self,
        train: Dataset[Any] | DataLoader[Any],
        dev: Dataset[Any] | DataLoader[Any] | None = None,
        unlabelled: Dataset[Any] | DataLoader[Any] | None = None,
    ) -> History:
        """Train, and leave the model with its best weights on `dev` (its last without one).

        The recipe's policy becomes the model's. With `output`, SIGTERM, SIGHUP and Ctrl-C let the
        step in progress finish, save, and then end the process; a second one ends it at once.
        Weights in half precision become float32. With `resume`, a run that was finished is left
        as it is, and the model gets all that was saved with it.

        Args:
            train: a data set whose rows collate to `(inputs, labels)` or a dict with `"labels"`,
                of torch or of `datasets`; or a `DataLoader`, whose settings are kept: its sampler's
                order too, while that of `shuffle=True` is the trainer's own. Where no phase learns
                from labels, there may be none.
            dev: what selects the best epoch of a phase, by the mean of the metric over the exits
                that it trains.
            unlabelled: rows for phases that learn from teachers alone; `train` without it.

        Returns:
            The history; it also lies in `output` with the model, the checkpoints and `run.json`,
            which says what the run was made from.

        Raises:
            ValueError: an empty set, labels outside the classes, a checkpoint of another run, a
                folder that holds a run or that another one is writing into, a disk without room for
                what is saved. Nothing is written.
            FloatingPointError: a loss that is NaN or infinite, named by exit and step; the last
                checkpoint stands.
            torch.OutOfMemoryError: with what to lower.
        """
        with precision.training_switches(self.accelerator.device):
            return self._fit(train, dev, unlabelled)

    def _fit(self, train: Any, dev: Any, unlabelled: Any) -> History:
        checks.check_sets(self.model, self.recipe, self.config, train, dev, unlabelled)
        named = {"the training set": train, "the dev set": dev, "the unlabelled set": unlabelled}
        text_rows.check(self.model.backbone, named)
        if isinstance(train, DataLoader):
            self.config = replace(self.config, **loaders.settings(train))
        # Workers are processes of their own, which a device's memory can't be handed to.
        device = self.accelerator.device if self.config.workers == 0 else None
        columns = Columns(self.model.backbone.start, self.model.own_inputs)
        shares_M = self.model.cost().shares_M
        labelled = [learns_from_labels(phase, shares_M) for phase in self.recipe.phases]
        C = self.model.num_classes if any(labelled) else None
        config, mixing = self.config, None
        if config.mixup is not None or config.cutmix is not None:
            mixing = Mixing(config.mixup, config.cutmix, self.model.num_classes)
        balanced = config.sampling == "balanced"
        data = TrainingSet(train, C, device, columns, self.model.problem, balanced, mixing)
        no_labels = None if unlabelled is None else TrainingSet(unlabelled, None, device, columns)
        phase_data = [
            data if no_labels is None or reads_labels else no_labels for reads_labels in labelled
        ]
        set_seed(self.config.seed + self.accelerator.process_index)
        with run_folder.held(self.config):
            sets, world = (train, dev, unlabelled), self.accelerator.num_processes
            self.state = State(self._keeper.begin(self.recipe, self.config, sets, world))
            precision.trainable_weights(self.model)
            if self._was_finished(phase_data[-1]) and self._keeper.load_finished(self.recipe):
                self.model.to(self.accelerator.device)
                self._keeper.record_start()
                self.state.history = History(**self.state.saved["history"])
                return self.state.history
            self._check_room()
            self.model.policy, self.model.calibration = self.recipe.policy, None
            may_mix = sharding.may_mix(self.accelerator, self.model)
            try:
                with signals.noted(self.config.output is not None) as self._signal:
                    for index in range(self.state.first_phase, len(self.recipe.phases)):
                        with out_of_memory.explained(self.config, phase_data[index], may_mix):
                            self._run_phase(index, phase_data[index], dev)
                # Under FSDP2 only sharded copies were on the device; this model was on the CPU.
                self.model.to(self.accelerator.device)
                if self.recipe.finish is not None:
                    self.recipe.finish(self.model, self._collect(self.model, dev, keys=True))
                self._keeper.save_model(self.state.history)
                self._keeper.finish()
            finally:
                self._calls.end(self.model)
        return self.state.history

    def _check_room(self) -> None:
        """Refuse a disk without room for what will be saved; all processes must call it."""
        if self.config.output is None:
            return
        phase, output = self.recipe.phases[self.state.first_phase], Path(self.config.output)
        old = [output / name for name in run_folder.RUN_FILES if self.config.overwrite]
        first_process_checks(lambda: room.check(self.model, phase, self.config, old))

    def _was_finished(self, data: TrainingSet) -> bool:
        """Whether the run that was saved has nothing left to train."""
        if not self.state.saved:
            return False
        position, last = Position(**self.state.saved["position"]), len(self.recipe.phases) - 1
        epochs, steps = self._phase_length(self.recipe.phases[last], data)
        return position.phase == last and self._phase_is_over(position, epochs, steps)

    def _phase_is_over(self, position: Position, epochs: int, steps: int) -> bool:
        return selection.is_over(position, self.config.early_stopping, epochs, steps)

    def _phase_length(self, phase: Phase, data: TrainingSet) -> tuple[int, int]:
        """Epochs and steps of Θ of a phase."""
        first, _ = self._epoch(phase, data, 0)
        return selection.phase_length(phase, self.config, len(first))

    def _epoch(
        self, phase: Phase, data: TrainingSet, epoch: int
    ) -> tuple[list[Indices], list[Indices]]:
        """The batches of D1 and D2 in an epoch, on this process."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        config = self.config
        return data.epoch(config.seed, epoch, phase.learner.splits, config.batch_size, rank, world)

    def _run_phase(self, index: int, data: TrainingSet, dev: Any) -> None:
        self.state.position = Position(phase=index, total=self.state.position.total)
        phase, config = self.recipe.phases[index], self.config
        if config.omega_lr is None:
            config = replace(config, omega_lr=REACH / self._phase_length(phase, data)[1])
        with (
            modes_kept(self.model),
            closing(Stepper(self.model, phase, config, self.accelerator)) as stepper,
        ):
            self._run_epochs(stepper, data, dev)
            with stepper.kept():
                self._share_buffers(stepper.model)
                best = self.state.best or sharding.parameters(stepper.model)
            self.model.load_state_dict(best)

    def _run_epochs(self, stepper: Stepper, data: TrainingSet, dev: Any) -> None:
        config, phase, state = self.config, stepper.phase, self.state
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        state.restore(stepper, rank, self.accelerator.device)
        self._keeper.record_start()
        position, size = state.position, config.accumulation
        epochs, steps = self._phase_length(phase, data)
        parts = stepper.model, self.recipe, config, state.history, position
        self._calls.begin(Run(*parts, epochs, steps, world, first=rank == 0))
        while not self._phase_is_over(position, epochs, steps):
            begin = time.perf_counter()
            stepper.begin_epoch((position.epoch + 1) / epochs)
            first, second = self._epoch(phase, data, position.epoch)
            seed = (config.seed, position.phase, position.epoch, rank)
            groups, skipped = list(chunks(second, size)), position.batch * size
            # Named nowhere else, so that its workers end with the loop, whatever ends that.
            for batches in chunks(data.feed(first, config.workers, seed, skipped), size):
                draw = partial(self._draw, data, groups, seed)
                state.unread.steps.append(stepper.step(batches, draw, position.step, steps))
                position.batch += 1
                position.step += 1
                position.total += 1
                epoch_ends = position.step == steps or position.batch * size >= len(first)
                reads = epoch_ends or position.step % config.log_every == 0
                self._calls.step(self._read_losses() if reads else None)
                judges = selection.judges(position, config.evaluate_every, epoch_ends, steps)
                if judges or epoch_ends:
                    seconds = time.perf_counter() - begin
                    check_parameters(stepper.model, position.step)
                    with stepper.kept():
                        self._judge(stepper, dev if judges else None, seconds)
                    begin = time.perf_counter()
                if epoch_ends:
                    position.epoch += 1
                    position.batch = position.second = 0
                number = self._signal.agreed(self.accelerator, reads)
                saves = config.checkpoint_every and position.step % config.checkpoint_every == 0
                if number or judges or epoch_ends or saves:
                    self._checkpoint(stepper)
                if number:
                    self._calls.end(self.model)
                    self._end_by_signal(number)
                if self._phase_is_over(position, epochs, steps):
                    break

    def _end_by_signal(self, signal_number: int) -> NoReturn:
        """End as a signal asked for, behind a checkpoint."""
        position, name = self.state.position, signal.Signals(signal_number).name
        self.accelerator.print(
            f"stopped by {name}; saved in {self.config.output} after step {position.step} of "
            f"phase {position.phase}: go on with resume=True (on the command line --resume)",
            file=sys.stderr,
        )
        signals.end(signal_number)

    def _draw(
        self, data: TrainingSet, groups: list[list[Indices]], seed: tuple[int, ...]
    ) -> list[Any]:
        """The next B2, in as many batches as are accumulated; after D2's last comes its first."""
        number = self.state.position.second
        self.state.position.second += 1
        begin = number * self.config.accumulation
        return [
            data.fetch(rows, (*seed, begin + index, 2))
            for index, rows in enumerate(groups[number % len(groups)])
        ]

    def _read_losses(self) -> dict[str, Any]:
        """Bring the losses since the last reading from the device, check and log them."""
        position = self.state.position
        place = {"phase": position.phase, "epoch": position.epoch, "step": position.step}
        self.state.history.steps.append({**place, **self.state.unread.read()})
        return self.state.history.steps[-1]

    def _judge(self, stepper: Stepper, dev: Any, seconds: float) -> None:
        """Score all exits, where there is a dev set to score them on, and keep the best."""
        position, history, model = self.state.position, self.state.history, stepper.model
        row: dict[str, Any] = {
            "phase": position.phase,
            "epoch": position.epoch,
            "step": position.step,
            "seconds": round(seconds, 3),
        }
        history.epochs.append(row)
        if dev is not None:
            self._share_buffers(model)
            # What the first process sees decides for all.
            (row["exits"],) = broadcast_object_list([exit_scores(self._collect(model, dev))])
            judged = [row["exits"][m]["score"] for m in stepper.judged]
            row["mean"] = sum(judged) / len(judged)
            position.stale += 1
            if stepper.phase.keep == "last" or selection.is_better(row, history.best):
                history.best, position.stale = row, 0
                self.state.best = sharding.parameters(model)
                if model is not self.model:
                    self.model.load_state_dict(self.state.best)
                self._keeper.save_model(history)
        self._calls.evaluate(row)

    def _collect(self, model: MultiExitModel, dev: Any, keys: bool = False) -> Outputs:
        batch_size = 2 * self.config.batch_size
        return collect(model, dev, self.config.metric, batch_size, keys=keys, spread=True)

    def _share_buffers(self, model: MultiExitModel) -> None:
        """Give every process the first one's BatchNorm statistics."""
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))  # type: ignore[arg-type]

    def _checkpoint(self, stepper: Stepper) -> None:
        if self.config.output is None:
            return
        checkpoint = self.state.checkpoint(stepper, self.accelerator)
        if checkpoint is not None:
            self._keeper.checkpoint(checkpoint, self.state.history)
        self._calls.save(self._keeper.folder(self.state.position))
