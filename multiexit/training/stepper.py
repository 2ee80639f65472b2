"""A phase's moving parts: Θ, Ω and τ, and how one step moves them.

Letters: M exits, B batch rows, C classes. Θ are the network's parameters, Ω the loss weights.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from multiexit.data.batches import num_rows, shares
from multiexit.losses import topology
from multiexit.losses.weights.hypergradient import LookBack, plain_attention
from multiexit.losses.weights.learners import Plan
from multiexit.losses.weights.state import Omega
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase
from multiexit.runtime import train_mode
from multiexit.training import optimizer, sharding
from multiexit.training import phase as phases
from multiexit.training.accelerator import apart
from multiexit.training.batch_norm import frozen_statistics
from multiexit.training.config import TrainConfig
from multiexit.training.training_pass import Losses, Terms, TrainingPass


class Step(NamedTuple):
    """What a step of Θ went by: the loss it descended, its terms, their weights and factors.

    `rows`, a float, is over how many rows the loss and its terms are means.
    """

    loss: Tensor
    L_MM: Tensor
    W_MM: Tensor
    A_MM: Tensor
    rows: Tensor


class Stepper:
    """Trains one phase, a step at a time.

    Args:
        model, phase, config, accelerator: as the trainer has them.

    Attributes:
        model: what is trained: the model given, or a sharded copy of it under FSDP2.
        A_MM: the factors of the terms in this step.
        omega: the weights Ω.
        tau: the temperature.
        labelled: whether the phase learns from labels.
    """

    def __init__(
        self, model: MultiExitModel, phase: Phase, config: TrainConfig, accelerator: Accelerator
    ):
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
        made = optimizer.optimizer(phases.trainable(self.model, phase), config)
        self._parameters = [p for group in made.param_groups for p in group["params"]]
        shared = phases.shared(self.model)
        self._shared = [p in shared for p in self._parameters]
        self.labelled = phases.labelled(model, phase)
        self._pass = TrainingPass(self.model, phase, self.labelled, config)
        with warnings.catch_warnings():  # the keyword that replaces it is newer than torch 2.11
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            with apart(accelerator):
                prepared: Any = (
                    (self._pass, accelerator.prepare_optimizer(made))
                    if accelerator.is_fsdp2
                    else accelerator.prepare(self._pass, made)
                )
        self._wrapped, self.optimizer = prepared
        # What averages gradients over processes.
        self._averaging = self.model if accelerator.is_fsdp2 else self._wrapped
        self._teaches_MM = topology.resolve(phase.topology, model.num_exits).to(device)
        self._shares_M = model.cost().shares_M
        rho = config.lr / config.omega_lr
        self.omega = Omega(phase.learner, self._teaches_MM, config.omega_lr, rho, config.seed)
        self.tau = phase.temperature.start(device)
        self.begin_epoch(1.0)

    def begin_epoch(self, progress: float) -> None:
        """Set the factors A and the modules' modes, for an epoch at whose end this much is done."""
        turns = phases.factors(self.phase, self._teaches_MM, progress, self._shares_M)
        self._turns = [A_MM.to(self.accelerator.device) for A_MM in turns]
        self.A_MM = self._turns[0]
        train_mode(self.model)

    def step(self, micro: list[Any], draw: Callable[[], Any], step: int, steps: int) -> Step:
        """Θ ← Θ − λ1 ∇ (W ∘ A ∘ L_B1).sum(), then what Ω's learner plans.

        Args:
            micro: B1, in as many batches as are accumulated.
            draw: gives the next batch of D2.
            step, steps: this step of Θ, of how many.

        Returns:
            What the step went by, on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.lr * optimizer.rate(self.config, step, steps)
        if self.phase.before_step is not None:
            self.phase.before_step(self.model, step / steps)
        self.A_MM = self._turns[step % len(self._turns)]
        W_MM = self.omega.value()
        plan = self.omega.plan(step)
        look = LookBack(Terms(self._pass), self._parameters) if plan.hyper else None
        loss, L_MM = self._move_theta(micro, W_MM * self.A_MM, look)
        if any(plan):
            self._move_omega(plan, micro, draw, L_MM, look)
        rows = torch.tensor(float(sum(map(num_rows, micro))))
        return Step(loss, L_MM, W_MM, self.A_MM, rows)

    def _move_theta(
        self, micro: list[Any], factors_MM: Tensor, look: LookBack | None
    ) -> tuple[Tensor, Tensor]:
        """One step of Θ; the loss and L_MM before it, as means over the rows of all batches."""
        surgery = self.phase.surgery
        total, total_MM = torch.zeros_like(factors_MM[0, 0]), torch.zeros_like(factors_MM)
        parts = []
        for index, (batch, share) in enumerate(zip(micro, shares(micro), strict=True)):
            if look is not None:
                look.note(batch, self.tau)
            synced = index == len(micro) - 1 and surgery is None
            attention = nullcontext() if look is None else plain_attention()
            sync = nullcontext() if synced else self.accelerator.no_sync(self._averaging)
            with sync, attention:
                found = self._wrapped(batch, self.tau)
                loss = share * self._weighed(found, factors_MM)
                if surgery is None:
                    self.accelerator.backward(loss)
                else:
                    split = [
                        share * (F_MM * found.L_MM).sum() for F_MM in surgery.split(factors_MM)
                    ]
                    parts.append(self._gradients(split))
            total += loss.detach()
            total_MM += share * found.L_MM.detach()
            self.tau = self.phase.temperature.after(self.tau, found.logits_MBC, self._mean)
        if surgery is not None:
            merged = surgery.merge(self._summed(parts), self._shared)
            for p, g in zip(self._parameters, merged, strict=True):
                p.grad = optimizer.laid_out(g, p)
        clipped: float | Tensor = 1.0
        if self.config.clip is not None:
            norm = self.accelerator.clip_grad_norm_(self._parameters, self.config.clip)
            assert norm is not None
            clipped = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        self.optimizer.step()
        if look is not None:
            look.stepped(self.optimizer.optimizer, clipped)
        self.optimizer.zero_grad()
        return total, total_MM

    def _weighed(self, found: Losses, factors_MM: Tensor) -> Tensor:
        """The scalar that Θ descends."""
        loss = (factors_MM * found.L_MM).sum()
        if found.rows_MB is not None:  # in place of the rows' plain means
            w_MB = self.omega.rows(found.rows_MB)
            own_M = ((w_MB - 1) * found.rows_MB).mean(1)
            loss = loss + (self.A_MM.diagonal() * own_M).sum()
        return loss if found.extra is None else loss + found.extra

    def _gradients(self, parts: list[Tensor]) -> list[list[Tensor]]:
        """Each part's gradient by the trained parameters, as the scaler wants it."""
        scaler = self.accelerator.scaler
        made = []
        for index, loss in enumerate(parts):
            found = torch.autograd.grad(
                scaler.scale(loss) if scaler else loss,
                self._parameters,
                retain_graph=index < len(parts) - 1,
                allow_unused=True,
            )
            pairs = zip(found, self._parameters, strict=True)
            made.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
        return made

    def _summed(self, batches: list[list[list[Tensor]]]) -> list[list[Tensor]]:
        """Gradients by batch and part, as the means over processes of each part's sums."""
        return [
            [self._mean(torch.stack(gs).sum(0)) for gs in zip(*same, strict=True)]
            for same in zip(*batches, strict=True)
        ]

    def _move_omega(
        self,
        plan: Plan,
        micro: list[Any],
        draw: Callable[[], Any],
        stepping_MM: Tensor,
        look: LookBack | None,
    ) -> None:
        terms, rows = {"stepping": stepping_MM}, []
        if plan.first:
            terms["first"] = self._losses_now(micro)
        second = [draw() for _ in micro] if plan.second or plan.hyper else []
        if plan.second:
            terms["second"] = self._losses_now(second)
        if look is not None:
            found = [
                (own, share * slope)
                for (own, slope), share in zip(
                    self._look_back(look, second), shares(micro), strict=True
                )
            ]
            if self.accelerator.scaler is not None and not self._all_finite(found):
                return  # fp16 overflowed
            if self.phase.learner.weighs_rows:
                rows = found
            terms["hyper"] = torch.zeros_like(stepping_MM)
            if not rows:
                terms["hyper"] = torch.stack([slope_MM for _, slope_MM in found]).sum(0)
        # The same on every process: averaged before Ω moves.
        terms = {name: self._mean(term_MM) for name, term_MM in terms.items()}
        self.omega.update(plan, self.A_MM, terms, rows, self._mean)

    def _look_back(self, look: LookBack, second: list[Any]) -> list[tuple[Tensor, Tensor]]:
        """Per batch of B1: the terms, and the outer loss's gradient on B2 by their factors."""
        outer = [torch.zeros_like(p) for p in self._parameters]
        with frozen_statistics(self.model):
            for batch, share in zip(second, shares(second), strict=True):
                found = self._pass(batch, self.tau)
                loss = self.phase.learner.outer(found.logits_MBC.float(), found.labels_B)
                (gradients,) = self._gradients([share * loss])
                outer = [total + g for total, g in zip(outer, gradients, strict=True)]
            if self.accelerator.scaler is not None:
                outer = [v / self.accelerator.scaler.get_scale() for v in outer]
            return look.gradient([self._mean(v) for v in outer])

    def _all_finite(self, found: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether no process has an infinite gradient; waits for the device."""
        finite = torch.stack([slope.isfinite().all() for _, slope in found]).all()
        return float(self._mean(finite.float())) == 1.0

    def _losses_now(self, some: list[Any]) -> Tensor:
        """L_MM over the rows of batches with the present Θ, in train mode, without gradient."""
        with torch.no_grad(), frozen_statistics(self.model):
            each = [self._wrapped(batch, self.tau).L_MM for batch in some]
        return torch.stack([share * L for L, share in zip(each, shares(some), strict=True)]).sum(0)

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        return self.accelerator.reduce(value, "mean")  # type: ignore[return-value]

    def close(self) -> None:
        """Take accelerate's wrapping off the model."""
        self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step moves, but for the model; all processes must call it."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": sharding.whole(self.optimizer.state_dict()),
            "omega": self.omega.state_dict(),
            "tau": self.tau,
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        moments = deepcopy(state["optimizer"])
        sharding.shard_state(moments["state"], self._parameters)
        self.optimizer.load_state_dict(moments)
        optimizer.lay_out(self.optimizer)
        self.omega.load_state_dict(state["omega"])
        tau = state["tau"]
        self.tau = tau.to(self.accelerator.device) if isinstance(tau, Tensor) else tau
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
