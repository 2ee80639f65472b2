"""The training loop, on accelerate: CPU, one GPU or many.

Letters: M exits, B batch rows, C classes. Θ are the network's parameters, Ω the loss weights.

    for each phase of the recipe
        for each epoch
            cut the training set into D1 and D2, from (seed, epoch)
            for each batch B1 of D1
                Θ ← Θ − λ1 ∇ (W ∘ A ∘ L_B1).sum()
                Ω ← what its learner plans for this step
            score every exit on the dev set; keep the best mean
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from multiexit import checkpoint, losses, optim, topology
from multiexit.config import TrainConfig
from multiexit.data import batches
from multiexit.evaluate import collect, exit_scores
from multiexit.history import History
from multiexit.model import MultiExitModel
from multiexit.omega import Omega
from multiexit.recipes import Phase, Recipe


@dataclass
class Position:
    """Where a run is; saved in checkpoints.

    Args:
        phase, epoch: running ones.
        batch: Θ's steps done in this epoch; `step` those done in this phase.
        second: batches drawn from D2 in this epoch.
        stale: epochs since the best.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
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
        self.accelerator = Accelerator(
            mixed_precision=self.config.mixed_precision,
            log_with=list(self.config.trackers) or None,
            project_dir=self.config.output,
        )
        self.history = History()
        self.position = Position()
        self._best: dict[str, Tensor] | None = None
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # step, L_MM, W_MM on the device

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
        config = self.config
        if isinstance(train, DataLoader):
            config = self.config = replace(config, batch_size=train.batch_size or config.batch_size)
        data = _Rows(train, self.model.num_classes)
        set_seed(config.seed)
        self.accelerator.init_trackers("multiexit")
        saved = self._saved_state()
        first = Position(**saved["position"]).phase if saved else 0
        for index in range(first, len(self.recipe.phases)):
            self._run_phase(index, data, dev, saved)
            saved = None
        self.accelerator.end_training()
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self._save_model()
        return self.history

    def _run_phase(self, index: int, data: "_Rows", dev: Any, saved: Any) -> None:
        config, phase, M = self.config, self.recipe.phases[index], self.model.num_exits
        device = self.accelerator.device
        self.position = Position(phase=index)
        parameters = optim.trainable(self.model, phase)
        if not parameters:
            raise ValueError(f"phase {index} of {self.recipe.name!r} has nothing to train")
        model, optimizer = self.accelerator.prepare(self.model, optim.optimizer(parameters, config))
        teaches_MM = topology.resolve(phase.topology, M).to(device)
        rho = config.lr / config.omega_lr
        omega = Omega(phase.learner, teaches_MM, config.omega_lr, rho, config.seed)
        tau = phase.temperature.start(device)
        shares_M = self.model.cost().shares_M
        epochs, steps = self._length(phase, data)
        if saved:
            tau = self._restore(saved, optimizer, omega)
        position = self.position
        bar = tqdm(
            total=steps,
            initial=position.step,
            desc=self.recipe.name,
            disable=None if config.progress and self.accelerator.is_main_process else True,
        )
        while position.epoch < epochs and position.step < steps:
            begin = time.perf_counter()
            A_MM = phase.coefficients(teaches_MM, position.epoch / epochs, shares_M).to(device)
            optim.train_mode(self.model, phase)
            first, second = self._epoch_batches(data, phase)
            rest = first[position.batch * config.accumulation :]
            for micro in batches.chunks(data.feed(rest, config.workers), config.accumulation):
                for group in optimizer.param_groups:
                    group["lr"] = optim.rate(config, position.step, steps)
                W_MM = omega.value()
                L_MM, tau = self._step(model, optimizer, phase, micro, W_MM * A_MM, tau)
                self._learn_weights(model, omega, phase, A_MM, L_MM, micro, second, data, tau)
                self._unread.append((position.step, L_MM, W_MM))
                position.batch += 1
                position.step += 1
                bar.update()
                if position.step % config.log_every == 0:
                    self._read_losses(A_MM, optimizer, omega, bar)
                if config.checkpoint_every and position.step % config.checkpoint_every == 0:
                    self._read_losses(A_MM, optimizer, omega, bar)
                    self._checkpoint(optimizer, omega, tau)
                if position.step == steps:
                    break
            self._read_losses(A_MM, optimizer, omega, bar)
            enough = self._end_epoch(dev, time.perf_counter() - begin)
            position.epoch, position.batch, position.second = position.epoch + 1, 0, 0
            if enough:
                position.epoch = epochs
            self._checkpoint(optimizer, omega, tau)
        bar.close()
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _step(
        self,
        model: nn.Module,
        optimizer: Any,
        phase: Phase,
        micro: list[Any],
        factors_MM: Tensor,
        tau: float | Tensor,
    ) -> tuple[Tensor, float | Tensor]:
        """One step of Θ over the micro-batches: L_B1 before the step, and τ after it."""
        total_MM = torch.zeros_like(factors_MM)
        for index, batch in enumerate(micro):
            is_last = index == len(micro) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                L_MM, logits_MBC = _losses(model, batch, tau, phase, self.accelerator.device)
                L_MM = L_MM / len(micro)
                self.accelerator.backward((factors_MM * L_MM).sum())
            total_MM += L_MM.detach()
            tau = phase.temperature.after(tau, logits_MBC)
        if self.config.clip is not None:
            self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total_MM, tau

    def _learn_weights(
        self,
        model: nn.Module,
        omega: Omega,
        phase: Phase,
        A_MM: Tensor,
        stepping_MM: Tensor,
        micro: list[Any],
        second: list[batches.Indices],
        data: "_Rows",
        tau: float | Tensor,
    ) -> None:
        """Ω's step, if its learner plans one; the passes it needs are without gradient."""
        plan = omega.plan(self.position.step)
        if not any(plan):
            return

        def mean_losses(some: list[Any]) -> Tensor:
            with torch.no_grad(), _frozen_statistics(self.model):
                device = self.accelerator.device
                each = [_losses(model, batch, tau, phase, device)[0] for batch in some]
            return torch.stack(each).mean(0)

        terms = {"stepping": stepping_MM}
        if plan.first:
            terms["first"] = mean_losses(micro)
        if plan.second:
            drawn = []
            for _ in micro:
                drawn.append(data.fetch(second[self.position.second % len(second)]))
                self.position.second += 1
            terms["second"] = mean_losses(drawn)
        # The same on every process: averaged before Ω moves.
        terms = {name: self.accelerator.reduce(L_MM, "mean") for name, L_MM in terms.items()}
        omega.update(plan, A_MM, terms)  # type: ignore[arg-type]

    def _length(self, phase: Phase, data: "_Rows") -> tuple[int, int]:
        """Epochs and steps of Θ of a phase."""
        config = self.config
        rows = -(-len(data) // 2) if phase.learner.splits else len(data)
        per_batch = config.batch_size * self.accelerator.num_processes
        per_epoch = -(-(-(-rows // per_batch)) // config.accumulation)
        if config.max_steps is not None:
            return -(-config.max_steps // per_epoch), config.max_steps
        epochs = phase.epochs or config.epochs
        return epochs, epochs * per_epoch

    def _epoch_batches(
        self, data: "_Rows", phase: Phase
    ) -> tuple[list[batches.Indices], list[batches.Indices]]:
        """This process's batches of D1 and of D2."""
        config, world = self.config, self.accelerator.num_processes
        seed, epoch = config.seed, self.position.epoch
        first, second = batches.split_epoch(len(data), seed, epoch, phase.learner.splits)

        def cut(rows: batches.Indices) -> list[batches.Indices]:
            made = batches.group(rows, config.batch_size * world, data.lengths, seed, epoch)
            return batches.shard(made, self.accelerator.process_index, world)

        return cut(first), cut(second)

    def _read_losses(self, A_MM: Tensor, optimizer: Any, omega: Omega, bar: Any) -> None:
        """Bring the losses since the last reading from the device, check and log them."""
        if not self._unread:
            return
        L = torch.stack([L_MM for _, L_MM, _ in self._unread])
        W = torch.stack([W_MM for _, _, W_MM in self._unread])
        L, W, A_MM = L.cpu(), W.cpu(), A_MM.cpu()
        _check_finite(L, A_MM, [step for step, _, _ in self._unread])
        position = self.position
        row: dict[str, Any] = {
            "phase": position.phase,
            "epoch": position.epoch,
            "step": position.step,
            "loss": float((W * A_MM * L).sum((1, 2)).mean()),
            "own_M": [round(value, 6) for value in L.diagonal(dim1=1, dim2=2).mean(0).tolist()],
            "lr": optimizer.param_groups[0]["lr"],
        }
        self.accelerator.log({"loss": row["loss"], "lr": row["lr"]}, step=position.step)
        if omega.learner.learns:
            row["W_MM"] = [
                [round(w, 5) if a != 0 else None for w, a in zip(ws, factors, strict=True)]
                for ws, factors in zip(omega.value().tolist(), A_MM.tolist(), strict=True)
            ]
        self.history.steps.append(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}")
        self._unread.clear()

    def _end_epoch(self, dev: Any, seconds: float) -> bool:
        """Score all exits, keep the best; True when there was no better one for long enough."""
        position, best = self.position, self.history.best
        row: dict[str, Any] = {
            "phase": position.phase,
            "epoch": position.epoch,
            "step": position.step,
            "seconds": round(seconds, 3),
        }
        self.history.epochs.append(row)
        if dev is None:
            return False
        outputs = collect(self.model, dev, self.config.metric, 2 * self.config.batch_size)
        row["exits"] = exit_scores(outputs)
        row["mean"] = sum(scores["score"] for scores in row["exits"]) / len(row["exits"])
        self.accelerator.log({"mean over exits": row["mean"]}, step=position.step)
        if best is None or best["phase"] != position.phase or row["mean"] > best["mean"]:
            self.history.best, position.stale = row, 0
            self._best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
            self._save_model()
            return False
        position.stale += 1
        return (
            self.config.early_stopping is not None and position.stale >= self.config.early_stopping
        )

    def _save_model(self) -> None:
        if self.config.output is not None and self.accelerator.is_main_process:
            self.model.policy = self.model.policy or self.recipe.policy
            self.model.save_pretrained(Path(self.config.output) / "model")
            self.history.save(Path(self.config.output) / "history.json")

    def _checkpoint(self, optimizer: Any, omega: Omega, tau: float | Tensor) -> None:
        if self.config.output is None or not self.accelerator.is_main_process:
            return
        folder = Path(self.config.output)
        state = {
            "run": self._fingerprint(),
            "position": asdict(self.position),
            "history": asdict(self.history),
            "model": self.model.state_dict(),
            "best": self._best,
            "optimizer": optimizer.state_dict(),
            "omega": omega.state_dict(),
            "tau": tau,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": checkpoint.random_states(),
        }
        checkpoint.save(folder, state)
        self.history.save(folder / "history.json")

    def _saved_state(self) -> Any | None:
        """The checkpoint to go on from, if that is wanted and there is one."""
        if not self.config.resume:
            return None
        state = checkpoint.load(Path(str(self.config.output)))
        if state is not None and state["run"] != self._fingerprint():
            mine = self._fingerprint()
            different = sorted(k for k in mine if mine[k] != state["run"].get(k))
            raise ValueError(
                f"the checkpoint in {self.config.output} is of another run; it differs in "
                + ", ".join(
                    f"{k}: {state['run'].get(k)!r} there, {mine[k]!r} here" for k in different
                )
            )
        return state

    def _restore(self, state: Any, optimizer: Any, omega: Omega) -> float | Tensor:
        """Put everything back to where the checkpoint was taken; return τ."""
        self.model.load_state_dict(state["model"])
        self._best = state["best"]
        optimizer.load_state_dict(deepcopy(state["optimizer"]))
        omega.load_state_dict(state["omega"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.history = History(**state["history"])
        self.position = Position(**state["position"])
        checkpoint.set_random_states(state["random"])
        tau = state["tau"]
        return tau.to(self.accelerator.device) if isinstance(tau, Tensor) else tau

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        free = {"output", "resume", "checkpoint_every", "trackers", "workers", "progress"}
        config = {k: v for k, v in asdict(self.config).items() if k not in free}
        return {
            "recipe": self.recipe.name,
            "learners": [repr(phase.learner) for phase in self.recipe.phases],
            "exits": list(self.model.exits),
            **config,
        }


class _Rows:
    """The training set as the loop reads it: rows by index."""

    def __init__(self, source: Dataset[Any] | DataLoader[Any], num_classes: int):
        self.collate = None
        if isinstance(source, DataLoader):
            self.collate = source.collate_fn
            source = source.dataset
        if not isinstance(source, Dataset):
            raise ValueError(
                "train must be a torch Dataset or DataLoader (its rows are split anew each epoch); "
                f"got {type(source).__name__}"
            )
        self.dataset = source
        self.lengths = batches.lengths_of(source)
        self.collate = self.collate or batches.collate_of(source)
        labels = getattr(source, "labels", None)
        if isinstance(labels, Tensor):
            losses.check_labels(labels, num_classes)
        if len(self) < 2:
            raise ValueError(f"a training set needs at least 2 rows, got {len(self)}")

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def fetch(self, rows: batches.Indices) -> Any:
        return batches.fetch(self.dataset, rows, self.collate)

    def feed(self, order: list[batches.Indices], workers: int) -> Iterator[Any]:
        # A generator of its own: making an iterator must not draw from the run's.
        generator = torch.Generator().manual_seed(0)
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=order,
                collate_fn=self.collate,
                num_workers=workers,
                generator=generator,
            )
        )


def _losses(
    model: nn.Module, batch: Any, tau: float | Tensor, phase: Phase, device: torch.device
) -> tuple[Tensor, Tensor]:
    """L_MM and the logits of a batch."""
    args, inputs, labels_B = batches.unpack(batch)
    logits_MBC = model(*batches.move(args, device), **batches.move(inputs, device))
    losses.check_labels(labels_B, logits_MBC.shape[-1])
    labels_B = labels_B.to(device, non_blocking=True)
    return losses.loss_matrix(logits_MBC, labels_B, tau, phase.divergence), logits_MBC


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch as in training, and its running statistics stay."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [m.track_running_stats for m in norms]
    for m in norms:
        if m.training:
            m.track_running_stats = False
    try:
        yield
    finally:
        for m, tracked in zip(norms, tracking, strict=True):
            m.track_running_stats = tracked


def _check_finite(L: Tensor, A_MM: Tensor, steps: list[int]) -> None:
    """Raise at the first term that counts and is NaN or infinite."""
    bad = (~torch.isfinite(L) & (A_MM != 0)).nonzero()
    if len(bad):
        index, i, j = bad[0].tolist()
        term = f"exit {i}'s own loss" if i == j else f"what exit {i} learns from exit {j}"
        raise FloatingPointError(
            f"{term} is {float(L[index, i, j])} at step {steps[index]}: lower the learning rate, or "
            "look for broken inputs; the last checkpoint stands"
        )
