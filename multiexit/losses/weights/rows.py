"""A network that weighs single rows, learned by meta-gradient (L2W-DEN).

Letters: M exits, B batch rows, C classes.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from multiexit import problems
from multiexit.arguments import check_share
from multiexit.losses.criterion import Criterion
from multiexit.losses.matrix import row_losses
from multiexit.losses.weights.learners import Learner, Plan, check_cycle
from multiexit.losses.weights.parametrisations import LossWeights, RowWeights

WIDTH = 500


class WeightNet(RowWeights):
    """w = 1 + ε·(t − mean(t)), t = tanh(net(row's M losses)), net: Linear, ReLU, Linear.

    Args:
        teaches_MM: a topology, for the number of exits.
        epsilon: ε, half of how far weights may be from 1: they lie in 1 ± 2ε.
        over: the mean is over the whole `"batch"` and all exits, or over each row's `"exits"`.

    Example:
        Weights are 1 on average:

        >>> import torch, multiexit as mx
        >>> net = mx.weights.WeightNet(mx.topology.none(3), epsilon=0.3, over="batch")
        >>> w_MB = net.rows(torch.rand(3, 8))
        >>> w_MB.shape, round(w_MB.mean().item(), 4)
        (torch.Size([3, 8]), 1.0)
    """

    def __init__(self, teaches_MM: Tensor, epsilon: float, over: str):
        super().__init__(teaches_MM)
        M = len(teaches_MM)
        self.epsilon = epsilon
        self.over = over
        self.net = nn.Sequential(nn.Linear(M, WIDTH), nn.ReLU(), nn.Linear(WIDTH, M))

    def rows(self, own_MB: Tensor) -> Tensor:
        t_MB = torch.tanh(self.net(own_MB.T.to(self.ones_MM))).T
        mean = t_MB.mean() if self.over == "batch" else t_MB.mean(0)
        return 1 + self.epsilon * (t_MB - mean)


@dataclass(frozen=True)
class MetaWeights(Learner):
    """Rows get weights that make each exit better on the rows that would leave there.

    The outer loss on B2: rows are given to exits by confidence, exit m the ⌊B·P_m⌋ surest of
    those that are left, P_m ∝ q^m, the last exit the rest; then Σ_m mean CE_m over its rows.
    The weighting network follows its gradient through Θ's step on B1.

    Reference: Han et al., "Learning to Weight Samples for Dynamic Early-Exiting Networks", ECCV
    2022, section 3, and its code, which moves the network before Θ's step instead of after it and
    lets the halves of a batch take turns as B1 and B2. On several processes each gives its own
    rows to exits and takes the mean over its own.

    Args:
        epsilon: ε of `WeightNet`.
        over: of its mean: `"batch"` or `"exits"`.
        q: how the outer loss spreads rows over exits; below 1 more leave early.
        cycle: the weighting network moves at every so many steps.

    Raises:
        ValueError: ε outside (0, 1], another `over`, a q that isn't above 0, or a cycle that is no
            whole number from 1.

    Example:
        The outer loss judges the first exit on the two surest rows, the last on the third:

        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[9.0, 0], [0, 9], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
        >>> loss = mx.weights.MetaWeights(q=0.5).outer(logits_MBC, torch.tensor([0, 1, 0]))
        >>> round(loss.item(), 3)  # near 0, and log 2
        0.693
    """

    weighs_rows: ClassVar[bool] = True
    looks_back: ClassVar[bool] = True

    epsilon: float = 0.3
    over: Literal["batch", "exits"] = "batch"
    q: float = 0.75
    cycle: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("epsilon", self.epsilon, "(0, 1]")
        if self.over not in ("batch", "exits"):
            raise ValueError(f"over must be 'batch' or 'exits', got {self.over!r}")
        if not self.q > 0:
            raise ValueError(f"q must be above 0, got {self.q}")
        check_cycle(self.cycle)

    def weights(self, teaches_MM: Tensor, seed: int) -> LossWeights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return WeightNet(teaches_MM, self.epsilon, self.over)

    def outer(
        self, logits_MBC: Tensor, labels_B: Tensor, criterion: Criterion | None = None
    ) -> Tensor:
        own_MB = row_losses(logits_MBC, labels_B, criterion)
        exit_B = allot(
            logits_MBC.detach(), self.q, None if criterion is None else criterion.problem
        )
        exits_M1 = torch.arange(len(own_MB), device=own_MB.device)[:, None]
        at_MB = (exit_B == exits_M1).to(own_MB.dtype)
        return ((at_MB * own_MB).sum(1) / at_MB.sum(1).clamp(min=1)).sum()

    def plan(self, step: int, rho: float) -> Plan:
        return Plan(hyper=1.0) if (step + 1) % self.cycle == 0 else Plan()


def allot(logits_MBC: Tensor, q: float, problem: str | None = None) -> Tensor:
    """Give each row to an exit: the ⌊B·P_m⌋ surest at each, P_m ∝ q^m, the last the rest.

    A row that is several decisions is as sure as the least sure of them. Numbers have no
    confidence: then rows go in the order they came.

    Args:
        logits_MBC: the exits' logits [M, B, C].
        q: above 0.
        problem: the model's; None is classification, or with one output regression.

    Returns:
        exit_B, int64 [B], counted from 0.

    Example:
        >>> allot(torch.tensor([[[0.0, 0], [9, 0], [2, 0]], [[0, 0], [0, 0], [0, 0]]]), q=0.5)
        tensor([1, 0, 0])
    """
    M, B = logits_MBC.shape[:2]
    parts = [q**m for m in range(M)]
    exit_B = torch.full((B,), M - 1, device=logits_MBC.device)
    left_B = torch.ones(B, dtype=torch.bool, device=logits_MBC.device)
    for m in range(M - 1):
        sure_B = problems.confidence(logits_MBC[m], problem)
        first_B = sure_B.masked_fill(~left_B, -1).argsort(descending=True, stable=True)
        chosen_B = first_B[: int(B * parts[m] / sum(parts) + 1e-9)]
        exit_B[chosen_B] = m
        left_B[chosen_B] = False
    return exit_B
