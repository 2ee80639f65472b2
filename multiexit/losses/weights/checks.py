"""Whether what a learner of Ω says of itself is what it does.

Letters: M exits.
"""

import copy
import math
from dataclasses import fields

from torch import Tensor

from multiexit.losses.weights.learners import Learner, Plan
from multiexit.losses.weights.parametrisations import LossWeights, RowWeights

STEPS = 100
"""How many plans are looked at before a run."""


def check_learner(learner: Learner, teaches_MM: Tensor) -> None:
    """Refuse a learner whose weights, plans and class variables don't go together.

    Args:
        learner: what is checked.
        teaches_MM: who teaches whom, bool [M, M].

    Raises:
        ValueError: it names the learner, what is wrong, and what would be right.
    """
    name, M = type(learner).__name__, len(teaches_MM)
    weights = learner.weights(teaches_MM, 0)
    if not isinstance(weights, LossWeights):
        raise ValueError(f"{name}.weights() must give LossWeights, gave {type(weights).__name__}")
    if (weighs := isinstance(weights, RowWeights)) != learner.weighs_rows:
        raise ValueError(
            f"{name}.weights() gave {type(weights).__name__}, whose weights are of "
            f"{'rows' if weighs else 'terms'}: set weighs_rows = {weighs}"
        )
    W_MM = weights()
    if W_MM.shape != (M, M) or not W_MM.isfinite().all():
        raise ValueError(
            f"{name}'s weights for {M} exits must be finite numbers of shape [{M}, {M}]; got "
            f"{tuple(W_MM.shape)} {W_MM.tolist()}"
        )
    if learner.learns and not list(weights.parameters()):
        raise ValueError(
            f"{name} learns, and its weights() gave {type(weights).__name__} without parameters: "
            "set learns = False, or give weights that have some"
        )
    _check_parametrization(learner, weights, teaches_MM)
    for step in range(STEPS):
        check_plan(learner, learner.plan(step, 1.0), step)


def check_plan(learner: Learner, plan: Plan, step: int) -> None:
    """Refuse a plan that its learner's class variables rule out.

    Args:
        learner: whose plan it is.
        plan: what it says.
        step: for this step of Θ.

    Raises:
        ValueError: it names the step, the plan, and what would be right.
    """
    where = f"{type(learner).__name__}.plan({step})"
    if not isinstance(plan, Plan):
        raise ValueError(f"{where} must be a Plan, is {plan!r}")
    if not all(map(math.isfinite, plan)):
        raise ValueError(f"{where} isn't finite: {plan}")
    of_terms = plan.stepping or plan.first or plan.second
    for refused, why in (
        (
            plan.hyper and not learner.looks_back,
            "asks for a hypergradient: set looks_back = True, so that phases refuse what can't go "
            "with one",
        ),
        (
            not learner.splits and (plan.second or plan.hyper),
            "reads a second batch, and with splits = False D2 is all of D1: leave splits at True",
        ),
        (
            not learner.learns and any(plan),
            "moves Ω, and with learns = False it stays: leave learns at True, or give Plan()",
        ),
        (
            learner.weighs_rows and of_terms,
            f"is {plan}, and weights of rows follow hypergradients alone: give Plan(hyper=…)",
        ),
    ):
        if refused:
            raise ValueError(f"{where} {why}")


def _check_parametrization(learner: Learner, weights: LossWeights, teaches_MM: Tensor) -> None:
    """Refuse a parametrisation that the learner's own `weights` doesn't read."""
    (default,) = (f.default for f in fields(learner) if f.name == "parametrization")
    if learner.parametrization == default or type(learner).weights is Learner.weights:
        return
    plain = copy.copy(learner)
    object.__setattr__(plain, "parametrization", default)
    if _described(plain.weights(teaches_MM, 0)) == _described(weights):
        raise ValueError(
            f"{type(learner).__name__} has weights of its own, so "
            f"parametrization={learner.parametrization!r} has no effect: leave it out"
        )


def _described(weights: LossWeights) -> list[object]:
    """What tells weights from others: their modules' classes, and their tensors."""
    tensors = [(name, value.tolist()) for name, value in weights.state_dict().items()]
    return [*map(type, weights.modules()), *tensors]
