"""A phase's moving parts: Θ, Ω and τ, and how one step moves them.

Letters: M exits, B batch rows, C classes. Θ are the network's parameters, Ω the loss weights.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from multiexit.data.batches import num_learned_tokens, num_rows, with_shares
from multiexit.losses import topology
from multiexit.losses.temperature import Constant
from multiexit.losses.weights.hypergradient import Directional, LookBack, plain_attention
from multiexit.losses.weights.learners import Plan
from multiexit.losses.weights.state import Omega
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase
from multiexit.runtime import train_mode
from multiexit.training import layer_decay, sharding
from multiexit.training.accelerator import apart
from multiexit.training.averaging import Average
from multiexit.training.batch_norm import frozen_statistics
from multiexit.training.config import TrainConfig
from multiexit.training.optimizer import build_optimizer, learning_rate, restride, strided_as
from multiexit.training.phase import (
    factors,
    freeze_untrained,
    judged_exits,
    learns_from_labels,
    shared_parameters,
)
from multiexit.training.training_pass import Losses, Terms, TrainingPass

Shared = list[tuple[Any, float]]
"""Batches, each with its share of the rows of all, or of the tokens that are learned."""


class StepRecord(NamedTuple):
    """One optimiser step of Θ: its loss, and what that is made of; tensors stay on the device.

    Args:
        step: its number in the phase, counted from 0.
        loss: the scalar that Θ descended.
        L_MM: the loss matrix.
        A_MM: the factors that it used.
        W_MM: the weights Ω after it, where the terms' weights are learned.
        rows: over how many rows the loss and its terms are means.
        lr: Θ's learning rate.
        labelled: whether it learned from labels.
    """

    step: int
    loss: Tensor
    L_MM: Tensor
    A_MM: Tensor
    W_MM: Tensor | None
    rows: int
    lr: float
    labelled: bool


class Stepper:
    """Trains one phase, a step at a time.

    Args:
        model: what is trained; changed in place, but under FSDP2.
        phase: the phase of the recipe.
        config: the run's settings, with a number for λ2.
        accelerator: of the run.

    Raises:
        ValueError: a topology or factors that don't fit the model.

    Attributes:
        model: what is trained: the model given, or a sharded copy of it under FSDP2.
        A_MM: the factors of the terms in this step.
        omega: the weights Ω.
        tau: the temperature.
        labelled: whether the phase learns from labels.
        judged: the exits that it trains.
    """

    def __init__(
        self, model: MultiExitModel, phase: Phase, config: TrainConfig, accelerator: Accelerator
    ):
        model.backbone.find_overwritten()  # before anything is sharded or compiled
        self.model = model
        if accelerator.is_fsdp2:
            with apart(accelerator):
                self.model = sharding.shard(model, accelerator)
        self.phase = phase
        self.config = config
        self.accelerator = accelerator
        device = accelerator.device
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        factors = layer_decay.by_parameter(model, config.layer_decay, self.model)
        optimizer = build_optimizer(freeze_untrained(self.model, phase), config, factors)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        shared = shared_parameters(self.model)
        self._shared = [p in shared for p in self._parameters]
        self._shares_M = model.cost().shares_M
        self.labelled = learns_from_labels(phase, self._shares_M)
        self.judged = judged_exits(phase, self._shares_M)
        # Means are over tokens where these are classified.
        tokens = model.problem == "token-classification"
        self._count = num_learned_tokens if tokens else num_rows
        self._pass = TrainingPass(self.model, phase, self.labelled, config)
        self._along = Directional(Terms(self._pass), self._parameters)
        with warnings.catch_warnings():  # the keyword that replaces it is newer than torch 2.11
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            with apart(accelerator):
                prepared: Any = (
                    (self._pass, accelerator.prepare_optimizer(optimizer))
                    if accelerator.is_fsdp2
                    else accelerator.prepare(self._pass, optimizer)
                )
        self._wrapped, self.optimizer = prepared
        # What averages gradients over processes.
        self._synced_module = self.model if accelerator.is_fsdp2 else self._wrapped
        self._teaches_MM = topology.resolve(phase.topology, model.num_exits).to(device)
        assert config.omega_lr is not None
        rho = config.lr / config.omega_lr
        self.omega = Omega(phase.learner, self._teaches_MM, config.omega_lr, rho, config.seed)
        self.tau = phase.temperature.start(device)
        self._progress = 0.0  # the share of the phase that is done
        self._average = None if config.ema is None else Average(self.model, config.ema)
        self.begin_epoch(1.0)

    def begin_epoch(self, progress: float) -> None:
        """Set the factors A and the modules' modes for an epoch.

        Args:
            progress: the share of the phase that is done when the epoch ends, in (0, 1].
        """
        turns = factors(self.phase, self._teaches_MM, progress, self._shares_M)
        self._turns = [A_MM.to(self.accelerator.device) for A_MM in turns]
        self.A_MM = self._turns[0]
        train_mode(self.model)

    def step(
        self, batches: list[Any], draw: Callable[[], list[Any]], step: int, steps: int
    ) -> StepRecord:
        """Take a step: Θ ← Θ − λ1 ∇ (W ∘ A ∘ L_B1).sum(), then what Ω's learner plans.

        Args:
            batches: B1, in as many batches as are accumulated.
            draw: gives B2, the next of D2, in batches too.
            step, steps: this step of Θ, of how many.

        Returns:
            The step's losses and weights, on the device.
        """
        lr = self.phase.lr * learning_rate(self.config, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)  # older checkpoints have none
        self._progress = step / steps
        if self.phase.before_step is not None:
            self.phase.before_step(self.model, self._progress)
        self.A_MM = self._turns[step % len(self._turns)]
        W_MM = self.omega.value()
        plan = self.omega.plan(step)
        first = with_shares(batches, self._count)
        look_back = LookBack(self._along) if plan.hyper else None
        loss, L_MM = self._move_theta(first, W_MM * self.A_MM, look_back)
        if any(plan):
            self._move_omega(plan, first, draw, L_MM, look_back)
        learned_MM = self.omega.value() if self.omega.learns_terms else None
        if self._average is not None:
            self._average.update(step)
        rows = sum(map(num_rows, batches))
        return StepRecord(step, loss, L_MM, self.A_MM, learned_MM, rows, lr, self.labelled)

    def _move_theta(
        self, batches: Shared, factors_MM: Tensor, look_back: LookBack | None
    ) -> tuple[Tensor, Tensor]:
        """One step of Θ; the loss and L_MM before it, as means over the rows of all batches."""
        surgery = self.phase.surgery
        total, total_MM = torch.zeros_like(factors_MM[0, 0]), torch.zeros_like(factors_MM)
        parts = []
        for index, (batch, share) in enumerate(batches):
            if look_back is not None:
                look_back.note(batch, self.tau)
            synced = index == len(batches) - 1 and surgery is None
            attention = nullcontext() if look_back is None else plain_attention()
            sync = nullcontext() if synced else self.accelerator.no_sync(self._synced_module)
            with sync, attention:
                losses = self._wrapped(batch, self.tau)
                loss = share * self._weighted_loss(losses, factors_MM)
                if surgery is None:
                    self.accelerator.backward(loss)
                else:
                    split = [
                        share * (F_MM * losses.L_MM).sum() for F_MM in surgery.split(factors_MM)
                    ]
                    parts.append(self._gradients(split))
            total += loss.detach()
            total_MM += share * losses.L_MM.detach()
            self.tau = self.phase.temperature.after(self.tau, self._learned(losses), self._mean)
        if surgery is not None:
            merged = surgery.merge(self._mean_gradients(parts), self._shared)
            for p, g in zip(self._parameters, merged, strict=True):
                p.grad = strided_as(g, p)
        clipped: float | Tensor = 1.0
        if self.config.clip is not None:
            norm = self.accelerator.clip_grad_norm_(self._parameters, self.config.clip)
            assert norm is not None
            clipped = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        self.optimizer.step()
        if look_back is not None:
            look_back.stepped(self.optimizer.optimizer, clipped)
        self.optimizer.zero_grad()
        return total, total_MM

    def _learned(self, losses: Losses) -> Tensor:
        """All exits' logits of the decisions that are learned, [M, N, K]."""
        logits_MNK, _, share_N = self._pass.criterion.decisions(
            losses.logits_MBC, losses.labels_B, losses.asked_BT
        )
        if share_N is None or isinstance(self.phase.temperature, Constant):  # which doesn't look
            return logits_MNK
        return logits_MNK[:, share_N > 0]

    def _weighted_loss(self, losses: Losses, factors_MM: Tensor) -> Tensor:
        """The scalar that Θ descends."""
        loss = (factors_MM * losses.L_MM).sum()
        if losses.rows_MB is not None:  # in place of the rows' plain means
            w_MB = self.omega.rows(losses.rows_MB, losses.logits_MBC, self._progress)
            own_M = ((w_MB - 1) * losses.rows_MB).mean(1)
            loss = loss + (self.A_MM.diagonal() * own_M).sum()
        return loss if losses.extra is None else loss + losses.extra

    def _gradients(self, parts: list[Tensor]) -> list[list[Tensor]]:
        """Each part's gradient by the trained parameters, as the scaler wants it."""
        scaler = self.accelerator.scaler
        gradients = []
        for index, loss in enumerate(parts):
            part_gradients = torch.autograd.grad(
                scaler.scale(loss) if scaler else loss,
                self._parameters,
                retain_graph=index < len(parts) - 1,
                allow_unused=True,
            )
            pairs = zip(part_gradients, self._parameters, strict=True)
            gradients.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
        return gradients

    def _mean_gradients(self, batches: list[list[list[Tensor]]]) -> list[list[Tensor]]:
        """Gradients by batch and part, as the means over processes of each part's sums."""
        return [
            [self._mean(torch.stack(gs).sum(0)) for gs in zip(*same, strict=True)]
            for same in zip(*batches, strict=True)
        ]

    def _move_omega(
        self,
        plan: Plan,
        batches: Shared,
        draw: Callable[[], list[Any]],
        stepping_MM: Tensor,
        look_back: LookBack | None,
    ) -> None:
        terms, rows = {"stepping": stepping_MM}, []
        if plan.first:
            terms["first"] = self._current_losses(batches)
        second = with_shares(draw() if plan.second or plan.hyper else [], self._count)
        if plan.second:
            terms["second"] = self._current_losses(second)
        if look_back is not None:
            pairs = zip(self._hypergradients(look_back, second), batches, strict=True)
            gradients = [(losses, share * gradient) for (losses, gradient), (_, share) in pairs]
            if self.accelerator.scaler is not None and not self._all_finite(gradients):
                return  # fp16 overflowed
            if self.phase.learner.weighs_rows:
                rows = gradients
            terms["hyper"] = torch.zeros_like(stepping_MM)
            if not rows:
                terms["hyper"] = torch.stack([gradient_MM for _, gradient_MM in gradients]).sum(0)
        # The same on every process: averaged before Ω moves.
        terms = {name: self._mean(term_MM) for name, term_MM in terms.items()}
        self.omega.update(plan, self.A_MM, terms, rows, self._mean)

    def _hypergradients(self, look_back: LookBack, second: Shared) -> list[tuple[Tensor, Tensor]]:
        """Per batch of B1: the terms, and the outer loss's gradient on B2 by their factors."""
        outer = [torch.zeros_like(p) for p in self._parameters]
        with frozen_statistics(self.model):
            for batch, share in second:
                losses = self._pass(batch, self.tau)
                loss = self.phase.learner.outer(
                    losses.logits_MBC.float(), losses.labels_B, self._pass.criterion
                )
                (gradients,) = self._gradients([share * loss])
                outer = [total + g for total, g in zip(outer, gradients, strict=True)]
            if self.accelerator.scaler is not None:
                outer = [v / self.accelerator.scaler.get_scale() for v in outer]
            return look_back.gradient([self._mean(v) for v in outer])

    def _all_finite(self, gradients: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether no process has an infinite gradient; waits for the device."""
        finite = torch.stack([gradient.isfinite().all() for _, gradient in gradients]).all()
        return float(self._mean(finite.float())) == 1.0

    def _current_losses(self, batches: Shared) -> Tensor:
        """L_MM over the rows of batches with the present Θ, in train mode, without gradient."""
        with torch.no_grad(), frozen_statistics(self.model):
            parts = [share * self._wrapped(batch, self.tau).L_MM for batch, share in batches]
        return torch.stack(parts).sum(0)

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        return self.accelerator.reduce(value, "mean")  # type: ignore[return-value]

    def kept(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are judged and kept: the averages, with `ema`."""
        return nullcontext() if self._average is None else self._average.used()

    def close(self) -> None:
        """Take accelerate's wrapping off the model."""
        self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step moves, but for the model; all processes must call it."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": sharding.gathered(self.optimizer.state_dict()),
            "omega": self.omega.state_dict(),
            "tau": self.tau,
            "scaler": scaler.state_dict() if scaler else None,
            "ema": self._average and self._average.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, but for the average of the weights."""
        moments = deepcopy(state["optimizer"])
        sharding.shard_state(moments["state"], self._parameters)
        self.optimizer.load_state_dict(moments)
        restride(self.optimizer)
        self.omega.load_state_dict(state["omega"])
        tau = state["tau"]
        self.tau = tau.to(self.accelerator.device) if isinstance(tau, Tensor) else tau
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def load_average(self, state: dict[str, Any]) -> None:
        """Take back the average in what `state_dict` gave; the model has its weights already."""
        if self._average is not None:
            self._average.load(state.get("ema"))
