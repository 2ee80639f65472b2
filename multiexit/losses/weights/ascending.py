"""Weights that ascend: Θ makes the weighted loss small, Ω makes it large (min over Θ, max over Ω).

Letters: M exits.
"""

import torch
from torch import Tensor, nn

from multiexit.arguments import check_share
from multiexit.losses.weights.parametrisations import LossWeights

MEMORY = 0.99
"""β of running means."""


class Ascending(LossWeights):
    """Other weights, whose Ω goes up where it would have gone down.

    Args:
        weights: any whose values are bounded, such as `SoftmaxWeights`; raw ones would grow for
            ever.

    Example:
        The exit whose loss is larger gains weight:

        >>> import torch, multiexit as mx
        >>> weights = mx.weights.Ascending(mx.weights.SoftmaxWeights(mx.topology.none(2)))
        >>> weights.objective(torch.diag(torch.tensor([2.0, 1.0]))).backward()
        >>> weights.weights.own_M.grad
        tensor([-0.4500,  0.4500])
    """

    def __init__(self, weights: LossWeights):
        super().__init__()
        self.weights = weights

    def forward(self) -> Tensor:
        return self.weights()

    def penalty(self, A_MM: Tensor) -> Tensor:
        return -self.weights.penalty(A_MM)

    def objective(self, slope_MM: Tensor) -> Tensor:
        return -self.weights.objective(slope_MM)

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return self.weights.optimizer(lr)


class GroupDRO(LossWeights):
    """Exits are groups, and the worst ones gain weight by exponentiated gradient.

        W_ij = f + (1 − f)·M·q_i,    q ← q·exp(λ2·ℓ) / Σ q·exp(λ2·ℓ),    ℓ_i = Σ_j A_ij·L_ij

    with ℓ the loss of an exit, its own and its teachers' terms. With f = 0 it is the paper's min
    over Θ of the max over exits. Here q moves after Θ's step, in the paper before it.

    Args:
        teaches_MM: who teaches whom, bool [M, M], for the number of exits.
        floor: f, in [0, 1).

    Raises:
        ValueError: a floor outside [0, 1).

    Example:
        One step at λ2 = log 2 with losses 2 and 1: q becomes 2/3 and 1/3.

        >>> import math, torch, multiexit as mx
        >>> weights = mx.weights.GroupDRO(mx.topology.none(2), floor=0.0)
        >>> weights.objective(torch.diag(torch.tensor([2.0, 1.0]))).backward()
        >>> weights.optimizer(math.log(2)).step()
        >>> weights().detach().diagonal() / 2
        tensor([0.6667, 0.3333])

    Reference: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
    Algorithm 1.
    """

    def __init__(self, teaches_MM: Tensor, floor: float = 0.1):
        super().__init__()
        check_share("floor", floor, "[0, 1)")
        self.floor = floor
        self.log_q_M = nn.Parameter(torch.zeros(len(teaches_MM)))

    def forward(self) -> Tensor:
        M = len(self.log_q_M)
        W_M = self.floor + (1 - self.floor) * M * self.log_q_M.softmax(0)
        return W_M[:, None].expand(M, M)

    def objective(self, slope_MM: Tensor) -> Tensor:
        # Linear in log q, so that plain gradient descent multiplies q by exp(λ2·ℓ); what all exits
        # have in common changes nothing, and would make log q large.
        loss_M = slope_MM.sum(1)
        return -(self.log_q_M * (loss_M - loss_M.mean())).sum()

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr)


class Normalized(LossWeights):
    """Other weights, whose Ω sees each loss term divided by a running mean of itself.

        L_ij / L̄_ij,    then L̄ ← β·L̄ + (1 − β)·L,    β = 0.99, L̄ at first L

    So a term counts by whether it falls, not by how large it is. Of `GroupDRO` log q_i then grows
    by about λ2/(1 − β)·log(L̄_i / L̄_i at first), beside what is the same for all exits: those
    that have learned least gain weight, as GradNorm's inverse training rates have it.

    Args:
        weights: any.

    Example:
        >>> import torch, multiexit as mx
        >>> weights = mx.weights.Normalized(mx.weights.GroupDRO(mx.topology.none(1)))
        >>> [weights.seen(torch.tensor([[loss]])).item() for loss in (4.0, 2.0)]
        [1.0, 0.5]

    Reference: for inverse training rates, Chen et al., "GradNorm", ICML 2018, section 3.2.
    """

    def __init__(self, weights: LossWeights):
        super().__init__()
        self.weights = weights
        W_MM = weights()
        self.mean_MM = nn.Buffer(torch.zeros(W_MM.shape))

    def forward(self) -> Tensor:
        return self.weights()

    def penalty(self, A_MM: Tensor) -> Tensor:
        return self.weights.penalty(A_MM)

    def seen(self, L_MM: Tensor) -> Tensor:
        mean_MM = torch.where(self.mean_MM == 0, L_MM, self.mean_MM)
        self.mean_MM.copy_(MEMORY * mean_MM + (1 - MEMORY) * L_MM)
        # A term that is 0 and always was, as that of labels which aren't there, stays 0.
        return self.weights.seen(L_MM / torch.where(mean_MM == 0, 1.0, mean_MM))

    def objective(self, slope_MM: Tensor) -> Tensor:
        return self.weights.objective(slope_MM)

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return self.weights.optimizer(lr)
