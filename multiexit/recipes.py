"""Training methods by name: each a `Recipe` with its paper and section.

A method is data: who teaches whom, how the terms are weighed, who is trained, and how the result
stops. A new one is a function that returns a `Recipe`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from multiexit import coefficients, weights
from multiexit.coefficients import Coefficients
from multiexit.losses import Divergence
from multiexit.policies import Entropy, ExitPolicy, MaxProb, Patience
from multiexit.temperature import Constant, Rising, Temperature
from multiexit.topology import Topology
from multiexit.weights import Learner, Uniform


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Args:
        topology: `"none"`, `"last"`, `"lle"`, `"lae"`, a function of M, or a bool matrix.
        coefficients: the method's fixed factors A of the loss terms.
        learner: how the weights Ω are learned.
        temperature: τ of the distillation terms.
        divergence: `"ce"` (eq. 2) or `"kl"`.
        train: who is trained: everything, everything but the early heads, or these alone with the
            trunk frozen (BatchNorm's statistics and dropout too).
        epochs: how long; None is the run's own number.
    """

    topology: str | Topology | Tensor = "none"
    coefficients: Coefficients = coefficients.summed
    learner: Learner = field(default_factory=Uniform)
    temperature: Temperature = field(default_factory=Constant)
    divergence: Divergence = "ce"
    train: Literal["all", "last", "heads"] = "all"
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.train not in ("all", "last", "heads"):
            raise ValueError(f"a phase trains 'all', 'last' or 'heads', not {self.train!r}")
        if self.divergence not in ("ce", "kl"):
            raise ValueError(f"divergence must be 'ce' or 'kl', got {self.divergence!r}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"a phase needs at least 1 epoch, got {self.epochs}")


@dataclass(frozen=True)
class Recipe:
    """A training method.

    Args:
        name: as on the command line.
        paper, section, year: where it comes from.
        summary: one line.
        phases: what is trained, one after another.
        policy: how its paper stops.
        head: the exit head it asks for; None is the backbone's own.
    """

    name: str
    paper: str
    section: str
    year: int
    summary: str
    phases: tuple[Phase, ...]
    policy: ExitPolicy
    head: str | None = None

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError(f"recipe {self.name!r} has no phases")


def leebert(
    temperature: float = 1.0,
    cycle: int = 4,
    topology: str | Topology | Tensor = "lae",
    learner: Learner | None = None,
    divergence: Divergence = "ce",
    in_cycle: bool = True,
    rho: float | None = None,
    parametrization: Literal["softmax", "raw", "uncertainty"] = "softmax",
) -> Recipe:
    """Every exit learns from every other; the weights are learned by CLO-v2 (LeeBERT, section 3).

    Args:
        temperature: τ; the paper names none. 1 for text, 4 for images.
        cycle, in_cycle, rho, parametrization: of `CLO2`, where no learner is given.
        topology: LAE by default.
        learner: another way to learn the weights.
        divergence: `"ce"` is eq. 2.
    """
    phase = Phase(
        topology=topology,
        learner=learner or weights.CLO2(parametrization, rho, cycle, in_cycle),
        temperature=Constant(temperature),
        divergence=divergence,
    )
    return Recipe(
        name="leebert",
        paper="Zhu, LeeBERT: Learned Early Exit for BERT with Cross-Level Optimization",
        section="3",
        year=2021,
        summary="all exits teach all, weights by CLO-v2",
        phases=(phase,),
        policy=Patience(4),
    )


def leebert_lle(temperature: float = 1.0, cycle: int = 4) -> Recipe:
    """Learn from later exits only, CLO-v2 (section 3.1.2)."""
    made = leebert(temperature, cycle, topology="lle")
    return _named(made, "leebert-lle", "3.1.2", "later exits teach earlier ones, CLO-v2")


def leebert_rand(temperature: float = 1.0) -> Recipe:
    """Random weights from 1..50 (section 4.4)."""
    made = leebert(temperature, learner=weights.Random())
    return _named(made, "leebert-rand", "4.4", "all teach all, random weights")


def leebert_uniform(temperature: float = 1.0) -> Recipe:
    """Uniform weights (section 4.4)."""
    made = leebert(temperature, learner=weights.Uniform())
    return _named(made, "leebert-uniform", "4.4", "all teach all, uniform weights")


def leebert_slo(temperature: float = 1.0) -> Recipe:
    """Single-level optimisation of the weights (eq. 7)."""
    made = leebert(temperature, learner=weights.SLO())
    return _named(made, "leebert-slo", "3.3.1", "all teach all, weights by SLO")


def leebert_blo(temperature: float = 1.0) -> Recipe:
    """Bi-level, first-order optimisation of the weights (eq. 8)."""
    made = leebert(temperature, learner=weights.BLO())
    return _named(made, "leebert-blo", "3.3.1", "all teach all, weights by BLO")


def leebert_clo_v1(temperature: float = 1.0) -> Recipe:
    """Cross-level optimisation at every step (eq. 9, Algorithm 1)."""
    made = leebert(temperature, learner=weights.CLO1())
    return _named(made, "leebert-clo-v1", "3.4", "all teach all, weights by CLO-v1")


def fastbert_clo_v2(temperature: float = 1.0, cycle: int = 4) -> Recipe:
    """FastBERT's topology, the last exit as only teacher, with weights by CLO-v2 (section 4.4)."""
    made = leebert(temperature, cycle, topology="last")
    return _named(made, "fastbert-clo-v2", "4.4", "the last exit teaches, weights by CLO-v2")


def joint(threshold: float = 0.3) -> Recipe:
    """Σ_m CE_m, every weight 1; stops at low entropy (BranchyNet)."""
    return Recipe(
        "joint",
        "Teerapittayanon et al., BranchyNet: Fast Inference via Early Exiting",
        "III",
        2016,
        "every exit learns from the labels, all weights 1",
        (Phase(),),
        Entropy(threshold),
    )


def pabee(patience: int = 4) -> Recipe:
    """Σ_m m·CE_m / Σ m; stops when answers stay the same (PABEE, section 3.3)."""
    return Recipe(
        "pabee",
        "Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early Exit",
        "3.3",
        2020,
        "every exit learns from the labels, deeper ones weigh more",
        (Phase(coefficients=coefficients.depth_weighted),),
        Patience(patience),
    )


def shallow_deep(threshold: float = 0.9) -> Recipe:
    """CE_M and early exits whose weights grow with the epochs; stops at high max-prob (section 4).

    The paper's own head for images is `head="mixed-pool"`. Its fallback, the most confident exit
    so far for inputs that never stop, is not part of `MaxProb`: these take the last exit.
    """
    return Recipe(
        "shallow-deep",
        "Kaya et al., Shallow-Deep Networks: Understanding and Mitigating Network Overthinking",
        "4",
        2019,
        "early exits' weights grow to their share of the compute",
        (Phase(coefficients=coefficients.scheduled),),
        MaxProb(threshold),
    )


def dbt(temperature: float | None = None, mix: float = 0.5, threshold: float = 0.9) -> Recipe:
    """The last exit teaches all others beside the labels (Phuong & Lampert).

    Args:
        temperature: a constant τ (their variant: 4); None rises from 1 by ×1.05.
        mix: C, the distillation's part.
        threshold: of its policy.
    """
    rule = Rising() if temperature is None else Constant(temperature)
    return Recipe(
        "dbt",
        "Phuong & Lampert, Distillation-Based Training for Multi-Exit Architectures",
        "3",
        2019,
        "the last exit teaches, at a rising temperature",
        (Phase("last", coefficients.distilled(mix), temperature=rule),),
        MaxProb(threshold),
    )


RECIPES: dict[str, Callable[..., Recipe]] = {
    "leebert": leebert,
    "leebert-lle": leebert_lle,
    "leebert-rand": leebert_rand,
    "leebert-uniform": leebert_uniform,
    "leebert-slo": leebert_slo,
    "leebert-blo": leebert_blo,
    "leebert-clo-v1": leebert_clo_v1,
    "fastbert-clo-v2": fastbert_clo_v2,
    "joint": joint,
    "pabee": pabee,
    "shallow-deep": shallow_deep,
    "dbt": dbt,
}


def recipe(name: str, **options: Any) -> Recipe:
    """The recipe of a name, with its function's options.

    Raises:
        ValueError: an unknown name, or an option that the recipe doesn't have.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    try:
        return RECIPES[name](**options)
    except TypeError as error:
        raise ValueError(f"recipe {name!r}: {error}") from error


def _named(made: Recipe, name: str, section: str, summary: str) -> Recipe:
    return replace(made, name=name, section=section, summary=summary)
