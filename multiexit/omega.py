"""Ω while training runs: its value, its optimiser, and how often it has been stepped.

Letters: M exits.
"""

from typing import Any

import torch
from torch import Tensor

from multiexit.weights import Learner, Plan


class Omega:
    """The weights of the loss terms and what learns them.

    Args:
        learner: how they are learned.
        teaches_MM: who teaches whom.
        lr: λ2, of Adam without decay.
        rho: ρ = λ1 / λ2.
        seed: of weights that are drawn.
    """

    def __init__(self, learner: Learner, teaches_MM: Tensor, lr: float, rho: float, seed: int):
        self.learner = learner
        self.rho = rho
        self.weights = learner.weights(teaches_MM.cpu(), seed).to(teaches_MM.device)
        self.optimizer = (
            torch.optim.Adam(self.weights.parameters(), lr, weight_decay=0.0)
            if learner.learns
            else None
        )

    def value(self) -> Tensor:
        """W_MM, cut from its graph."""
        return self.weights().detach().clone()

    def plan(self, step: int) -> Plan:
        """What Ω does at this step of Θ."""
        return self.learner.plan(step, self.rho)

    def update(self, plan: Plan, A_MM: Tensor, terms: dict[str, Tensor]) -> None:
        """One step of Adam along a·∂L_B1(Θ_t) + b·∂L_B1(Θ_t+1) + c·∂L_B2(Θ_t+1).

        The loss is linear in W, so each ∂L/∂W is `A ∘ L`: no second backward through the network.

        Args:
            plan: the factors a, b, c.
            A_MM: the fixed factors of the terms.
            terms: loss matrices by the plan's field names; those with a factor 0 may be missing.
        """
        if self.optimizer is None or not any(plan):
            return
        factors = plan._asdict()
        wanted = {name: factor for name, factor in factors.items() if factor != 0}
        slope_MM = A_MM * sum(factor * terms[name] for name, factor in wanted.items())
        objective = (self.weights() * slope_MM).sum()
        objective = objective + sum(wanted.values()) * self.weights.penalty(A_MM)
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Value and optimiser."""
        return {
            "weights": self.weights.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.weights.load_state_dict(state["weights"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
