"""ConsistentEE: each exit has a gate, and rows need be right where the gates let them leave.

Letters: M exits, B batch rows, C classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from multiexit import problems
from multiexit.losses import coefficients
from multiexit.losses.labels import as_answers
from multiexit.losses.matrix import row_losses
from multiexit.model.heads import CertainHead
from multiexit.model.model import MultiExitModel
from multiexit.policies import Certainty
from multiexit.recipes.base import Phase, Recipe, Seen

NO_TERMS = coefficients.teachers_only
"""The factors where nobody teaches: no term of the loss matrix counts."""


def consistentee(alpha: float = 0.03, threshold: float = 0.5) -> Recipe:
    """Σ_m m·CE_m / Σ_m m, then where rows leave: by the gates alone, then by everything.

        mean_b Σ_m P_mb·(CE_mb + α·m·(1 − l_b/M)),    P_mb = g_mb·Π_(i < m) (1 − g_ib)

    with g the gates, of which the last is open, and l_b the row's memorised exit: from there on all
    exits are right. That is what a row costs on average that leaves at each exit with the gate's
    probability; its gradient is the policy gradient, without draws. Easy rows have a small l, and
    pay for depth; hard ones don't.

    Args:
        alpha: α, the price of an exit, of a row that the first exit is right on.
        threshold: of its policy, a gate's probability.

    Inputs:
        Two exits or more; heads that have gates: `"+gates"`, or with another name before it.
        Classes. Each phase has the run's epochs, and the last two keep their last one.

    Relations:
        The first phase is `pabee`'s. In the second the network rests, so that the memorised exits
        are those that the first one left. With gates that let nobody leave early, the last one's
        loss is that of ordinary fine-tuning, CE_M, and the price.

    Raises:
        ValueError: a price that is no finite number from 0.

    Example:
        >>> import multiexit as mx
        >>> recipe = mx.recipe("consistentee")
        >>> [phase.lr for phase in recipe.phases], recipe.policy
        ([1.0, 15.0, 1.0], Certainty(threshold=0.5))
    """
    cost = LeavingCost(alpha)
    return Recipe(
        name="consistentee",
        paper=(
            "Zeng et al., ConsistentEE: A Consistent and Hardness-Guided Early Exiting Method for "
            "Accelerating Language Models Inference"
        ),
        section="abstract",
        year=2024,
        summary="PABEE's training, then gates learn where rows leave, and exits from those rows",
        phases=(
            Phase(coefficients=coefficients.depth_weighted),
            Phase(coefficients=NO_TERMS, extra=cost, train=gates, lr=15.0, keep="last"),
            Phase(coefficients=NO_TERMS, extra=cost, keep="last"),
        ),
        policy=Certainty(threshold),
        head="+gates",
    )


@dataclass(frozen=True)
class LeavingCost:
    """mean_b Σ_m P_mb·(CE_mb + α·m·(1 − l_b/M)), see `consistentee`; for `Phase(extra=…)`.

    Args:
        alpha: α.

    Raises:
        ValueError: a price that is no finite number from 0; when it runs, heads without gates, or
            regression, where no answer is right or wrong.
    """

    alpha: float
    serves_regression: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha must be a number from 0, got {self.alpha}")

    def __call__(self, seen: Seen) -> Tensor:
        if seen.certainty_MB is None:
            raise ValueError(
                "ConsistentEE trains a gate at each early exit, and the model has none: make it "
                "with head='+gates'"
            )
        assert seen.labels_B is not None
        problem = problems.resolve(seen.problem, seen.logits_MBC.shape[-1])
        if problem == "regression":
            raise ValueError(
                "ConsistentEE goes by the exit from which on all are right, and of regression none "
                "is: use 'berxit', or 'pabee' with a tolerance"
            )
        answer_MB = problems.answer(seen.logits_MBC.detach(), problem)
        right_MB = problems.same(answer_MB, as_answers(seen.labels_B, problem), problem)
        M = len(right_MB)
        m_M1 = torch.arange(1, M + 1, device=right_MB.device)[:, None]
        price_MB = self.alpha * m_M1 * (1 - memorised(right_MB) / M)
        cost_MB = row_losses(seen.logits_MBC, seen.labels_B, seen.criterion) + price_MB
        return (leave(seen.certainty_MB.float()) * cost_MB).sum(0).mean()


def leave(gate_MB: Tensor) -> Tensor:
    """The probability that a row leaves at each exit, [M, B]; who is left leaves at the last.

    Args:
        gate_MB: each gate's probability; the last one's is of no account.

    Example:
        >>> import torch
        >>> leave(torch.tensor([[0.5], [0.5], [0.1]])).flatten()
        tensor([0.5000, 0.2500, 0.2500])
    """
    open_MB = torch.cat([gate_MB[:-1], torch.ones_like(gate_MB[:1])])
    here_MB = torch.cat([torch.ones_like(gate_MB[:1]), (1 - gate_MB[:-1]).cumprod(0)])
    return open_MB * here_MB


def memorised(right_MB: Tensor) -> Tensor:
    """The exit of each row, 1..M, from which on all are right; M where the last one isn't, [B].

    Example:
        >>> import torch
        >>> memorised(torch.tensor([[True, True, False], [True, False, True], [True, True, False]]))
        tensor([1, 3, 3])
    """
    right_B = right_MB.flip(0).int().cumprod(0).sum(0)
    return (len(right_MB) - right_B + 1).clamp(max=len(right_MB))


def gates(model: MultiExitModel) -> Iterable[nn.Parameter]:
    """The parameters of the gates, by which rows leave.

    Raises:
        ValueError: heads without gates.
    """
    found = [
        p
        for head in model.heads
        if isinstance(head, CertainHead) and head.gate is not None
        for p in head.gate.parameters()
    ]
    if not found:
        raise ValueError(
            f"ConsistentEE trains a gate at each early exit, and this model of {model.num_exits} "
            f"exit(s), head {model.head!r}, has none: make it with early exits and head='+gates'"
        )
    return found
