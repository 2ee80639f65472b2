"""BERT-PKD: a short network learns from a fine-tuned one, its answers and its layers.

Letters: L layers of the teacher, n of the student, M exits, B batch rows, C classes, H width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.arguments import check_share
from multiexit.backbones import Carry
from multiexit.losses import coefficients
from multiexit.model.model import MultiExitModel
from multiexit.policies import FixedExit
from multiexit.recipes import Phase, Recipe, Seen
from multiexit.recipes.static.layers import check_depth
from multiexit.recipes.static.teaching import Teaching

PATTERNS = ("skip", "last")


def pkd(
    teacher: MultiExitModel,
    layers: int,
    alpha: float = 0.7,
    temperature: float = 10.0,
    beta: float = 500.0,
    pattern: str = "skip",
) -> Recipe:
    """Patient knowledge distillation into n layers (Sun et al. 2019, section 3).

        (1 − α)·CE + α·τ²/(B·C)·Σ p_T^(1/τ) log(p_T^(1/τ) / p_S^(1/τ))
          + β/(B·(n − 1)·H)·Σ_b Σ_(j<n) ‖h_S(b, j)/‖h_S(b, j)‖ − h_T(b, g(j))/‖h_T(b, g(j))‖‖²

    with h the first token's hidden state after a layer. The student's last layer learns from the
    answers alone. g(j) = ⌊j·L / n⌋, j = 1..n − 1, for `"skip"` (2, 4, 6, 8, 10 for 6 of 12), or
    L − n + j for `"last"` (7, …, 11).

    Train a student with an exit after *each* of its n layers, for these bring the hidden states;
    the heads of all but the last learn nothing. `single_exit(student)` is the result. The paper
    starts it from the first n layers of the *pre-trained* network.

    Where paper and code differ we follow the code, whose settings belong to it: means, not sums,
    over rows, layers, width *and classes*, and KL in place of cross-entropy.

    Args:
        teacher: fine-tuned; its last exit teaches. It is run in evaluation mode, without
            gradients, where the student is, and is no part of the student.
        layers: n ≥ 2.
        alpha: α in [0, 1); the paper searches 0.2, 0.5, 0.7.
        temperature: τ > 0; the paper searches 5, 10, 20.
        beta: β ≥ 0; the paper searches 10, 100, 500, 1000.
        pattern: `"skip"` or `"last"`.

    Inputs:
        A student with an exit after each of its n layers, of the teacher's width, and the teacher's
        classes and tokens.

    Relations:
        With `alpha=0` and `beta=0` it trains as `fine_tune`: the last exit, by the labels.

    Raises:
        ValueError: values outside these ranges, a teacher of another problem than classification
            or with fewer layers; in
            training, a student that has other exits or another width.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)))
        >>> teacher = mx.MultiExitModel(bert, num_classes=2)
        >>> mx.static.pkd(teacher, layers=2).policy
        FixedExit(exit=1)
    """
    teaching = Teaching(teacher, temperature, "PKD", "static.Theseus")
    depth = _checked_depth(teacher, layers, alpha, beta, pattern)
    taught = tuple(teacher_layers(depth, layers, pattern))

    def labels_part(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
        return (1 - alpha) * coefficients.last_only(teaches_MM, progress, shares_M)

    def patience(seen: Seen) -> Tensor:
        if len(seen.features) != layers:
            raise ValueError(
                f"PKD reads the hidden states of all {layers} layers, and this student has "
                f"{len(seen.features)} exits: make it with exits='all'"
            )
        states: list[Tensor] = []

        def run_stage(carry: Carry, stage: int) -> tuple[Carry, Tensor]:
            carry, feature = teacher.backbone.stage(carry, stage)
            states.append(feature[:, 0].float())
            return carry, feature

        answers = teaching.divergence(seen, run_stage).mean()
        teacher_BnH = torch.stack([states[layer] for layer in taught], 1)
        student_BnH = torch.stack([feature[:, 0].float() for feature in seen.features[:-1]], 1)
        if student_BnH.shape != teacher_BnH.shape:
            raise ValueError(
                f"the student's states have width {student_BnH.shape[-1]}, the teacher's "
                f"{teacher_BnH.shape[-1]}: they must be the same"
            )
        gap = F.mse_loss(F.normalize(student_BnH, dim=-1), F.normalize(teacher_BnH, dim=-1))
        return alpha * temperature**2 * answers + beta * gap

    phase = Phase(
        coefficients=labels_part, train="last", extra=patience, before_step=teaching.check_apart
    )
    return Recipe(
        name="pkd",
        paper="Sun et al., Patient Knowledge Distillation for BERT Model Compression",
        section="3",
        year=2019,
        summary="one exit learns from the labels and from a longer network's answers and layers",
        phases=(phase,),
        policy=FixedExit(layers - 1),
    )


def teacher_layers(depth: int, layers: int, pattern: str = "skip") -> list[int]:
    """The teacher's layers, counted from 0, that the student's first n − 1 layers learn from.

    Args:
        depth: L, the teacher's layers.
        layers: n, the student's.
        pattern: `"skip"` or `"last"`.

    Example:
        >>> teacher_layers(12, 6), teacher_layers(12, 6, "last")
        ([1, 3, 5, 7, 9], [6, 7, 8, 9, 10])
    """
    if pattern == "skip":
        return [j * depth // layers - 1 for j in range(1, layers)]
    return [depth - layers + j - 1 for j in range(1, layers)]


def _checked_depth(
    teacher: MultiExitModel, layers: int, alpha: float, beta: float, pattern: str
) -> int:
    """The teacher's depth, if all is well."""
    depth = teacher.exits[-1] + 1
    check_depth(layers, depth)
    if layers < 2:
        raise ValueError("PKD needs 2 layers or more: the last one learns from no hidden state")
    check_share("alpha", alpha, "[0, 1)")  # below 1: the labels must count too
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta must be 0 or more, got {beta}")
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {PATTERNS}, got {pattern!r}")
    return depth
