"""Parametrisations of the weights Ω of the loss terms.

Letters: M exits, B batch rows. Equations are those of Zhu, "LeeBERT", ACL 2021.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from multiexit.arguments import check_share


class LossWeights(nn.Module, ABC):
    """Ω as a module: `forward() -> W_MM`. Uniform Ω gives 1 for every term that counts.

    Example:
        Weights that stay between 0 and 2:

        >>> import torch, multiexit as mx
        >>> class Bounded(mx.weights.LossWeights):
        ...     def __init__(self, M):
        ...         super().__init__()
        ...         self.a_MM = torch.nn.Parameter(torch.zeros(M, M))
        ...     def forward(self):
        ...         return 2 * torch.sigmoid(self.a_MM)
        >>> Bounded(2)().tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    @abstractmethod
    def forward(self) -> Tensor:
        """The weights [M, M]; what they hold where no term counts has no effect."""

    def penalty(self, A_MM: Tensor) -> Tensor:
        """The price that Ω pays for itself, a scalar; 0 unless overridden.

        Args:
            A_MM: the factors of the terms [M, M]; 0 where no term counts.
        """
        return A_MM.new_zeros(())

    def seen(self, L_MM: Tensor) -> Tensor:
        """The loss terms [M, M] as Ω sees them; as they are, unless overridden.

        Args:
            L_MM: the terms of one pass [M, M]. Called once for each pass that Ω follows.
        """
        return L_MM

    def objective(self, slope_MM: Tensor) -> Tensor:
        """What Ω's optimiser descends, a scalar; Σ W∘slope unless overridden.

        Args:
            slope_MM: ∂L/∂W [M, M], a constant.
        """
        return (self() * slope_MM).sum()

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        """What steps Ω; Adam without decay unless overridden.

        Args:
            lr: λ2.
        """
        return torch.optim.Adam(self.parameters(), lr, weight_decay=0.0, fused=True)


class FixedWeights(LossWeights):
    """Weights that nobody learns.

    Args:
        W_MM: the weights [M, M].

    Raises:
        ValueError: NaN or infinite weights.

    Example:
        >>> import torch, multiexit as mx
        >>> mx.weights.FixedWeights(torch.tensor([[1.0, 0.5], [0.0, 2.0]]))().tolist()
        [[1.0, 0.5], [0.0, 2.0]]
    """

    def __init__(self, W_MM: Tensor):
        super().__init__()
        if not torch.isfinite(W_MM).all():
            raise ValueError("weights must be finite numbers; these hold NaN or infinity")
        self.W_MM = nn.Buffer(W_MM)

    def forward(self) -> Tensor:
        return self.W_MM


class SoftmaxWeights(LossWeights):
    """W_CE = f + (1 − f)·M·softmax(a); W_KD[i] = f + (1 − f)·|T(i)|·softmax over T(i) of b[i].

    Labels' weights compete with each other and each student's teachers compete with each other,
    but the two kinds don't: one softmax over both would drift to the distillation terms, which
    eq. 4 scales down. Each keeps at least the floor f of its uniform value 1.

    Args:
        teaches_MM: who teaches whom, bool [M, M].
        floor: f, in [0, 1).

    Raises:
        ValueError: a floor outside [0, 1).

    Example:
        The labels' weights on the diagonal sum to M, whatever a is:

        >>> import math, multiexit as mx
        >>> weights = mx.weights.SoftmaxWeights(mx.topology.lle(2), floor=0.0)
        >>> weights.own_M.data[1] = math.log(3)
        >>> weights().detach()
        tensor([[0.5000, 1.0000],
                [0.0000, 1.5000]])
    """

    def __init__(self, teaches_MM: Tensor, floor: float = 0.1):
        super().__init__()
        check_share("floor", floor, "[0, 1)")
        M = len(teaches_MM)
        self.floor = floor
        self.own_M = nn.Parameter(torch.zeros(M))
        self.pairs_MM = nn.Parameter(torch.zeros(M, M))
        self.teaches_MM = nn.Buffer(teaches_MM)

    def forward(self) -> Tensor:
        own_M = len(self.own_M) * self.own_M.softmax(0)
        # −1e9, not −∞: the row of an exit that has no teacher must not become NaN.
        shares_MM = self.pairs_MM.masked_fill(~self.teaches_MM, -1e9).softmax(1)
        pairs_MM = self.teaches_MM.sum(1, keepdim=True) * shares_MM
        W_MM = torch.where(self.teaches_MM, pairs_MM, own_M.diag())
        return self.floor + (1 - self.floor) * W_MM


class RawWeights(LossWeights):
    """W itself is learned, as eqs. 7–9 have it: it can only fall, below 0 in time.

    Args:
        teaches_MM: who teaches whom, bool [M, M].

    Example:
        >>> import multiexit as mx
        >>> mx.weights.RawWeights(mx.topology.lae(2))().tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, teaches_MM: Tensor):
        super().__init__()
        self.W_MM = nn.Parameter(torch.ones(teaches_MM.shape))

    def forward(self) -> Tensor:
        return self.W_MM


class UncertaintyWeights(LossWeights):
    """W = e^(−s), and Ω pays s per term: e^(−s)·L + s is least at W = 1 / L (Kendall 2018).

    Args:
        teaches_MM: who teaches whom, bool [M, M].

    Example:
        >>> import torch, multiexit as mx
        >>> weights = mx.weights.UncertaintyWeights(mx.topology.none(2))
        >>> weights.s_MM.data += 1
        >>> weights().detach()[0, 0], weights.penalty(torch.eye(2)).item()
        (tensor(0.3679), 2.0)
    """

    def __init__(self, teaches_MM: Tensor):
        super().__init__()
        self.s_MM = nn.Parameter(torch.zeros(teaches_MM.shape))

    def forward(self) -> Tensor:
        return torch.exp(-self.s_MM)

    def penalty(self, A_MM: Tensor) -> Tensor:
        return (A_MM * self.s_MM).sum()


class RowWeights(LossWeights):
    """Weights of single rows: `rows(L_MB) -> w_MB`, from each row's own loss at each exit.

    The loss is Σ_m A_mm · mean_b(w_mb · L_mb); the matrix W stays 1.

    Args:
        teaches_MM: who teaches whom, bool [M, M].

    Example:
        Rows that are hard for the last exit count more, at all exits:

        >>> import torch, multiexit as mx
        >>> class Hard(mx.weights.RowWeights):
        ...     def rows(self, own_MB):
        ...         return (own_MB[-1] / own_MB[-1].mean()).expand_as(own_MB)
        >>> Hard(mx.topology.none(2)).rows(torch.tensor([[1.0, 1.0], [0.5, 1.5]])).tolist()
        [[0.5, 1.5], [0.5, 1.5]]
    """

    def __init__(self, teaches_MM: Tensor):
        super().__init__()
        self.ones_MM = nn.Buffer(torch.ones(teaches_MM.shape))

    def forward(self) -> Tensor:
        return self.ones_MM

    @abstractmethod
    def rows(self, own_MB: Tensor) -> Tensor:
        """The weights [M, B] of rows.

        Args:
            own_MB: each row's own loss at each exit [M, B].
        """

    def weigh(self, own_MB: Tensor, logits_MBC: Tensor, progress: float) -> Tensor:
        """The weights [M, B] of a batch that Θ steps along; `rows`, unless overridden.

        Args:
            own_MB: as for `rows`.
            logits_MBC: what the exits said [M, B, C].
            progress: the share of the phase that is done, in [0, 1).
        """
        return self.rows(own_MB)
