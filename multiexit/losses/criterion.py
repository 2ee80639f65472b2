"""What exits learn from labels: the decisions of a batch, their targets, how much each counts.

Letters: M exits, B batch rows, T tokens, C outputs, P decisions of a row, N = B·P of a batch, K
what a decision is among.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit import problems
from multiexit.arguments import check_share
from multiexit.losses.labels import IGNORED


class Decisions(NamedTuple):
    """All decisions of a batch, row after row.

    Args:
        logits_MNK: of all exits.
        targets: classes [N], shares of the classes [N, K], or with K = 1 numbers [N]; of vectors
            others, [N, K]; None where there are no labels.
        share_N: how much each decision counts in a mean over them, summing to 1; None is 1/N.
    """

    logits_MNK: Tensor
    targets: Tensor | None
    share_N: Tensor | None


@dataclass(frozen=True)
class Criterion:
    """A batch's loss against its labels, as a mean over decisions n (see `multiexit.problems`).

        ℓ_n = −Σ_k w_k q_nk log p_nk,    (ŷ_n − y_n)² of numbers,    1 − cos(v_n, y_n) of vectors

    q is the label's class, or the shares of classes that a soft label gives; with label smoothing
    ε it is (1 − ε) q + ε/K. With class weights the mean is Σ ℓ_n / Σ_n Σ_k w_k q_nk, before
    smoothing; with several labels the weight is that of a yes and the mean stays 1/N. Without soft
    labels these are `torch.nn.CrossEntropyLoss` and `torch.nn.BCEWithLogitsLoss`.

    Args:
        problem: a key of `multiexit.problems.PROBLEMS`; None is classification, or with one output
            regression.
        label_smoothing: ε, in [0, 1).
        class_weights: w, one for each of the C outputs; None is 1.

    Raises:
        ValueError: a share outside [0, 1), weights that are no numbers from 0, or either of them
            for regression or vectors.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.zeros(1, 2, 3)
        >>> yes_or_no = mx.Criterion("multi-label")
        >>> mx.loss_matrix(logits_MBC, torch.tensor([[1, 0, 1], [0, 0, 0]]), criterion=yes_or_no)
        tensor([[0.6931]])
    """

    problem: str | None = None
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_share("label_smoothing", self.label_smoothing, "[0, 1)")
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", _weights(self.class_weights))

    def check(self, num_classes: int) -> None:
        """Refuse what doesn't fit C outputs, by a ValueError."""
        problem = problems.resolve(self.problem, num_classes)
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers, for {num_classes} classes"
            )
        classless = problem == "regression" or problems.are_vectors(problem)
        if classless and (self.label_smoothing or self.class_weights):
            raise ValueError(f"{problem} has no classes to smooth or to weigh: leave these out")

    def decisions(
        self, logits_MBC: Tensor, labels: Tensor | None, valid_BT: Tensor | None = None
    ) -> Decisions:
        """Take a batch apart into its decisions.

        Args:
            logits_MBC: all exits' logits [M, B, C], or of tokens [M, B, T, C].
            labels: as `multiexit.losses.labels.check_labels` has them, or None.
            valid_BT: which tokens are real; None is all.
        """
        problem = problems.resolve(self.problem, logits_MBC.shape[-1])
        logits_MNK = problems.decisions(logits_MBC, problem)
        if problem != "token-classification":
            if labels is None:
                return Decisions(logits_MNK, None, None)
            return Decisions(logits_MNK, _targets(problem, labels, logits_MNK), None)
        counts_BT = logits_MBC.new_ones(logits_MBC.shape[1:3], dtype=torch.bool)
        counts_BT = counts_BT if valid_BT is None else valid_BT
        targets_N = None
        if labels is not None:
            counts_BT = counts_BT & (labels != IGNORED)
            targets_N = labels.long().masked_fill(~counts_BT, 0).flatten()
        counts_N = counts_BT.flatten().to(logits_MNK.dtype)
        return Decisions(logits_MNK, targets_N, counts_N / counts_N.sum().clamp(min=1))

    def own_losses(self, decisions: Decisions) -> Tensor:
        """Each decision's part in each exit's loss, [M, N]: its sum over N is the loss."""
        logits_MNK, targets, share_N = decisions
        assert targets is not None
        M, N, K = logits_MNK.shape
        if problems.are_vectors(self.problem):
            return (1 - F.cosine_similarity(logits_MNK, targets.to(logits_MNK.dtype), dim=-1)) / N
        if K == 1:
            loss_MN = (logits_MNK.squeeze(-1) - targets.to(logits_MNK.dtype)).square()
            return loss_MN / N if share_N is None else loss_MN * share_N
        log_p_MNK = F.log_softmax(logits_MNK, -1)
        if targets.ndim == 1 and not self.label_smoothing and self.class_weights is None:
            loss_MN = -log_p_MNK.gather(-1, targets.long().expand(M, N).unsqueeze(-1)).squeeze(-1)
            return loss_MN / N if share_N is None else loss_MN * share_N
        q_NK = targets if targets.ndim == 2 else F.one_hot(targets.long(), K)
        q_NK = q_NK.to(logits_MNK.dtype)
        w_NK = self._weights_NK(logits_MNK)
        share_N = q_NK.new_full((N,), 1 / N) if share_N is None else share_N
        if self.class_weights is not None and self.problem != "multi-label":
            weight = (share_N * (w_NK * q_NK).sum(-1)).sum()
            share_N = share_N / weight.where(weight > 0, math.inf)  # 0 where nothing counts
        q_NK = (1 - self.label_smoothing) * q_NK + self.label_smoothing / K
        return -((w_NK * q_NK * log_p_MNK).sum(-1) * share_N)

    def _weights_NK(self, logits_MNK: Tensor) -> Tensor:
        """w of each decision's classes."""
        _, N, K = logits_MNK.shape
        if self.class_weights is None:
            return logits_MNK.new_ones(1, K)
        w_C = logits_MNK.new_tensor(self.class_weights)
        if self.problem != "multi-label":
            return w_C[None]
        return torch.stack([torch.ones_like(w_C), w_C], -1).repeat(N // len(w_C), 1)


def _targets(problem: str, labels: Tensor, logits_MNK: Tensor) -> Tensor:
    """The targets of all decisions, [N] or [N, K]."""
    if problem == "multi-label":  # the share of yes
        yes_N = labels.to(logits_MNK.dtype).flatten()
        return torch.stack([1 - yes_N, yes_N], -1)
    if problem in ("classification", "embedding") and labels.ndim == 2:  # shares, or vectors
        return labels.to(logits_MNK.dtype)
    return labels.flatten()


def _weights(weights: Any) -> tuple[float, ...]:
    """Weights as plain numbers, of lists, arrays and tensors."""
    values = weights.tolist() if hasattr(weights, "tolist") else weights
    numbers = list(values) if isinstance(values, list | tuple) else []
    if not all(
        isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < math.inf
        for w in numbers
    ) or not any(numbers):
        raise ValueError(
            f"class_weights must be a number from 0 for each class, not all 0, got {weights!r:.80}"
        )
    return tuple(float(w) for w in numbers)
