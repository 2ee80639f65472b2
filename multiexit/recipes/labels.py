"""Methods whose exits learn from the labels."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from multiexit import problems
from multiexit.evaluation.budget import Budget
from multiexit.evaluation.temperature_scaling import fit_temperatures
from multiexit.losses import coefficients
from multiexit.losses.gradients import Aggregation, equilibrium
from multiexit.losses.labels import as_answers
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


def joint(
    threshold: float = 0.3, aggregation: Literal["upgrad", "pcgrad", "cagrad"] | None = None
) -> Recipe:
    """Σ_m CE_m, every weight 1: the simple way, that others are to beat; stops at low entropy.

    Args:
        threshold: of the entropy in nats.
        aggregation: of the exits' gradients, see `multiexit.gradients.Aggregation`; None adds them.

    Inputs:
        Any head, one exit or more. Classes; with another policy regression too. Aggregations need
        TorchJD.

    Relations:
        `branchynet` under another name, but for aggregations. `msdnet` and `right_tool` train on
        the same loss and end otherwise, `mixed` ends with it. `leebert(topology="none",
        learner=Uniform())` trains the same.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("joint").policy
        Entropy(threshold=0.3)
    """
    phase = Phase(surgery=None if aggregation is None else Aggregation(aggregation))
    return replace(branchynet(threshold), name="joint", phases=(phase,))


def branchynet(threshold: float | tuple[float, ...] = 0.3) -> Recipe:
    """Σ_m CE_m, every weight 1; stops at low entropy (BranchyNet, section III).

    Args:
        threshold: of the entropy in nats, one for all exits or, as in the paper, one per exit.

    Inputs:
        Any head, one exit or more. Classes; with another policy regression too.

    Relations:
        The same as `joint`.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("branchynet", threshold=(0.1, 0.4)).policy
        Entropy(threshold=(0.1, 0.4))
    """
    return Recipe(
        name="branchynet",
        paper="Teerapittayanon et al., BranchyNet: Fast Inference via Early Exiting",
        section="III",
        year=2016,
        summary="every exit learns from the labels, all weights 1",
        phases=(Phase(),),
        policy=Entropy(threshold),
    )


def pabee(patience: int = 4, tolerance: float | None = None) -> Recipe:
    """Σ_m m·CE_m / Σ m; stops when answers stay the same (PABEE, section 3.3).

    Args:
        patience: how many agreements in a row.
        tolerance: for regression: how close answers must be to agree, in the labels' unit.

    Inputs:
        Any head; the paper's, for text, is `"pooler"`. Classes, or regression with a tolerance. To
        stop early, the model needs more exits than `patience` + 1.

    Relations:
        `pcee` trains the same and stops otherwise. `joint` has the same terms, all with weight 1.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("pabee", patience=1, tolerance=0.5).policy
        Patience(patience=1, tolerance=0.5)
    """
    return Recipe(
        name="pabee",
        paper="Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early Exit",
        section="3.3",
        year=2020,
        summary="every exit learns from the labels, deeper ones weigh more",
        phases=(Phase(coefficients=coefficients.depth_weighted),),
        policy=Patience(patience, tolerance),
    )


def pcee(threshold: float = 0.2, patience: int = 2) -> Recipe:
    """PABEE's loss; stops after `patience` confident exits in a row (PCEE-BERT).

    Args:
        threshold: below it H / log C is confident, in 0..1.
        patience: how many confident exits in a row.

    Inputs:
        Any head; classes.

    Relations:
        Trains as `pabee`.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("pcee", patience=3).policy
        PatientConfident(threshold=0.2, patience=3)
    """
    return Recipe(
        name="pcee",
        paper=(
            "Zhang et al., PCEE-BERT: Accelerating BERT Inference via Patient and Confident Exiting"
        ),
        section="3",
        year=2022,
        summary="PABEE's training; several sure exits in a row end a row",
        phases=(Phase(coefficients=coefficients.depth_weighted),),
        policy=PatientConfident(threshold, patience),
    )


def shallow_deep(threshold: float = 0.9) -> Recipe:
    """CE_M and early exits whose weights grow with the epochs; stops at high max-prob (section 4).

    Args:
        threshold: of the largest probability.

    Inputs:
        Any head; the paper's own, for images, is `"mixed-pool"`. Classes.

    Relations:
        `joint` with the early exits' weights min(C_m, 0.01 + C_m·e/E), C_m the share of the
        network's MACs, in place of 1. `shallow_deep_heads` puts the exits on a finished network.

    Example:
        >>> import multiexit as mx
        >>> recipe = mx.recipe("shallow-deep")
        >>> recipe.phases[0].coefficients is mx.coefficients.scheduled, recipe.policy
        (True, MostConfident(threshold=0.9))
    """
    return Recipe(
        name="shallow-deep",
        paper=SHALLOW_DEEP,
        section="4",
        year=2019,
        summary="early exits' weights grow to their share of the compute",
        phases=(Phase(coefficients=coefficients.scheduled),),
        policy=MostConfident(threshold),
    )


def right_tool(threshold: float = 0.9) -> Recipe:
    """Σ_m CE_m on mixed layers, then a temperature per exit; stops at high max-prob.

    The paper puts exits after a few layers: `exits=[0, 3, 5, 11]` of BERT-base.

    Args:
        threshold: of the largest probability.

    Inputs:
        Heads that mix, `head="+mix"` or another name with `+mix` behind it, on stages of one
        width; classes; a dev set, which the temperatures are fitted on.

    Relations:
        Trains on the loss of `joint`. `multiexit.fit_temperatures` ends any other method as this
        one ends.

    Example:
        >>> import multiexit as mx
        >>> recipe = mx.recipe("right-tool")
        >>> recipe.head, recipe.finish is mx.fit_temperatures
        ('+mix', True)
    """
    return Recipe(
        name="right-tool",
        paper=(
            "Schwartz et al., The Right Tool for the Job: Matching Model and Instance Complexities"
        ),
        section="3",
        year=2020,
        summary="labels for all exits, each on a mix of layers, calibrated by temperatures",
        phases=(Phase(),),
        policy=MaxProb(threshold),
        head="+mix",
        finish=fit_temperatures,
    )


def berxit(threshold: float = 0.9, variant: Literal["paper", "code"] = "paper") -> Recipe:
    """The last exit and all exits take turns, and exits learn whether they are right.

        even steps CE_M + J,    odd steps Σ_m CE_m + J,    J = mean_(m,b) (u_mb − t_mb)²

    with u the exit's certainty and t what it should be: 1 where it is right and 0 where not, for
    regression 1 − |tanh(ŷ − y)|. Of a row of several labels or numbers t is the least of theirs.

    Args:
        threshold: of the certainty.
        variant: `"code"` leaves the last exit out of the odd steps.

    Inputs:
        Heads that learn to exit: `"own-pooler+lte"`, or another name with `+lte` behind it, on
        stages of one width. Classes or regression.

    Relations:
        Ordinary fine-tuning (CE_M) and `joint` in turn, with J beside both.

    Raises:
        ValueError: another variant.

    Example:
        >>> import multiexit as mx
        >>> recipe = mx.recipe("berxit")
        >>> recipe.policy, recipe.head
        (Certainty(threshold=0.9), 'own-pooler+lte')
    """
    if variant not in ("paper", "code"):
        raise ValueError(f"variant must be 'paper' or 'code', got {variant!r}")
    odd = coefficients.summed if variant == "paper" else coefficients.early_only
    return Recipe(
        name="berxit",
        paper="Xin et al., BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension",
        section="3",
        year=2021,
        summary="the last exit and all exits take turns; exits learn to be certain",
        phases=(Phase(coefficients=(coefficients.last_only, odd), extra=certainty_loss),),
        policy=Certainty(threshold),
        head="own-pooler+lte",
    )


def certainty_loss(seen: Seen) -> Tensor:
    """mean_(m,b) (u_mb − t_mb)², t = 1[right], or 1 − |tanh(ŷ − y)| (BERxiT, section 3.3).

    Of a row that is several decisions, t is the least of theirs: all must be right.

    Args:
        seen: a batch with labels, and the certainties u of heads that learn to exit.

    Returns:
        A scalar; its gradient reaches u, not the logits.

    Raises:
        ValueError: heads that don't learn to exit.
    """
    if seen.certainty_MB is None:
        raise ValueError(
            "this method trains heads that learn to exit, and the model has none: make it with "
            "head='pooler+lte' (or 'own-pooler+lte', 'linear+lte')"
        )
    assert seen.labels_B is not None
    logits_MBC = seen.logits_MBC.detach()
    problem = problems.resolve(seen.problem, logits_MBC.shape[-1])
    answer_MB = problems.answer(logits_MBC, problem)
    if problem == "regression":
        wanted_MB = 1 - (answer_MB.float() - seen.labels_B.float()).tanh().abs()
        wanted_MB = wanted_MB if wanted_MB.ndim == 2 else wanted_MB.amin(-1)
    else:
        wanted_MB = problems.same(answer_MB, as_answers(seen.labels_B, problem), problem).float()
    return (seen.certainty_MB.float() - wanted_MB).square().mean()


def elasticbert(threshold: float = 0.3) -> Recipe:
    """Σ_m CE_m with gradient equilibrium in the trunk (ElasticBERT, section 3.2).

    Args:
        threshold: of the entropy in nats.

    Inputs:
        Any head; the paper's is `"own-pooler"`. Classes; with another policy regression too.

    Relations:
        The loss of `joint`, and its gradients by the heads. A stage gets the mean, not the sum, of
        the gradients of the exits at or above it.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("elasticbert").phases[0].branch is mx.gradients.equilibrium
        True
    """
    return Recipe(
        name="elasticbert",
        paper="Liu et al., Towards Efficient NLP: A Standard Evaluation and A Strong Baseline",
        section="3.2",
        year=2022,
        summary="labels for all exits, their gradients balanced over the trunk",
        phases=(Phase(branch=equilibrium),),
        policy=Entropy(threshold),
        head="own-pooler",
    )


def msdnet(speedup: float = 2.0) -> Recipe:
    """Σ_m CE_m, and a threshold per exit for a budget of compute (MSDNet, section 4).

    Args:
        speedup: MACs of the full network ÷ expected MACs, the budget.

    Inputs:
        Any head; classes; a dev set, which the thresholds are chosen on.

    Relations:
        Trains as `joint`. `multiexit.budgeted` ends any other method as this one ends.

    Raises:
        ValueError: a speed-up that isn't above 0; in training, one that the model can't reach.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("msdnet", speedup=1.5).finish
        Budget(speedup=1.5)
    """
    return Recipe(
        name="msdnet",
        paper=(
            "Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification"
        ),
        section="4",
        year=2018,
        summary="labels for all exits; thresholds spend a budget of compute",
        phases=(Phase(),),
        policy=MaxProb(0.9),
        finish=Budget(speedup),
    )


def l2w_den(
    epsilon: float = 0.3, over: Literal["batch", "exits"] = "batch", q: float = 0.75, cycle: int = 1
) -> Recipe:
    """Σ_m of weighted CE_m; a small network weighs rows, by meta-gradient (L2W-DEN, section 3).

    Args:
        epsilon, over, q, cycle: of `multiexit.weights.MetaWeights`.

    Inputs:
        Any head; classes. Θ sees half of the training set in an epoch, D1; the weighting network
        is judged on the other half. SGD without Nesterov and dampening, or Adam(W); not compiled.

    Relations:
        `joint` on D1, with weights of rows that are 1 on average over the batch and the exits.

    Raises:
        ValueError: what `MetaWeights` refuses.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("l2w-den", epsilon=0.8, over="exits").phases[0].learner.epsilon
        0.8
    """
    return Recipe(
        name="l2w-den",
        paper="Han et al., Learning to Weight Samples for Dynamic Early-Exiting Networks",
        section="3",
        year=2022,
        summary="labels for all exits, rows weighed by a network that is learned by meta-gradient",
        phases=(Phase(learner=MetaWeights("softmax", epsilon, over, q, cycle)),),
        policy=MaxProb(0.9),
    )


SHALLOW_DEEP = (
    "Kaya et al., Shallow-Deep Networks: Understanding and Mitigating Network Overthinking"
)
