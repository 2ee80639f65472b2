"""COSEE: rows weigh most at the exits where they would leave, and doubt tells right from wrong.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from multiexit import problems
from multiexit.losses.weights.simulated import SimulatedExits
from multiexit.policies import NormalizedEntropy, normalized_entropy
from multiexit.recipes.base import Phase, Recipe, Seen
from multiexit.runtime import wide


def cosee(
    threshold: float = 0.3,
    beta: float = 10.0,
    thresholds: int = 5,
    alpha: float = 0.1,
    margin: float = 0.3,
) -> Recipe:
    """Σ_m mean_b w_mb·CE_mb + α·R: rows weigh most near the exits where they would leave (COSEE).

    Args:
        threshold: of its policy, H / log C.
        beta, thresholds: of `multiexit.weights.SimulatedExits`.
        alpha: α, of `separation`.
        margin: ε of it.

    Inputs:
        Any head; one class a row.

    Relations:
        With `beta=0` and `alpha=0` its loss is that of `joint` divided by M, as at its first step.

    Raises:
        ValueError: what `SimulatedExits` refuses.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("cosee", beta=5.0).phases[0].learner.beta
        5.0
    """
    return Recipe(
        name="cosee",
        paper=(
            "He et al., COSEE: Consistency-Oriented Signal-Based Early Exiting via Calibrated "
            "Sample Weighting Mechanism"
        ),
        section="abstract",
        year=2025,
        summary="labels for all exits, rows weigh most near the exits where they would leave",
        phases=(
            Phase(
                learner=SimulatedExits(beta=beta, thresholds=thresholds),
                extra=separation(alpha, margin),
            ),
        ),
        policy=NormalizedEntropy(threshold),
    )


def separation(alpha: float, margin: float) -> Callable[[Seen], Tensor]:
    """α·mean over early exits of max(0, mean H of rows it gets right − of those it doesn't + ε).

    H is the entropy over log C. Exits that are right on all rows of the batch, or on none, are left
    out.

    Args:
        alpha, margin: α and ε.

    Returns:
        The loss, for `Phase(extra=…)`; it refuses rows that aren't of one class each.
    """

    def loss(seen: Seen) -> Tensor:
        assert seen.labels_B is not None
        problem = problems.resolve(seen.problem, seen.logits_MBC.shape[-1])
        if problem != "classification":
            raise ValueError(
                "COSEE weighs rows by their entropy, of one class a row, and the problem is "
                f"{problem!r}: use a recipe such as 'joint' or 'pabee'"
            )
        logits_MBC = wide(seen.logits_MBC[:-1])
        labels_B = seen.labels_B if seen.labels_B.ndim == 1 else seen.labels_B.argmax(-1)
        right_MB = (logits_MBC.argmax(-1) == labels_B).float()
        doubt_MB = normalized_entropy(logits_MBC)
        right_M, wrong_M = (
            (doubt_MB * these_MB).sum(1) / these_MB.sum(1).clamp(min=1)
            for these_MB in (right_MB, 1 - right_MB)
        )
        both_M = (right_MB.amax(1) > right_MB.amin(1)).float()
        hinge_M = torch.relu(right_M - wrong_M + margin)
        return alpha * (both_M * hinge_M).sum() / both_M.sum().clamp(min=1)

    return loss
