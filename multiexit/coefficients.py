"""What counts, and how much: the fixed factors A of the loss terms, as methods set them.

Each is a function of the topology, of how far training is, and of where the exits sit. The loss
is (W ∘ A ∘ L).sum(), with W learned or 1. Letters: M exits, `teaches_MM` row = student.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multiexit import losses

Coefficients = Callable[[Tensor, float, Sequence[float]], Tensor]
"""`(teaches_MM, progress in [0, 1), compute share of each exit) -> A_MM`."""


def summed(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """Σ_m CE_m + Σ KD / (M·|T(m)|) (LeeBERT, eqs. 1 and 4; BranchyNet without teachers)."""
    return losses.coefficients(teaches_MM)


def depth_weighted(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """Σ_m m·CE_m / Σ_m m, m = 1..M (PABEE 2020, eq. 5). The weights sum to 1."""
    m_M = torch.arange(1, len(teaches_MM) + 1, device=teaches_MM.device)
    return (m_M / m_M.sum()).diag()


def scheduled(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """CE_M + Σ_(m<M) min(C_m, 0.01 + C_m·e/E)·CE_m, C_m the compute share (Shallow-Deep 2019)."""
    weights = [min(share, 0.01 + share * progress) for share in shares_M[:-1]]
    return torch.tensor([*weights, 1.0], device=teaches_MM.device).diag()


def distilled(mix: float = 0.5, scale: float = 10.0) -> Coefficients:
    """s·[(1 − C)·Σ_m CE_m + C·Σ KD] with s = scale / M (DBT, Phuong & Lampert 2019, its code)."""
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be in [0, 1], got {mix}")

    def coefficients(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
        own_MM = torch.eye(len(teaches_MM), device=teaches_MM.device)
        return scale / len(teaches_MM) * ((1 - mix) * own_MM + mix * teaches_MM)

    return coefficients
