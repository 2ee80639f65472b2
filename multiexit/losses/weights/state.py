"""Ω while training runs: its value, its optimiser, and how often it has been stepped.

Letters: M exits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multiexit.losses.weights.checks import check_plan
from multiexit.losses.weights.learners import Learner, Plan
from multiexit.losses.weights.parametrisations import RowWeights


class Omega:
    """The weights of the loss terms and what learns them.

    Args:
        learner: how they are learned.
        teaches_MM: who teaches whom, bool [M, M].
        lr: λ2, of Adam without decay, or of the optimiser that the weights have.
        rho: ρ = λ1 / λ2.
        seed: of weights that are drawn.

    Example:
        An exit whose loss is larger loses weight to the other:

        >>> import torch, multiexit as mx
        >>> omega = mx.weights.Omega(mx.weights.SLO(), mx.topology.none(2), 0.01, rho=1.0, seed=0)
        >>> L_MM = torch.tensor([[2.0, 0], [0, 1]])
        >>> omega.update(omega.plan(0), torch.eye(2), {"stepping": L_MM})
        >>> omega.value().diagonal()
        tensor([0.9910, 1.0090])
    """

    def __init__(self, learner: Learner, teaches_MM: Tensor, lr: float, rho: float, seed: int):
        self.learner = learner
        self.rho = rho
        self.weights = learner.weights(teaches_MM.cpu(), seed).to(teaches_MM.device)
        self.optimizer = self.weights.optimizer(lr) if learner.learns else None

    def value(self) -> Tensor:
        """W_MM, float32 [M, M], cut from its graph."""
        return self.weights().detach().clone()

    def plan(self, step: int) -> Plan:
        """Say what Ω does at this step of Θ, counted from 0.

        Raises:
            ValueError: a plan that the learner's class variables rule out.
        """
        plan = self.learner.plan(step, self.rho)
        check_plan(self.learner, plan, step)
        return plan

    @property
    def learns_terms(self) -> bool:
        """Whether the weights of terms change; where rows are weighed, they don't."""
        return self.optimizer is not None and not isinstance(self.weights, RowWeights)

    def rows(self, own_MB: Tensor, logits_MBC: Tensor, progress: float) -> Tensor:
        """The rows' weights [M, B], cut from their graph.

        Args:
            own_MB: each row's own loss at each exit [M, B].
            logits_MBC: what the exits said [M, B, C].
            progress: the share of the phase that is done, in [0, 1).
        """
        assert isinstance(self.weights, RowWeights)
        with torch.no_grad():
            return self.weights.weigh(own_MB.detach(), logits_MBC.detach(), progress)

    def update(
        self,
        plan: Plan,
        A_MM: Tensor,
        terms: dict[str, Tensor],
        rows: Sequence[tuple[Tensor, Tensor]] = (),
        share: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> None:
        """Take one step of Ω's optimiser along what the plan adds up.

        The loss is linear in W, so each ∂L/∂W is `A ∘ L`: no second backward through the network.

        Args:
            plan: the factors.
            A_MM: the fixed factors of the terms [M, M].
            terms: by the plan's field names, loss matrices [M, M], and for `hyper` the outer
                loss's gradient by W∘A; those with a factor 0 may be missing.
            rows: where rows are weighed, per batch: each row's own losses [M, B], and the outer
                loss's gradient by the factors that these have in the sum, [M, B], times the
                batch's share of the step's rows.
            share: averages a gradient over processes.
        """
        if self.optimizer is None or not any(plan):
            return
        factors = {name: factor for name, factor in plan._asdict().items() if factor != 0}
        seen = {
            name: terms[name] if name == "hyper" else self.weights.seen(terms[name])
            for name in factors
        }
        slope_MM = A_MM * sum(factor * seen[name] for name, factor in factors.items())
        objective = self.weights.objective(slope_MM)
        # The penalty belongs to losses that hold W: the hypergradient's outer loss does not.
        penalty_factor = sum(factor for name, factor in factors.items() if name != "hyper")
        objective = objective + penalty_factor * self.weights.penalty(A_MM)
        if isinstance(self.weights, RowWeights):
            own_M = A_MM.diagonal()
            for own_MB, slope_MB in rows:
                w_MB = self.weights.rows(own_MB)
                gain = (own_M * (w_MB * slope_MB).mean(1)).sum()
                objective = objective + plan.hyper * gain
        self.optimizer.zero_grad()
        objective.backward()
        for p in self.weights.parameters():
            if p.grad is not None:
                p.grad = share(p.grad)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Value and optimiser."""
        return {
            "weights": self.weights.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.weights.load_state_dict(state["weights"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
