"""All loss terms of all exits as one matrix.

Letters: M exits, B batch rows, C outputs, N decisions of a batch, K what a decision is among (see
`multiexit.problems`). `L_MM[i, i]` is exit i's own loss, `L_MM[i, j]` what student i pays for
differing from teacher j.
"""

import math
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.losses.criterion import Criterion, Decisions
from multiexit.losses.labels import check_label_shape, check_labels
from multiexit.problems import are_vectors
from multiexit.runtime import wide

Divergence = Literal["ce", "kl", "similarity"]


def loss_matrix(
    logits_MBC: Tensor,
    labels_B: Tensor | None,
    temperature: float | Tensor = 1.0,
    divergence: Divergence = "ce",
    criterion: Criterion | None = None,
    valid_BT: Tensor | None = None,
) -> Tensor:
    r"""Every exit's loss against the labels and against every other exit.

    With p_m the softmax of exit m's logits and p^(1/τ) the softmax of logits / τ, the means over
    the batch of

        L[i, i] = −log p_i(y)                                     (eq. 1)
        L[i, j] = −τ² Σ_c p_j^(1/τ)(c) · log p_i^(1/τ)(c)         (eq. 2, teacher j detached)

    and of numbers (regression) the squared differences (y_i − y)² and (y_i − y_j)². Several labels,
    numbers or tokens a row are so many decisions, and the means are over all of them: of several
    labels the diagonal is binary cross-entropy, and a pair's term that of two Bernoulli
    distributions. The M² terms are one matrix product. Half-precision logits are taken to float32;
    float64 stays.

    Of vectors v of length 1 (`"embedding"`)

        L[i, i] = mean_b 1 − v_ib·y_b
        L[i, j] = mean_b 1 − v_ib·v_jb
        L[i, j] + mean_b Σ_b' (v_ib·v_jb' − v_jb·v_jb')²    with "similarity"

    Cosines are, but for constants, the logarithms of von Mises-Fisher distributions. Similarities
    are the student's to the teacher's vectors of all rows of the batch, so that those of several
    exits can be compared; they count more in larger batches.

    Args:
        logits_MBC: all exits' logits [M, B, C], or of tokens [M, B, T, C].
        labels_B: whole classes [B] of any integer type (bool for two), or shares of the classes
            [B, C]; for regression floats [B] or [B, C]; of several labels 0 to 1, [B, C]; of tokens
            classes [B, T], −100 where none is learned. None where there are none, and the diagonal
            is 0.
        temperature: τ > 0, a number or a tensor of one, which is not checked on a GPU, so that
            it is not waited for. Vectors have none: 1.
        divergence: `"ce"` as the paper has it, or `"kl"`: the same gradient for the student, less
            the teacher's entropy, so 0 where they agree; of numbers and vectors they are one.
            `"similarity"` is for vectors alone.
        criterion: what the labels mean, and how they count; None is classification, or with one
            output regression.
        valid_BT: of tokens, which are real; None is all. Pairs of exits are compared where there
            is a label too, if there are labels.

    Returns:
        L_MM [M, M], float32 (float64 of float64), row = student, column = teacher.

    Raises:
        ValueError: shapes that don't fit, an empty batch, τ ≤ 0, or τ ≠ 1 of vectors, a divergence
            of other outputs, `valid_BT` of other outputs than tokens', or (on the CPU) labels
            outside the classes.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.zeros(2, 5, 4)
        >>> mx.loss_matrix(logits_MBC, torch.tensor([0, 1, 2, 3, 0]))  # log 4 everywhere
        tensor([[1.3863, 1.3863],
                [1.3863, 1.3863]])

    Reference: Zhu, "LeeBERT", ACL 2021, section 3.1, eqs. 1–4. For similarities see Tung &
    Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, section 3.1, where they are
    each network's own, the student's among each other.
    """
    criterion = criterion or Criterion()
    _check_arguments(logits_MBC, labels_B, temperature, divergence, criterion)
    _check_valid(valid_BT, criterion)
    with torch.autocast(logits_MBC.device.type, enabled=False):
        logits_MBC = wide(logits_MBC)
        if not isinstance(temperature, Tensor):
            temperature = float(temperature)  # of numpy's numbers too
        decisions = criterion.decisions(logits_MBC, labels_B, valid_BT)
        own_M = logits_MBC.new_zeros(len(logits_MBC))
        if labels_B is not None:
            own_M = criterion.own_losses(decisions).sum(1)
        if are_vectors(criterion.problem):
            pairs_MM = _angles(decisions, divergence)
        elif decisions.logits_MNK.shape[-1] == 1:
            pairs_MM = _differences(decisions)
        else:
            pairs_MM = _divergences(decisions, temperature, divergence)
        diagonal = torch.eye(len(own_M), dtype=torch.bool, device=own_M.device)
        return torch.where(diagonal, own_M, pairs_MM)


def row_losses(
    logits_MBC: Tensor,
    labels_B: Tensor,
    criterion: Criterion | None = None,
    valid_BT: Tensor | None = None,
) -> Tensor:
    """Each row's own loss at each exit; its mean over B is the diagonal of L.

    Args:
        logits_MBC, labels_B, criterion, valid_BT: as for `loss_matrix`.

    Returns:
        −log p(y), or (ŷ − y)² of numbers, [M, B], float32 (float64 of float64).

    Raises:
        ValueError: shapes that don't fit, or logits that are no floating-point numbers.

    Example:
        >>> import torch
        >>> row_losses(torch.tensor([[[1.0], [3.0]]]), torch.tensor([0.0, 3.0]))
        tensor([[1., 0.]])
    """
    criterion = criterion or Criterion()
    _check_shapes(logits_MBC, labels_B, criterion)
    _check_valid(valid_BT, criterion)
    M, B = logits_MBC.shape[:2]
    with torch.autocast(logits_MBC.device.type, enabled=False):
        decisions = criterion.decisions(wide(logits_MBC), labels_B, valid_BT)
        return B * criterion.own_losses(decisions).view(M, B, -1).sum(-1)


def _divergences(
    decisions: Decisions, temperature: float | Tensor, divergence: Divergence
) -> Tensor:
    """−τ² Σ_k p_j log p_i of all pairs, a mean over decisions, [M, M]."""
    logits_MNK, _, share_N = decisions
    plain = isinstance(temperature, int | float) and temperature == 1
    soft_MNK = F.log_softmax(logits_MNK if plain else logits_MNK / temperature, -1)
    log_teacher_MNK = soft_MNK.detach()
    teacher_MNK = log_teacher_MNK.exp()
    if share_N is not None:
        teacher_MNK = teacher_MNK * share_N[:, None]
    pairs_MM = -torch.einsum("ink,jnk->ij", soft_MNK, teacher_MNK)
    if divergence == "kl":
        pairs_MM = pairs_MM + (teacher_MNK * log_teacher_MNK).sum((1, 2))
    pairs_MM = temperature**2 * pairs_MM
    return pairs_MM / logits_MNK.shape[1] if share_N is None else pairs_MM


def _differences(decisions: Decisions) -> Tensor:
    """(y_i − y_j)² of all pairs, a mean over decisions, [M, M]."""
    y_MN = decisions.logits_MNK.squeeze(-1)
    return (y_MN[:, None] - y_MN.detach()[None]).square().mean(2)


def _angles(decisions: Decisions, divergence: Divergence) -> Tensor:
    """1 − cos of all pairs, [M, M]; and how similarities to a teacher's vectors change."""
    v_MNK = F.normalize(decisions.logits_MNK, dim=-1)
    N = v_MNK.shape[1]
    pairs_MM = 1 - torch.einsum("ink,jnk->ij", v_MNK, v_MNK.detach()) / N
    if divergence == "similarity":
        apart = [((v_MNK - u_NK) @ u_NK.T).square().sum((1, 2)) / N for u_NK in v_MNK.detach()]
        pairs_MM = pairs_MM + torch.stack(apart, 1)
    return pairs_MM


def check_divergence(divergence: str, problem: str | None) -> None:
    """Refuse what is no divergence of a problem's outputs, by a ValueError."""
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence must be 'ce', 'kl' or 'similarity', got {divergence!r}")
    if divergence == "similarity" and not are_vectors(problem):
        raise ValueError(
            "divergence='similarity' compares the vectors of an embedding, and these outputs are "
            "others: use 'ce' or 'kl'"
        )


def _check_arguments(
    logits_MBC: Tensor,
    labels_B: Tensor | None,
    temperature: float | Tensor,
    divergence: str,
    criterion: Criterion,
) -> None:
    _check_shapes(logits_MBC, labels_B, criterion)
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
    check_divergence(divergence, criterion.problem)
    if are_vectors(criterion.problem) and not isinstance(temperature, Tensor) and temperature != 1:
        raise ValueError(f"vectors have no temperature: it must be 1, got {temperature}")
    criterion.check(logits_MBC.shape[-1])
    if labels_B is not None and looks:
        check_labels(labels_B, logits_MBC.shape[-1], problem=criterion.problem)


def _check_valid(valid_BT: Tensor | None, criterion: Criterion) -> None:
    if valid_BT is not None and criterion.problem != "token-classification":
        raise ValueError(
            "valid_BT says which tokens count, and these outputs are of whole rows: leave it out, "
            "or pass criterion=Criterion('token-classification')"
        )


def _check_shapes(logits_MBC: Tensor, labels_B: Tensor | None, criterion: Criterion) -> None:
    tokens = criterion.problem == "token-classification"
    if logits_MBC.ndim != 3 + tokens:
        shape = "[M, B, T, C]" if tokens else "[M, B, C]"
        raise ValueError(f"logits are {shape}; got {tuple(logits_MBC.shape)}")
    if labels_B is not None:
        check_label_shape(labels_B, tuple(logits_MBC.shape[1:]), criterion.problem)
    if not logits_MBC.is_floating_point():
        raise ValueError(f"logits are floating-point numbers, got {logits_MBC.dtype}")
