"""Methods whose exits learn from the labels."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from multiexit.evaluation.budget import Budget
from multiexit.evaluation.temperature_scaling import fit_temperatures
from multiexit.losses import coefficients
from multiexit.losses.gradients import equilibrium
from multiexit.losses.weights.rows import MetaWeights
from multiexit.policies import (
    Certainty,
    Entropy,
    MaxProb,
    MostConfident,
    Patience,
    PatientConfident,
)
from multiexit.recipes.base import Phase, Recipe, Seen


def joint(threshold: float = 0.3) -> Recipe:
    """Σ_m CE_m, every weight 1: the simple way, that others are to beat; stops at low entropy."""
    return replace(branchynet(threshold), name="joint")


def branchynet(threshold: float | tuple[float, ...] = 0.3) -> Recipe:
    """Σ_m CE_m, every weight 1; stops at low entropy (BranchyNet, section III).

    Args:
        threshold: of the entropy in nats, one for all exits or, as in the paper, one per exit.
    """
    return Recipe(
        "branchynet",
        "Teerapittayanon et al., BranchyNet: Fast Inference via Early Exiting",
        "III",
        2016,
        "every exit learns from the labels, all weights 1",
        (Phase(),),
        Entropy(threshold),
    )


def pabee(patience: int = 4, tolerance: float | None = None) -> Recipe:
    """Σ_m m·CE_m / Σ m; stops when answers stay the same (PABEE, section 3.3).

    Args:
        patience: how many agreements in a row.
        tolerance: for regression: how close answers must be to agree.
    """
    return Recipe(
        "pabee",
        "Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early Exit",
        "3.3",
        2020,
        "every exit learns from the labels, deeper ones weigh more",
        (Phase(coefficients=coefficients.depth_weighted),),
        Patience(patience, tolerance),
    )


def pcee(threshold: float = 0.2, patience: int = 2) -> Recipe:
    """PABEE's loss; stops after `patience` confident exits in a row (PCEE-BERT)."""
    return Recipe(
        "pcee",
        "Zhang et al., PCEE-BERT: Accelerating BERT Inference via Patient and Confident Exiting",
        "3",
        2022,
        "PABEE's training; several sure exits in a row end a row",
        (Phase(coefficients=coefficients.depth_weighted),),
        PatientConfident(threshold, patience),
    )


def shallow_deep(threshold: float = 0.9) -> Recipe:
    """CE_M and early exits whose weights grow with the epochs; stops at high max-prob (section 4).

    The paper's own head for images is `head="mixed-pool"`.
    """
    return Recipe(
        "shallow-deep",
        SHALLOW_DEEP,
        "4",
        2019,
        "early exits' weights grow to their share of the compute",
        (Phase(coefficients=coefficients.scheduled),),
        MostConfident(threshold),
    )


def right_tool(threshold: float = 0.9) -> Recipe:
    """Σ_m CE_m on mixed layers, then a temperature per exit; stops at high max-prob.

    The paper puts exits after a few layers: `exits=[0, 3, 5, 11]` of BERT-base.
    """
    return Recipe(
        "right-tool",
        "Schwartz et al., The Right Tool for the Job: Matching Model and Instance Complexities",
        "3",
        2020,
        "labels for all exits, each on a mix of layers, calibrated by temperatures",
        (Phase(),),
        MaxProb(threshold),
        head="+mix",
        finish=fit_temperatures,
    )


def berxit(threshold: float = 0.9, variant: Literal["paper", "code"] = "paper") -> Recipe:
    """The last exit and all exits take turns, and exits learn whether they are right.

        even steps CE_M + J,    odd steps Σ_m CE_m + J,    J = mean_(m,b) (u_mb − t_mb)²

    with u the exit's certainty and t what it should be: 1 where it is right and 0 where not, for
    regression 1 − |tanh(ŷ − y)|.

    Args:
        threshold: of the certainty.
        variant: `"code"` leaves the last exit out of the odd steps.
    """
    if variant not in ("paper", "code"):
        raise ValueError(f"variant must be 'paper' or 'code', got {variant!r}")
    odd = coefficients.summed if variant == "paper" else coefficients.early_only
    return Recipe(
        "berxit",
        "Xin et al., BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension",
        "3",
        2021,
        "the last exit and all exits take turns; exits learn to be certain",
        (Phase(coefficients=(coefficients.last_only, odd), extra=certainty_loss),),
        Certainty(threshold),
        head="own-pooler+lte",
    )


def certainty_loss(seen: Seen) -> Tensor:
    """mean_(m,b) (u_mb − t_mb)², t = 1[right], or 1 − |tanh(ŷ − y)| (BERxiT, section 3.3)."""
    if seen.certainty_MB is None:
        raise ValueError(
            "this method trains heads that learn to exit, and the model has none: make it with "
            "head='pooler+lte' (or 'own-pooler+lte', 'linear+lte')"
        )
    assert seen.labels_B is not None
    logits_MBC = seen.logits_MBC.detach()
    if logits_MBC.shape[-1] == 1:
        wanted_MB = 1 - (logits_MBC.squeeze(-1).float() - seen.labels_B.float()).tanh().abs()
    else:
        wanted_MB = (logits_MBC.argmax(-1) == seen.labels_B).float()
    return (seen.certainty_MB.float() - wanted_MB).square().mean()


def elasticbert(threshold: float = 0.3) -> Recipe:
    """Σ_m CE_m with gradient equilibrium in the trunk (ElasticBERT, section 3.2)."""
    return Recipe(
        "elasticbert",
        "Liu et al., Towards Efficient NLP: A Standard Evaluation and A Strong Baseline",
        "3.2",
        2022,
        "labels for all exits, their gradients balanced over the trunk",
        (Phase(branch=equilibrium),),
        Entropy(threshold),
        head="own-pooler",
    )


def msdnet(speedup: float = 2.0) -> Recipe:
    """Σ_m CE_m, and a threshold per exit for a budget of compute (MSDNet, section 4).

    Args:
        speedup: MACs of the full network ÷ expected MACs, the budget.
    """
    return Recipe(
        "msdnet",
        "Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification",
        "4",
        2018,
        "labels for all exits; thresholds spend a budget of compute",
        (Phase(),),
        MaxProb(0.9),
        finish=Budget(speedup),
    )


def l2w_den(
    epsilon: float = 0.3, over: Literal["batch", "exits"] = "batch", q: float = 0.75, cycle: int = 1
) -> Recipe:
    """Σ_m of weighted CE_m; a small network weighs rows, by meta-gradient (L2W-DEN, section 3).

    Args:
        epsilon, over, q, cycle: of `multiexit.losses.weights.rows.MetaWeights`.
    """
    return Recipe(
        "l2w-den",
        "Han et al., Learning to Weight Samples for Dynamic Early-Exiting Networks",
        "3",
        2022,
        "labels for all exits, rows weighed by a network that is learned by meta-gradient",
        (Phase(learner=MetaWeights("softmax", epsilon, over, q, cycle)),),
        MaxProb(0.9),
    )


SHALLOW_DEEP = (
    "Kaya et al., Shallow-Deep Networks: Understanding and Mitigating Network Overthinking"
)
