"""A phase's moving parts: Θ, Ω and τ, and how one step moves them.

Letters: M exits, B batch rows, C classes. Θ are the network's parameters, Ω the loss weights.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from multiexit import optim, topology
from multiexit.config import TrainConfig
from multiexit.model import MultiExitModel
from multiexit.omega import Omega
from multiexit.recipes import Phase
from multiexit.step import batch_losses, frozen_statistics


class Stepper:
    """Trains one phase, a step at a time.

    Args:
        model, phase, config, accelerator: as the trainer has them.

    Raises:
        ValueError: the phase has nothing to train.

    Attributes:
        A_MM: the factors of the terms in this epoch.
        omega: the weights Ω.
        tau: the temperature.
    """

    def __init__(
        self, model: MultiExitModel, phase: Phase, config: TrainConfig, accelerator: Accelerator
    ):
        self.model = model
        self.phase = phase
        self.config = config
        self.accelerator = accelerator
        device = accelerator.device
        self._trained_before = [p.requires_grad for p in model.parameters()]
        parameters = optim.trainable(model, phase)
        if not parameters:
            raise ValueError(f"a phase that trains {phase.train!r} has nothing to train here")
        self._wrapped, self.optimizer = accelerator.prepare(
            model, optim.optimizer(parameters, config)
        )
        self._teaches_MM = topology.resolve(phase.topology, model.num_exits).to(device)
        self._shares_M = model.cost().shares_M
        rho = config.lr / config.omega_lr
        self.omega = Omega(phase.learner, self._teaches_MM, config.omega_lr, rho, config.seed)
        self.tau = phase.temperature.start(device)
        self.begin_epoch(0.0)

    def begin_epoch(self, progress: float) -> None:
        """Set the factors A for this much of the phase, in [0, 1), and the modules' modes."""
        A_MM = self.phase.coefficients(self._teaches_MM, progress, self._shares_M)
        M = len(self._teaches_MM)
        if A_MM.shape != (M, M) or not A_MM.isfinite().all():
            raise ValueError(
                f"coefficients for {M} exits are finite numbers [{M}, {M}]; got "
                f"{tuple(A_MM.shape)} {A_MM.tolist()}"
            )
        self.A_MM = A_MM.to(self.accelerator.device)
        optim.train_mode(self.model, self.phase)

    def step(
        self, micro: list[Any], draw: Callable[[], Any], step: int, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Θ ← Θ − λ1 ∇ (W ∘ A ∘ L_B1).sum(), then what Ω's learner plans.

        Args:
            micro: B1, in as many batches as are accumulated.
            draw: gives the next batch of D2.
            step, steps: this step of Θ, of how many.

        Returns:
            L_MM before the step and the W_MM it was weighed with, on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = optim.rate(self.config, step, steps)
        W_MM = self.omega.value()
        L_MM = self._move_theta(micro, W_MM * self.A_MM)
        self._move_omega(micro, draw, step, L_MM)
        return L_MM, W_MM

    def _move_theta(self, micro: list[Any], factors_MM: Tensor) -> Tensor:
        total_MM = torch.zeros_like(factors_MM)
        for index, batch in enumerate(micro):
            is_last = index == len(micro) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self._wrapped):
                L_MM, logits_MBC = self._losses(batch)
                L_MM = L_MM / len(micro)
                self.accelerator.backward((factors_MM * L_MM).sum())
            total_MM += L_MM.detach()
            self.tau = self.phase.temperature.after(self.tau, logits_MBC, self._mean)
        if self.config.clip is not None:
            self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total_MM

    def _move_omega(
        self, micro: list[Any], draw: Callable[[], Any], step: int, stepping_MM: Tensor
    ) -> None:
        plan = self.omega.plan(step)
        terms = {"stepping": stepping_MM}
        if plan.first:
            terms["first"] = self._losses_now(micro)
        if plan.second:
            terms["second"] = self._losses_now([draw() for _ in micro])
        if any(plan):  # the same on every process: averaged before Ω moves
            terms = {name: self._mean(L_MM) for name, L_MM in terms.items()}
            self.omega.update(plan, self.A_MM, terms)

    def _losses_now(self, some: list[Any]) -> Tensor:
        """Mean L_MM of batches with the present Θ, in train mode, without gradient."""
        with torch.no_grad(), frozen_statistics(self.model):
            return torch.stack([self._losses(batch)[0] for batch in some]).mean(0)

    def _losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        device = self.accelerator.device
        return batch_losses(self._wrapped, batch, self.tau, self.phase.divergence, device)

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        return self.accelerator.reduce(value, "mean")  # type: ignore[return-value]

    def close(self) -> None:
        """Take accelerate's wrapping off the model; what trained before the phase does again."""
        self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        for p, trained in zip(self.model.parameters(), self._trained_before, strict=True):
            p.requires_grad_(trained)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step moves, but for the model."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "omega": self.omega.state_dict(),
            "tau": self.tau,
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.omega.load_state_dict(state["omega"])
        tau = state["tau"]
        self.tau = tau.to(self.accelerator.device) if isinstance(tau, Tensor) else tau
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
