"""The fixed factors A of the loss terms, as methods set them.

Each is a function of the topology, of how far training is, and of where the exits sit. The loss
is (W ∘ A ∘ L).sum(), with W learned or 1. Letters: M exits, `teaches_MM` row = student.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multiexit.arguments import check_share

Coefficients = Callable[[Tensor, float, Sequence[float]], Tensor]
"""`(teaches_MM, progress, shares_M) -> A_MM`: who teaches whom, bool [M, M]; the share of the phase
that is done when the running epoch ends, in (0, 1]; each exit's share of the network's MACs, in
(0, 1]; and the factors, float32 [M, M] on the topology's device."""


def summed(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """Σ_m CE_m + Σ KD / (M·|T(m)|): A[i, i] = 1, A[i, j] = 1 / (M·|T(i)|) where j teaches i.

    Args:
        teaches_MM: a topology, bool [M, M].
        progress, shares_M: not used.

    Returns:
        A_MM, float32 [M, M], so that the loss of eqs. 1 + 4 is `(A * L).sum()`.

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.summed(mx.topology.lle(2), 1.0, (0.5, 1.0)).tolist()
        [[1.0, 0.5], [0.0, 1.0]]

    Reference: LeeBERT, eqs. 1 and 4; BranchyNet without teachers.
    """
    M = len(teaches_MM)
    teachers_M1 = teaches_MM.sum(1, keepdim=True).clamp(min=1)
    return teaches_MM / (M * teachers_M1) + torch.eye(M, device=teaches_MM.device)


def depth_weighted(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """Σ_m m·CE_m / Σ_m m, m = 1..M (PABEE 2020, eq. 5). The weights sum to 1.

    Args:
        teaches_MM: bool [M, M], for the number of exits; nobody teaches.
        progress, shares_M: not used.

    Returns:
        A_MM, float32 [M, M], diagonal.

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.depth_weighted(mx.topology.none(4), 1.0, ()).diagonal()
        tensor([0.1000, 0.2000, 0.3000, 0.4000])
    """
    m_M = torch.arange(1, len(teaches_MM) + 1, device=teaches_MM.device)
    return (m_M / m_M.sum()).diag()


def scheduled(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """CE_M + Σ_(m<M) min(C_m, 0.01 + C_m·e/E)·CE_m, C_m the compute share, e = 1..E the epoch.

    Args:
        teaches_MM: bool [M, M], for its device; nobody teaches.
        progress: e / E, in (0, 1].
        shares_M: C_m of each exit, in (0, 1]; the last counts 1.

    Returns:
        A_MM, float32 [M, M], diagonal.

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.scheduled(mx.topology.none(3), 0.5, (0.2, 0.5, 1.0)).diagonal()
        tensor([0.1100, 0.2600, 1.0000])

    Reference: Kaya et al., "Shallow-Deep Networks", ICML 2019, section 4, and its code.
    """
    weights = [min(share, 0.01 + share * progress) for share in shares_M[:-1]]
    return torch.tensor([*weights, 1.0], device=teaches_MM.device).diag()


def last_only(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """CE_M alone: ordinary fine-tuning, the first phase of two-stage methods.

    Args:
        teaches_MM: bool [M, M], for the number of exits; nobody teaches.
        progress, shares_M: not used.

    Returns:
        A_MM, float32 [M, M]: 1 in its last corner, 0 elsewhere.

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.last_only(mx.topology.none(2), 1.0, ()).tolist()
        [[0.0, 0.0], [0.0, 1.0]]
    """
    A_MM = torch.zeros(teaches_MM.shape, device=teaches_MM.device)
    A_MM[-1, -1] = 1
    return A_MM


def early_only(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """Σ_(m<M) CE_m: the early exits alone (DeeBERT 2020's second phase).

    Args:
        teaches_MM: bool [M, M], for the number of exits; nobody teaches.
        progress, shares_M: not used.

    Returns:
        A_MM, float32 [M, M]: the identity without its last 1.

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.early_only(mx.topology.none(3), 1.0, ()).diagonal().tolist()
        [1.0, 1.0, 0.0]
    """
    return torch.eye(len(teaches_MM), device=teaches_MM.device) - last_only(
        teaches_MM, progress, shares_M
    )


def teachers_only(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """Σ KD over all students and their teachers, no labels (FastBERT 2020, eq. 6).

    Args:
        teaches_MM: a topology, bool [M, M].
        progress, shares_M: not used.

    Returns:
        A_MM, float32 [M, M]: 1 where one teaches, 0 elsewhere.

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.teachers_only(mx.topology.last(3), 1.0, ()).tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return teaches_MM.float()


def blended(mix: float, scale: float = 1.0) -> Coefficients:
    """CE_M + Σ_(m<M) [(1 − γ)·CE_m + γ·scale·Σ KD], γ = mix (RomeBERT 2021, section 3.2).

    Args:
        mix: γ, in [0, 1].
        scale: a factor of the distillation terms.

    Returns:
        The rule, for `Phase(coefficients=…)`.

    Raises:
        ValueError: a mix outside [0, 1].

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.blended(0.25)(mx.topology.last(2), 1.0, ()).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    check_share("mix", mix, "[0, 1]")

    def coefficients(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
        last_MM = last_only(teaches_MM, progress, shares_M)
        early_MM = early_only(teaches_MM, progress, shares_M)
        return last_MM + (1 - mix) * early_MM + mix * scale * teaches_MM

    return coefficients


def distilled(mix: float = 0.5, scale: float = 10.0) -> Coefficients:
    """s·[(1 − C)·Σ_m CE_m + C·Σ KD] with s = scale / M (DBT, Phuong & Lampert 2019, its code).

    Args:
        mix: C, in [0, 1].
        scale: M times the factor of all terms.

    Returns:
        The rule, for `Phase(coefficients=…)`.

    Raises:
        ValueError: a mix outside [0, 1].

    Example:
        >>> import multiexit as mx
        >>> mx.coefficients.distilled(mix=0.5)(mx.topology.last(2), 1.0, ()).tolist()
        [[2.5, 2.5], [0.0, 2.5]]
    """
    check_share("mix", mix, "[0, 1]")

    def coefficients(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
        own_MM = torch.eye(len(teaches_MM), device=teaches_MM.device)
        return scale / len(teaches_MM) * ((1 - mix) * own_MM + mix * teaches_MM)

    return coefficients
