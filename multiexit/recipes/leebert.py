"""LeeBERT and its variants: exits teach each other, and the terms' weights are learned.

Equations, algorithms and sections without another name are those of Zhu, "LeeBERT", ACL 2021.

All take any head, and need two exits for one to teach the other; the paper's head for text is
`"pooler"`. All stop by `Patience(4)`, of classes: for regression give the recipe
`Patience(n, tolerance)` (`dataclasses.replace`). The learners that compare Θ on a second set cut
the training set into halves at each epoch, D1 for Θ and D2: an epoch is one pass over D1.
"""

from dataclasses import asdict, replace

from torch import Tensor

from multiexit.losses import weights
from multiexit.losses.matrix import Divergence
from multiexit.losses.temperature import Constant
from multiexit.losses.topology import Topology
from multiexit.losses.weights.learners import Learner
from multiexit.policies import Patience
from multiexit.recipes.base import Phase, Recipe

PAPER = "Zhu, LeeBERT: Learned Early Exit for BERT with Cross-Level Optimization"


def leebert(
    temperature: float = 1.0,
    cycle: int = 4,
    topology: str | Topology | Tensor = "lae",
    learner: Learner | None = None,
    divergence: Divergence = "ce",
    in_cycle: bool = True,
    rho: float | None = None,
    parametrization: str = "softmax",
    fresh: bool = True,
) -> Recipe:
    """Every exit learns from every other; the weights are learned by CLO-v2 (LeeBERT, section 3).

    Args:
        temperature: τ; the paper names none. 1 for text, 4 for images.
        cycle, in_cycle, rho, parametrization, fresh: of `CLO2`, where no learner is given. A
            parametrisation is a name of `multiexit.weights.PARAMETRIZATIONS`: the default descends,
            `"raw"` is the paper to the letter, `"softmax-ascent"` and `"group-dro"` ascend.
        topology: who teaches whom, as for `Phase`; LAE by default.
        learner: another way to learn the weights.
        divergence: `"ce"` is eq. 2.

    Inputs:
        Any head; classes. Θ sees half of the training set in an epoch, D1.

    Relations:
        With `cycle=1` it is `leebert_clo_v1`, with `topology="lle"` `leebert_lle`, with
        `topology="last"` `fastbert_clo_v2`. With `learner=Uniform()` it is `leebert_uniform`, and
        with `topology="none"` too it trains as `joint`. Its loss is that of `leebert_uniform` at
        the first step, and goes apart from it as Ω moves.

    Raises:
        ValueError: a temperature that isn't above 0, an unknown divergence, what `CLO2` refuses, or
            a setting of `CLO2` beside a learner.

    Example:
        >>> import multiexit as mx
        >>> (phase,) = mx.recipe("leebert", cycle=2).phases
        >>> phase.topology, phase.learner.cycle
        ('lae', 2)
    """
    clo2 = weights.CLO2(parametrization, rho, cycle, in_cycle, fresh)
    plain = asdict(weights.CLO2())
    given = [f"{name}={value!r}" for name, value in asdict(clo2).items() if value != plain[name]]
    if learner is not None and given:
        raise ValueError(
            f"{', '.join(given)} goes with CLO2, and the learner is {learner}: give it to the "
            "learner, if that has such a field, or leave it out"
        )
    phase = Phase(
        topology=topology,
        learner=clo2 if learner is None else learner,
        temperature=Constant(temperature),
        divergence=divergence,
    )
    return Recipe(
        name="leebert",
        paper=PAPER,
        section="3",
        year=2021,
        summary="all exits teach all, weights by CLO-v2",
        phases=(phase,),
        policy=Patience(4),
    )


def leebert_lle(temperature: float = 1.0, cycle: int = 4) -> Recipe:
    """Learn from later exits only, CLO-v2 (section 3.1.2).

    Args:
        temperature: τ.
        cycle: C of `CLO2`.

    Inputs:
        As `leebert`. The last exit learns from the labels alone.

    Relations:
        `leebert(topology="lle")`.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-lle").phases[0].topology
        'lle'
    """
    recipe = leebert(temperature, cycle, topology="lle")
    return _renamed(recipe, "leebert-lle", "3.1.2", "later exits teach earlier ones, CLO-v2")


def leebert_rand(temperature: float = 1.0) -> Recipe:
    """Random weights from 1..50, those of an exit summing to 1 (section 4.4).

    Args:
        temperature: τ.

    Inputs:
        Any head; classes. The weights are drawn from the run's seed, and the training set is not
        cut.

    Relations:
        Were all numbers drawn equal, its loss would be that of `leebert_uniform` divided by M.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-rand").phases[0].learner.learns
        False
    """
    recipe = leebert(temperature, learner=weights.Random())
    return _renamed(recipe, "leebert-rand", "4.4", "all teach all, random weights")


def leebert_uniform(temperature: float = 1.0) -> Recipe:
    """Uniform weights: eqs. 1 + 4 as they stand (section 4.4).

    Args:
        temperature: τ.

    Inputs:
        Any head; classes. The training set is not cut.

    Relations:
        `leebert(learner=Uniform())`. Its loss is the first one of `leebert` and of those variants
        that learn their weights.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-uniform").phases[0].learner
        Uniform(parametrization='softmax')
    """
    recipe = leebert(temperature, learner=weights.Uniform())
    return _renamed(recipe, "leebert-uniform", "4.4", "all teach all, uniform weights")


def leebert_slo(temperature: float = 1.0) -> Recipe:
    """Single-level optimisation of the weights (eq. 7).

    Args:
        temperature: τ.

    Inputs:
        Any head; classes. The training set is not cut, and there are no passes beside Θ's own.

    Relations:
        `leebert(learner=SLO())`: the weights follow the loss on the batch that Θ steps along.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-slo").phases[0].learner.splits
        False
    """
    recipe = leebert(temperature, learner=weights.SLO())
    return _renamed(recipe, "leebert-slo", "3.3.1", "all teach all, weights by SLO")


def leebert_blo(temperature: float = 1.0) -> Recipe:
    """Bi-level, first-order optimisation of the weights (eq. 8).

    Args:
        temperature: τ.

    Inputs:
        As `leebert`.

    Relations:
        `leebert_clo_v1` with ρ = 0: `leebert(learner=CLO1(rho=0.0))`.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-blo").phases[0].learner.plan(0, rho=0.5)
        Plan(stepping=0.0, first=0.0, second=1.0, hyper=0.0)
    """
    recipe = leebert(temperature, learner=weights.BLO())
    return _renamed(recipe, "leebert-blo", "3.3.1", "all teach all, weights by BLO")


def leebert_clo_v1(temperature: float = 1.0, fresh: bool = True) -> Recipe:
    """Cross-level optimisation at every step (eq. 9, Algorithm 1).

    Args:
        temperature: τ.
        fresh: of `CLO1`.

    Inputs:
        As `leebert`.

    Relations:
        `leebert(cycle=1)`; with ρ = 0 `leebert_blo`.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-clo-v1").phases[0].learner.plan(0, rho=0.5)
        Plan(stepping=0.0, first=0.5, second=1.0, hyper=0.0)
    """
    recipe = leebert(temperature, learner=weights.CLO1(fresh=fresh))
    return _renamed(recipe, "leebert-clo-v1", "3.4", "all teach all, weights by CLO-v1")


def leebert_hyper(temperature: float = 1.0, cycle: int = 4) -> Recipe:
    """Weights by the exact one-step hypergradient; not in the paper, whose eq. 6 it descends.

    Args:
        temperature: τ.
        cycle: the weights move at every so many steps.

    Inputs:
        As `leebert`. SGD without Nesterov and dampening, or Adam(W); not compiled.

    Relations:
        Follows Σ_m CE_m on D2 through Θ's step, where `leebert_blo` follows the weighted loss on
        D2 as if Θ didn't depend on the weights. Its weights are uniform until the first cycle ends.

    Raises:
        ValueError: a cycle that is no whole number from 1.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-hyper").phases[0].learner.looks_back
        True
    """
    recipe = leebert(temperature, learner=weights.Hyper(cycle=cycle))
    return _renamed(recipe, "leebert-hyper", "3.3", "all teach all, weights by hypergradient")


def leebert_group_dro(temperature: float = 1.0, normalized: bool = False) -> Recipe:
    """Exits weigh the more the larger their loss is (Sagawa et al. 2020); not in the paper.

    Args:
        temperature: τ.
        normalized: each term is compared with a running mean of itself, see
            `multiexit.weights.Normalized`.

    Inputs:
        As `leebert_slo`.

    Relations:
        `leebert_slo` with weights that go up where those go down, and with one for each exit.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("leebert-group-dro").phases[0].learner
        SLO(parametrization='group-dro')
    """
    name = "group-dro-normalized" if normalized else "group-dro"
    recipe = leebert(temperature, learner=weights.SLO(name))
    recipe = _renamed(
        recipe, "leebert-group-dro", "Algorithm 1", "all teach all, worse exits weigh more"
    )
    paper = "Sagawa et al., Distributionally Robust Neural Networks for Group Shifts"
    return replace(recipe, paper=paper, year=2020)


def fastbert_clo_v2(temperature: float = 1.0, cycle: int = 4) -> Recipe:
    """FastBERT's topology, the last exit as only teacher, with weights by CLO-v2 (section 4.4).

    Args:
        temperature: τ.
        cycle: C of `CLO2`.

    Inputs:
        As `leebert`.

    Relations:
        `leebert(topology="last")`. `fastbert` itself trains in two phases, the early heads alone in
        the second, without labels and by KL.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("fastbert-clo-v2").phases[0].topology
        'last'
    """
    recipe = leebert(temperature, cycle, topology="last")
    return _renamed(recipe, "fastbert-clo-v2", "4.4", "the last exit teaches, weights by CLO-v2")


def _renamed(recipe: Recipe, name: str, section: str, summary: str) -> Recipe:
    return replace(recipe, name=name, section=section, summary=summary)
