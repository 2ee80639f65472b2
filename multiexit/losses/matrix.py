"""All loss terms of all exits as one matrix.

Letters: M exits, B batch rows, C classes. `L_MM[i, i]` is exit i's own loss, `L_MM[i, j]` what
student i pays for differing from teacher j.
"""

import math
from numbers import Real
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.losses.labels import check_labels

Divergence = Literal["ce", "kl"]


def loss_matrix(
    logits_MBC: Tensor,
    labels_B: Tensor | None,
    temperature: float | Tensor = 1.0,
    divergence: Divergence = "ce",
) -> Tensor:
    r"""Every exit's loss against the labels and against every other exit.

    With p_m the softmax of exit m's logits and p^(1/τ) the softmax of logits / τ, the means over
    the batch of

        L[i, i] = −log p_i(y)                                     (eq. 1)
        L[i, j] = −τ² Σ_c p_j^(1/τ)(c) · log p_i^(1/τ)(c)         (eq. 2, teacher j detached)

    and, for one class (regression), of the squared differences (y_i − y)² and (y_i − y_j)².
    The M² terms are one matrix product. Half-precision logits are taken to float32; float64 stays.

    Args:
        logits_MBC: all exits' logits [M, B, C].
        labels_B: whole classes [B] of any integer type (bool for two), or float targets [B] when C
            is 1; None where there are none, and the diagonal is 0.
        temperature: τ > 0, a number or a tensor of one, which is not checked on a GPU, so that
            it is not waited for.
        divergence: `"ce"` as the paper has it, or `"kl"`: the same gradient for the student, less
            the teacher's entropy, so 0 where they agree.

    Returns:
        L_MM [M, M], float32 (float64 of float64), row = student, column = teacher.

    Raises:
        ValueError: shapes that don't fit, an empty batch, τ ≤ 0, or (on the CPU) labels outside
            the classes.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.zeros(2, 5, 4)
        >>> mx.loss_matrix(logits_MBC, torch.tensor([0, 1, 2, 3, 0]))  # log 4 everywhere
        tensor([[1.3863, 1.3863],
                [1.3863, 1.3863]])

    Reference: Zhu, "LeeBERT", ACL 2021, section 3.1, eqs. 1–4.
    """
    _check_arguments(logits_MBC, labels_B, temperature, divergence)
    M, _, C = logits_MBC.shape
    with torch.autocast(logits_MBC.device.type, enabled=False):
        logits_MBC = _wide(logits_MBC)
        if not isinstance(temperature, Tensor):
            temperature = float(temperature)  # of numpy's numbers too
        if C == 1:
            own_M, pairs_MM = _regression(logits_MBC, labels_B)
        else:
            own_M, pairs_MM = _classification(logits_MBC, labels_B, temperature, divergence)
        diagonal = torch.eye(M, dtype=torch.bool, device=logits_MBC.device)
        return torch.where(diagonal, own_M, pairs_MM)


def row_losses(logits_MBC: Tensor, labels_B: Tensor) -> Tensor:
    """Each row's own loss at each exit; its mean over B is the diagonal of L.

    Args:
        logits_MBC: all exits' logits [M, B, C].
        labels_B: as for `loss_matrix`.

    Returns:
        −log p(y), or (ŷ − y)² of one class, [M, B], float32 (float64 of float64).

    Raises:
        ValueError: shapes that don't fit, or logits that are no floating-point numbers.

    Example:
        >>> import torch
        >>> row_losses(torch.tensor([[[1.0], [3.0]]]), torch.tensor([0.0, 3.0]))
        tensor([[1., 0.]])
    """
    _check_shapes(logits_MBC, labels_B)
    M, B, C = logits_MBC.shape
    with torch.autocast(logits_MBC.device.type, enabled=False):
        logits_MBC = _wide(logits_MBC)
        if C == 1:
            return (logits_MBC.squeeze(-1) - labels_B.to(logits_MBC.dtype)).square()
        log_p_MBC = F.log_softmax(logits_MBC, -1)
        return -log_p_MBC.gather(-1, labels_B.long().expand(M, B).unsqueeze(-1)).squeeze(-1)


def _wide(tensor: Tensor) -> Tensor:
    """float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _classification(
    logits_MBC: Tensor,
    labels_B: Tensor | None,
    temperature: float | Tensor,
    divergence: Divergence,
) -> tuple[Tensor, Tensor]:
    M, B, _ = logits_MBC.shape
    log_p_MBC = F.log_softmax(logits_MBC, -1)
    own_M = logits_MBC.new_zeros(M)
    if labels_B is not None:
        own_M = -log_p_MBC.gather(-1, labels_B.long().expand(M, B).unsqueeze(-1)).mean((1, 2))
    plain = isinstance(temperature, int | float) and temperature == 1
    soft_MBC = log_p_MBC if plain else F.log_softmax(logits_MBC / temperature, -1)
    log_teacher_MBC = soft_MBC.detach()
    teacher_MBC = log_teacher_MBC.exp()
    pairs_MM = -torch.einsum("ibc,jbc->ij", soft_MBC, teacher_MBC)
    if divergence == "kl":
        pairs_MM = pairs_MM + (teacher_MBC * log_teacher_MBC).sum((1, 2))
    return own_M, temperature**2 * pairs_MM / B


def _regression(logits_MB1: Tensor, labels_B: Tensor | None) -> tuple[Tensor, Tensor]:
    y_MB = logits_MB1.squeeze(-1)
    own_M = y_MB.new_zeros(len(y_MB))
    if labels_B is not None:
        own_M = (y_MB - labels_B.to(y_MB.dtype)).square().mean(1)
    pairs_MM = (y_MB[:, None] - y_MB.detach()[None]).square().mean(2)
    return own_M, pairs_MM


def _check_arguments(
    logits_MBC: Tensor, labels_B: Tensor | None, temperature: float | Tensor, divergence: str
) -> None:
    _check_shapes(logits_MBC, labels_B)
    if logits_MBC.numel() == 0:
        raise ValueError(f"no loss of an empty batch: logits have shape {tuple(logits_MBC.shape)}")
    looks = not torch.compiler.is_compiling()  # compiled code can't look at values
    if isinstance(temperature, Tensor):
        good = temperature.numel() == 1
        if good and looks and temperature.device.type == "cpu":
            good = 0 < temperature.item() < math.inf
    else:
        good = isinstance(temperature, Real) and 0 < temperature < math.inf
    if not good:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")
    if divergence not in ("ce", "kl"):
        raise ValueError(f"divergence must be 'ce' or 'kl', got {divergence!r}")
    if labels_B is not None and looks:
        check_labels(labels_B, logits_MBC.shape[2])


def _check_shapes(logits_MBC: Tensor, labels_B: Tensor | None) -> None:
    labels = logits_MBC.shape[1:2] if labels_B is None else labels_B.shape
    if logits_MBC.ndim != 3 or labels != logits_MBC.shape[1:2]:
        raise ValueError(
            f"logits are [M, B, C] and labels [B]; got {tuple(logits_MBC.shape)} and "
            f"{tuple(labels)}"
        )
    if not logits_MBC.is_floating_point():
        raise ValueError(f"logits are floating-point numbers, got {logits_MBC.dtype}")
