"""The training loop, on accelerate: CPU, one GPU or many.

Letters: M exits. Θ are the network's parameters, Ω the loss weights.

    for each phase of the recipe
        for each epoch
            cut the training set into D1 and D2, from (seed, epoch)
            for each batch B1 of D1
                Θ ← Θ − λ1 ∇ (W ∘ A ∘ L_B1).sum()
                Ω ← what its learner plans for this step
            score every exit on the dev set; keep the best mean
        go on from the best
"""

import math
import signal
import sys
import time
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    GradientAccumulationPlugin,
    broadcast,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from multiexit import (
    checkpoint,
    memory,
    metrics,
    phases,
    policies,
    precision,
    provenance,
    randomness,
    resume,
    runfolder,
    saving,
    sharding,
    signals,
)
from multiexit.config import TrainConfig
from multiexit.data import loaders
from multiexit.data.batches import Indices, chunks
from multiexit.data.columns import Columns
from multiexit.data.rows import Rows
from multiexit.evaluate import Outputs, collect, exit_scores
from multiexit.history import History
from multiexit.journal import Journal
from multiexit.model import MultiExitModel
from multiexit.modes import as_found
from multiexit.processes import apart, check_environment
from multiexit.recipes import Phase, Recipe
from multiexit.step import check_parameters
from multiexit.stepper import Stepper


@dataclass
class Position:
    """Where a run is; saved in checkpoints.

    Args:
        phase, epoch: the running ones.
        batch: Θ's steps done in this epoch; `step` in this phase, `total` in the run.
        second: batches drawn from D2 in this epoch.
        stale: epochs since the best.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    total: int = 0
    second: int = 0
    stale: int = 0


class Trainer:
    """Trains a model by a recipe.

    Args:
        model: changed in place.
        recipe: the method.
        config: the run's settings.
        tokenizer: saved with the model, where it is saved.

    Raises:
        ValueError: a topology that doesn't fit the model's exits, a metric that can't judge it, or
            other parts that don't go together.
    """

    def __init__(
        self,
        model: MultiExitModel,
        recipe: Recipe,
        config: TrainConfig | None = None,
        tokenizer: Any = None,
    ):
        self.model = model
        self._tokenizer = tokenizer
        self.recipe = recipe
        self.config = config or TrainConfig()
        precision.trainable_weights(model)
        phases.check(model, recipe)
        policies.check(recipe.policy, model.num_exits, model.num_classes)
        metrics.check(self.config.metric, model.num_classes)
        phases.check_options(model, recipe, self.config)
        available = {tracker.value for tracker in get_available_trackers()}
        if missing := sorted(set(self.config.trackers) - available):
            raise ValueError(f"no tracker {missing} is installed; there are {sorted(available)}")
        check_environment(self.config)
        with apart():
            self.accelerator = Accelerator(
                mixed_precision=self.config.mixed_precision,
                log_with=list(self.config.trackers) or None,
                project_dir=self.config.output,
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # is our own
                dynamo_backend="no",
                # The first process's statistics are shared when an epoch ends, not at every pass.
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            )
        sharding.check(self.accelerator, model, recipe, self.config)
        if self.config.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            raise ValueError("mixed_precision='fp16' needs a GPU; on a CPU use 'bf16' or 'no'")
        saves = self.config.output is not None and self.accelerator.is_main_process
        self._spec = saving.description(model.backbone, stacklevel=3) if saves else None
        self.history = History()
        self.position = Position()
        self._best: dict[str, Tensor] | None = None
        self._journal = Journal()
        self._kept: list[str] = []
        self._unwritten: Any = None
        self._asked = signals.Noted()

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
                order too, while that of `shuffle=True` is the trainer's own.
            dev: what selects the best epoch of a phase, by the mean of the metric over the exits
                that it trains.
            unlabelled: rows for phases that learn from teachers alone; `train` without it.

        Returns:
            The history; it also lies in `output` with the model, the checkpoints and `run.json`,
            which says what the run was made from.

        Raises:
            ValueError: an empty set, labels outside the classes, a checkpoint of another run, a
                folder that holds a run or that another one is writing into. Nothing is written.
            FloatingPointError: a loss that is NaN or infinite, named by exit and step; the last
                checkpoint stands.
            torch.OutOfMemoryError: with what to lower.
        """
        with precision.training_switches(self.accelerator.device):
            return self._fit(train, dev, unlabelled)

    def _fit(self, train: Any, dev: Any, unlabelled: Any) -> History:
        if isinstance(train, DataLoader):
            loaders.check(train)
            self.config = replace(self.config, **loaders.settings(train))
        # Workers are processes of their own, which a device's memory can't be handed to.
        device = self.accelerator.device if self.config.workers == 0 else None
        known = Columns(self.model.backbone.start)
        data = Rows(train, self.model.num_classes, device, known)
        alone = None if unlabelled is None else Rows(unlabelled, None, device, known)
        data_of = [
            data if alone is None or phases.labelled(self.model, phase) else alone
            for phase in self.recipe.phases
        ]
        unread = unlabelled is not None and all(rows is data for rows in data_of)
        phases.check_sets(self.model, self.recipe, train, dev, unread)
        set_seed(self.config.seed + self.accelerator.process_index)
        with runfolder.held(self.config):
            run, saved = self._begin({"train": train, "dev": dev, "unlabelled": unlabelled})
            if saved and self._finished(saved, data_of[-1]) and self._take_finished():
                self._write_down(*self._unwritten.args)
                self.history = History(**saved["history"])
                return self.history
            self.model.policy = self.recipe.policy
            first = saved["position"]["phase"] if saved else 0
            may_mix = sharding.may_mix(self.accelerator, self.model)
            with signals.noted(run is not None) as self._asked:
                for index in range(first, len(self.recipe.phases)):
                    with memory.explained(self.config, data_of[index], may_mix):
                        self._run_phase(index, data_of[index], dev, run, saved)
                    saved = None
            self.model.to(self.accelerator.device)  # of sharded copies it was the whole
            for tracker in self.accelerator.trackers:  # end_training would end the group too
                tracker.finish()
            if self.recipe.finish is not None:
                self.recipe.finish(self.model, self._collect(self.model, dev, keys=True))
            self._save_model()
            if run is not None and self.accelerator.is_main_process:
                provenance.finish(Path(str(self.config.output)), self._kept[-1])
        return self.history

    def _begin(self, data: dict[str, Any]) -> tuple[Any, Any]:
        """Check the last things; nothing is written yet.

        Returns:
            What identifies the run, and the state that it goes on from, if any.
        """
        self.history, self.position, self._best = History(), Position(), None
        self._journal, self._kept = Journal(), []
        facts = run = name = saved = None
        if self.config.output is not None:
            output, world = Path(self.config.output), self.accelerator.num_processes
            facts = provenance.describe(self.model, self.recipe, self.config, data, world)
            run = resume.identity(facts)
            name, saved = resume.saved_state(self.config, run) or (None, None)
            if name is not None:
                known = checkpoint.names(output)
                self._kept = known[: known.index(name) + 1]
        precision.trainable_weights(self.model)
        self._unwritten = partial(self._write_down, facts, name)
        return run, saved

    def _write_down(self, facts: Any, name: str | None) -> None:
        """What the run is made from, where all is well and work starts."""
        self._unwritten = None
        if facts is None or not self.accelerator.is_main_process:
            return
        output = Path(str(self.config.output))
        if self.config.overwrite:
            runfolder.clear(output)
        provenance.record(output, facts, name)
        if self.config.resume and name is None:
            said = f"resume: nothing is saved in {output} yet, so the run starts anew"
            print(said, file=sys.stderr)

    def _finished(self, saved: dict[str, Any], data: Rows) -> bool:
        """Whether a run that was saved so has nothing left to train."""
        position, last = Position(**saved["position"]), len(self.recipe.phases) - 1
        epochs, steps = self._length(self.recipe.phases[last], data)
        return position.phase == last and self._over(position, epochs, steps)

    def _take_finished(self) -> bool:
        """Give the model what the finished run saved; False if that isn't whole."""
        output = Path(str(self.config.output))
        plain = self.recipe.finish is None and (output / runfolder.MODEL).exists()
        if not provenance.finished(output, self._kept[-1], otherwise=plain):
            return False
        with as_found(self.model):
            try:
                own = None if isinstance(self.model.head, str) else self.model.head
                there = MultiExitModel.from_pretrained(
                    output / runfolder.MODEL, self.model.backbone, own, [type(self.recipe.policy)]
                )
            except ValueError as error:
                warnings.warn(
                    f"the finished model can't be read ({error}); it is made again from the "
                    "last checkpoint",
                    stacklevel=4,
                )
                return False
        self.model.load_state_dict(there.state_dict())
        self.model.policy, self.model.latency = there.policy, there.latency
        self.model.to(self.accelerator.device)
        if self.accelerator.is_main_process:
            print(f"resume: the run in {output} is complete, and stays as it is", file=sys.stderr)
        return True

    def _over(self, position: Position, epochs: int, steps: int) -> bool:
        """Whether a phase is: all done, or no better epoch for long enough."""
        patience = self.config.early_stopping
        enough = patience is not None and position.stale >= patience
        return enough or position.epoch >= epochs or position.step >= steps

    def _run_phase(self, index: int, data: Rows, dev: Any, run: Any, saved: Any) -> None:
        self.position = Position(phase=index, total=self.position.total)
        phase = self.recipe.phases[index]
        with (
            as_found(self.model),
            closing(Stepper(self.model, phase, self.config, self.accelerator)) as stepper,
        ):
            self._run_epochs(stepper, data, dev, run, saved)
            self._share_buffers(stepper.model)
            if self._best is not None or stepper.model is not self.model:
                self.model.load_state_dict(self._best or sharding.weights(stepper.model))

    def _run_epochs(
        self, stepper: Stepper, data: Rows, dev: Any, run: dict[str, Any], saved: Any
    ) -> None:
        config, phase = self.config, stepper.phase
        if saved:
            self._restore(saved, stepper)
        if self._unwritten is not None:
            self._unwritten()
            self.accelerator.init_trackers("multiexit")
        position = self.position
        epochs, steps = self._length(phase, data)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        shown = config.progress and self.accelerator.is_main_process
        # None: shown on a terminal only.
        bar = tqdm(
            total=steps,
            initial=position.step,
            desc=self.recipe.name,
            disable=None if shown else True,
        )
        while not self._over(position, epochs, steps):
            begin = time.perf_counter()
            stepper.begin_epoch((position.epoch + 1) / epochs)
            first, second = data.epoch(
                config.seed, position.epoch, phase.learner.splits, config.batch_size, rank, world
            )
            done = position.batch * config.accumulation
            seed = (config.seed, position.phase, position.epoch, rank)
            # Named nowhere else, so that its workers end with the loop, whatever ends that.
            for micro in chunks(data.feed(first, config.workers, seed, done), config.accumulation):
                draw = partial(self._draw, data, second, seed)
                self._journal.add(position.step, stepper.step(micro, draw, position.step, steps))
                position.batch += 1
                position.step += 1
                position.total += 1
                bar.update()
                if reading := position.step % config.log_every == 0:
                    self._read_losses(stepper, bar)
                if position.step == steps or position.batch * config.accumulation >= len(first):
                    break  # the epoch's end saves
                every = config.checkpoint_every
                asked = self._asked.agreed(self.accelerator, reading)
                if asked or (every and position.step % every == 0):
                    self._checkpoint(stepper, run)
                if asked:
                    self._end(asked, bar)
            self._read_losses(stepper, bar)
            self._end_epoch(stepper.model, dev, time.perf_counter() - begin)
            position.epoch += 1
            position.batch = position.second = 0
            self._checkpoint(stepper, run)
            if asked := self._asked.agreed(self.accelerator, True):
                self._end(asked, bar)
        bar.close()

    def _end(self, asked: int, bar: Any) -> NoReturn:
        """End as a signal asked for, behind a checkpoint."""
        bar.close()
        if self.accelerator.is_main_process:
            step, phase, output = self.position.step, self.position.phase, self.config.output
            print(
                f"stopped by {signal.Signals(asked).name}; saved in {output} after step {step} of "
                f"phase {phase}: go on with resume=True (on the command line --resume)",
                file=sys.stderr,
            )
        signals.end(asked)

    def _draw(self, data: Rows, second: list[Indices], seed: tuple[int, ...]) -> Any:
        """The next batch of D2; after the last comes the first."""
        number = self.position.second
        self.position.second += 1
        return data.fetch(second[number % len(second)], (*seed, number, 2))

    def _length(self, phase: Phase, data: Rows) -> tuple[int, int]:
        """Epochs and steps of Θ of a phase."""
        config = self.config
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        first, _ = data.epoch(config.seed, 0, phase.learner.splits, config.batch_size, rank, world)
        per_epoch = math.ceil(len(first) / config.accumulation)
        if config.max_steps is not None:
            return math.ceil(config.max_steps / per_epoch), config.max_steps
        epochs = phase.epochs or config.epochs
        return epochs, epochs * per_epoch

    def _read_losses(self, stepper: Stepper, bar: Any) -> None:
        """Bring the losses since the last reading from the device, check and log them."""
        read = self._journal.read(stepper)
        if not read:
            return
        position = self.position
        place = {"phase": position.phase, "epoch": position.epoch, "step": position.step}
        self.history.steps.append({**place, **read})
        self.accelerator.log({"loss": read["loss"], "lr": read["lr"]}, step=position.total)
        bar.set_postfix(loss=f"{read['loss']:.3f}")

    def _end_epoch(self, model: MultiExitModel, dev: Any, seconds: float) -> None:
        """Score all exits, and keep the best."""
        position, best = self.position, self.history.best
        check_parameters(model, position.step)
        row: dict[str, Any] = {
            "phase": position.phase,
            "epoch": position.epoch,
            "step": position.step,
            "seconds": round(seconds, 3),
        }
        self.history.epochs.append(row)
        if dev is None:
            return
        self._share_buffers(model)
        # What the first process sees decides for all.
        (row["exits"],) = broadcast_object_list([exit_scores(self._collect(model, dev))])
        judged = phases.judged(self.model, self.recipe.phases[position.phase])
        row["mean"] = sum(row["exits"][m]["score"] for m in judged) / len(judged)
        self.accelerator.log({"mean over exits": row["mean"]}, step=position.total)
        if best is None or best["phase"] != position.phase or row["mean"] > best["mean"]:
            self.history.best, position.stale = row, 0
            self._best = sharding.weights(model)
            if model is not self.model:
                self.model.load_state_dict(self._best)
            self._save_model()
            return
        position.stale += 1

    def _collect(self, model: MultiExitModel, dev: Any, keys: bool = False) -> Outputs:
        batch_size = 2 * self.config.batch_size
        return collect(model, dev, self.config.metric, batch_size, keys=keys, spread=True)

    def _share_buffers(self, model: MultiExitModel) -> None:
        """Give every process the first one's BatchNorm statistics."""
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))  # type: ignore[arg-type]

    def _save_model(self) -> None:
        if self.config.output is not None and self.accelerator.is_main_process:
            output = Path(self.config.output)
            saving.save_as(self._spec, self.model, output / runfolder.MODEL, self._tokenizer)
            self.history.save(output / runfolder.HISTORY)

    def _checkpoint(self, stepper: Stepper, run: dict[str, Any]) -> None:
        if self.config.output is None:
            return
        position, best = self.position, self.history.best
        self._journal.check(stepper)
        check_parameters(stepper.model, position.step)
        moved = {"model": sharding.weights(stepper.model), "stepper": stepper.state_dict()}
        random_by_process = gather_object([randomness.states()])
        if not self.accelerator.is_main_process:
            return
        state = {
            "run": run,
            "position": asdict(position),
            "history": asdict(self.history),
            "unread": self._journal.unread,
            "best": self._best,
            **moved,
            "random": random_by_process,
        }
        name = checkpoint.name_of(position.phase, position.step)
        self._kept = [*self._kept, name][-self.config.keep_checkpoints :]
        keep = [*self._kept, *([checkpoint.name_of(best["phase"], best["step"])] if best else [])]
        checkpoint.save(Path(self.config.output), name, state, keep)
        self.history.save(Path(self.config.output) / runfolder.HISTORY)

    def _restore(self, state: dict[str, Any], stepper: Stepper) -> None:
        """Put everything back to where the checkpoint was taken."""
        rank = self.accelerator.process_index
        try:
            stepper.load_state_dict(state["stepper"])
            sharding.set_weights(stepper.model, state["model"])
            self._best = state["best"]
            self.history = History(**state["history"])
            self._journal.restore(state["unread"], self.accelerator.device)
            self.position = Position(**state["position"])
            if rank < len(state["random"]):  # there were fewer processes
                randomness.set_states(state["random"][rank])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                "the checkpoint's weights, optimisers or loss weights don't fit this run: "
                + " ".join(str(error).split())
            ) from error
