"""The training loop, on accelerate: CPU, one GPU or many.

Letters: M exits. Θ are the network's parameters, Ω the loss weights.

    for each phase of the recipe
        for each epoch
            cut the training set into D1 and D2, from (seed, epoch)
            for each batch B1 of D1
                Θ ← Θ − λ1 ∇ (W ∘ A ∘ L_B1).sum()
                Ω ← what its learner plans for this step
            score every exit on the dev set; keep the best mean
"""

import math
import time
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast, broadcast_object_list, gather_object, set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from multiexit import checkpoint, resume, topology
from multiexit.config import TrainConfig
from multiexit.data.batches import Indices, chunks
from multiexit.data.rows import Rows
from multiexit.evaluate import collect, exit_scores
from multiexit.history import History
from multiexit.losses import check_labels
from multiexit.model import MultiExitModel
from multiexit.recipes import Phase, Recipe
from multiexit.step import check_finite, check_parameters
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

    Raises:
        ValueError: a topology that doesn't fit the model's exits.
    """

    def __init__(self, model: MultiExitModel, recipe: Recipe, config: TrainConfig | None = None):
        self.model = model
        self.recipe = recipe
        self.config = config or TrainConfig()
        for phase in recipe.phases:
            topology.resolve(phase.topology, model.num_exits)
        available = {tracker.value for tracker in get_available_trackers()}
        if missing := sorted(set(self.config.trackers) - available):
            raise ValueError(f"no tracker {missing} is installed; there are {sorted(available)}")
        if AcceleratorState._shared_state:  # a run before this one may have had another precision
            AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=self.config.mixed_precision,
            log_with=list(self.config.trackers) or None,
            project_dir=self.config.output,
        )
        if self.config.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            raise ValueError("mixed_precision='fp16' needs a GPU; on a CPU use 'bf16' or 'no'")
        self.history = History()
        self.position = Position()
        self._best: dict[str, Tensor] | None = None
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # step, L_MM, W_MM on the device
        self._warned = False

    def fit(
        self,
        train: Dataset[Any] | DataLoader[Any],
        dev: Dataset[Any] | DataLoader[Any] | None = None,
    ) -> History:
        """Train, and leave the model with its best weights on `dev` (its last without one).

        Args:
            train: a data set whose rows collate to `(inputs, labels)` or a dict with `"labels"`;
                of a `DataLoader`, the set, the collate function and the batch size are taken, for
                the order is the trainer's own.
            dev: what selects the best epoch, by the mean of the metric over all exits.

        Returns:
            The history; it also lies in `output` with the model and the checkpoint.

        Raises:
            ValueError: an empty set, labels outside the classes, a checkpoint of another run.
            FloatingPointError: a loss that is NaN or infinite, named by exit and step; the last
                checkpoint stands.
        """
        if isinstance(train, DataLoader):
            self.config = replace(
                self.config, batch_size=train.batch_size or self.config.batch_size
            )
        data = Rows(train, self.model.num_classes)
        _check_dev(dev, self.model.num_classes)
        self.history, self.position, self._best = History(), Position(), None
        self._unread, self._warned = [], False
        set_seed(self.config.seed, device_specific=True)
        self.accelerator.init_trackers("multiexit")
        run = resume.describe(
            self.model, self.recipe, self.config, len(data), self.accelerator.num_processes
        )
        saved = resume.saved_state(self.config, run)
        first = saved["position"]["phase"] if saved else 0
        for index in range(first, len(self.recipe.phases)):
            self._run_phase(index, data, dev, run, saved)
            saved = None
        self._share_buffers()
        for tracker in self.accelerator.trackers:  # end_training would end the process group too
            tracker.finish()
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self._save_model()
        return self.history

    def _run_phase(self, index: int, data: Rows, dev: Any, run: Any, saved: Any) -> None:
        self.position = Position(phase=index, total=self.position.total)
        phase = self.recipe.phases[index]
        with closing(Stepper(self.model, phase, self.config, self.accelerator)) as stepper:
            self._run_epochs(stepper, data, dev, run, saved)

    def _run_epochs(
        self, stepper: Stepper, data: Rows, dev: Any, run: dict[str, Any], saved: Any
    ) -> None:
        config, phase = self.config, stepper.phase
        if saved:
            self._restore(saved, stepper)
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
        while position.epoch < epochs and position.step < steps:
            begin = time.perf_counter()
            stepper.begin_epoch(position.epoch / epochs)
            first, second = data.epoch(
                config.seed, position.epoch, phase.learner.splits, config.batch_size, rank, world
            )
            rest = first[position.batch * config.accumulation :]
            seed = (config.seed, position.epoch, rank, position.batch)
            for micro in chunks(data.feed(rest, config.workers, seed), config.accumulation):
                draw = partial(self._draw, data, second)
                L_MM, W_MM = stepper.step(micro, draw, position.step, steps)
                self._unread.append((position.step, L_MM, W_MM))
                position.batch += 1
                position.step += 1
                position.total += 1
                bar.update()
                due = config.checkpoint_every and position.step % config.checkpoint_every == 0
                if due or position.step % config.log_every == 0:
                    self._read_losses(stepper, bar)
                if due:
                    self._checkpoint(stepper, run)
                if position.step == steps:
                    break
            self._read_losses(stepper, bar)
            enough = self._end_epoch(dev, time.perf_counter() - begin)
            position.epoch = epochs if enough else position.epoch + 1
            position.batch = position.second = 0
            self._checkpoint(stepper, run)
        bar.close()

    def _draw(self, data: Rows, second: list[Indices]) -> Any:
        """The next batch of D2; after the last comes the first."""
        batch = data.fetch(second[self.position.second % len(second)])
        self.position.second += 1
        return batch

    def _length(self, phase: Phase, data: Rows) -> tuple[int, int]:
        """Epochs and steps of Θ of a phase."""
        config = self.config
        rows = math.ceil(len(data) / 2) if phase.learner.splits else len(data)
        per_batch = config.batch_size * self.accelerator.num_processes
        per_epoch = math.ceil(math.ceil(rows / per_batch) / config.accumulation)
        if config.max_steps is not None:
            return math.ceil(config.max_steps / per_epoch), config.max_steps
        epochs = phase.epochs or config.epochs
        return epochs, epochs * per_epoch

    def _read_losses(self, stepper: Stepper, bar: Any) -> None:
        """Bring the losses since the last reading from the device, check and log them."""
        if not self._unread:
            return
        L = torch.stack([L_MM for _, L_MM, _ in self._unread]).cpu()
        W = torch.stack([W_MM for _, _, W_MM in self._unread]).cpu()
        A_MM, position = stepper.A_MM.cpu(), self.position
        check_finite(L, A_MM, [step for step, _, _ in self._unread])
        self._unread.clear()
        row: dict[str, Any] = {
            "phase": position.phase,
            "epoch": position.epoch,
            "step": position.step,
            "loss": float((W * A_MM * L).sum((1, 2)).mean()),
            "own_M": [round(value, 6) for value in L.diagonal(dim1=1, dim2=2).mean(0).tolist()],
            "lr": stepper.optimizer.param_groups[0]["lr"],
        }
        self.accelerator.log({"loss": row["loss"], "lr": row["lr"]}, step=position.total)
        if stepper.omega.learner.learns:
            W_MM = stepper.omega.value().cpu()
            if not W_MM.isfinite().all():
                raise FloatingPointError(
                    f"the loss weights are NaN or infinite after step {position.step}, so a loss "
                    "on D2 was: look for broken inputs, or lower the learning rates; the last "
                    "checkpoint stands"
                )
            self._warn_of_lost_terms(W_MM[A_MM != 0])
            row["W_MM"] = [
                [round(w, 5) if a != 0 else None for w, a in zip(ws, factors, strict=True)]
                for ws, factors in zip(W_MM.tolist(), A_MM.tolist(), strict=True)
            ]
        self.history.steps.append(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}")

    def _warn_of_lost_terms(self, weights: Tensor) -> None:
        if not self._warned and bool((weights <= 0).any()):
            self._warned = True
            warnings.warn(
                f"a loss weight has fallen to {float(weights.min()):.3f}: its term no longer "
                "trains, or trains backwards; parametrization='softmax' has no such end",
                stacklevel=3,
            )

    def _end_epoch(self, dev: Any, seconds: float) -> bool:
        """Score all exits, keep the best; True when there was no better one for long enough."""
        position, best, patience = self.position, self.history.best, self.config.early_stopping
        check_parameters(self.model, position.step)
        row: dict[str, Any] = {
            "phase": position.phase,
            "epoch": position.epoch,
            "step": position.step,
            "seconds": round(seconds, 3),
        }
        self.history.epochs.append(row)
        if dev is None:
            return False
        self._share_buffers()
        outputs = collect(self.model, dev, self.config.metric, 2 * self.config.batch_size)
        # What the first process sees decides for all.
        (row["exits"],) = broadcast_object_list([exit_scores(outputs)])
        row["mean"] = sum(scores["score"] for scores in row["exits"]) / len(row["exits"])
        self.accelerator.log({"mean over exits": row["mean"]}, step=position.total)
        if best is None or best["phase"] != position.phase or row["mean"] > best["mean"]:
            self.history.best, position.stale = row, 0
            self._best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
            self._save_model()
            return False
        position.stale += 1
        return patience is not None and position.stale >= patience

    def _share_buffers(self) -> None:
        """Give every process the first one's BatchNorm statistics."""
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                buffer.copy_(broadcast(buffer))  # type: ignore[arg-type]

    def _save_model(self) -> None:
        if self.config.output is not None and self.accelerator.is_main_process:
            if self.model.num_classes > 1:  # a recipe's policy is one for classes
                self.model.policy = self.model.policy or self.recipe.policy
            self.model.save_pretrained(Path(self.config.output) / "model")
            self.history.save(Path(self.config.output) / "history.json")

    def _checkpoint(self, stepper: Stepper, run: dict[str, Any]) -> None:
        if self.config.output is None:
            return
        check_parameters(self.model, self.position.step)
        random_by_process = gather_object([checkpoint.random_states()])
        if not self.accelerator.is_main_process:
            return
        state = {
            "run": run,
            "position": asdict(self.position),
            "history": asdict(self.history),
            "model": self.model.state_dict(),
            "best": self._best,
            "stepper": stepper.state_dict(),
            "random": random_by_process,
        }
        checkpoint.save(Path(self.config.output), state)
        self.history.save(Path(self.config.output) / "history.json")

    def _restore(self, state: dict[str, Any], stepper: Stepper) -> None:
        """Put everything back to where the checkpoint was taken."""
        self.model.load_state_dict(state["model"])
        stepper.load_state_dict(state["stepper"])
        self._best = state["best"]
        self.history = History(**state["history"])
        self.position = Position(**state["position"])
        checkpoint.set_random_states(state["random"][self.accelerator.process_index])


def _check_dev(dev: Any, num_classes: int) -> None:
    """Refuse what would fail at the first epoch's end."""
    rows = dev.dataset if isinstance(dev, DataLoader) else dev
    if isinstance(rows, Dataset) and hasattr(rows, "__len__") and len(rows) == 0:  # type: ignore[arg-type]
        raise ValueError("the dev set is empty: pass None to train without one")
    labels = getattr(rows, "labels", None)
    if isinstance(labels, Tensor):
        check_labels(labels, num_classes, "the dev set")
