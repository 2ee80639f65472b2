"""LeeBERT and its variants: exits teach each other, and the terms' weights are learned."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from multiexit.losses import weights
from multiexit.losses.matrix import Divergence
from multiexit.losses.temperature import Constant
from multiexit.losses.topology import Topology
from multiexit.losses.weights.learners import Learner
from multiexit.policies import Patience
from multiexit.recipes.base import Phase, Recipe


def leebert(
    temperature: float = 1.0,
    cycle: int = 4,
    topology: str | Topology | Tensor = "lae",
    learner: Learner | None = None,
    divergence: Divergence = "ce",
    in_cycle: bool = True,
    rho: float | None = None,
    parametrization: Literal["softmax", "raw", "uncertainty"] = "softmax",
    fresh: bool = True,
) -> Recipe:
    """Every exit learns from every other; the weights are learned by CLO-v2 (LeeBERT, section 3).

    Args:
        temperature: τ; the paper names none. 1 for text, 4 for images.
        cycle, in_cycle, rho, parametrization, fresh: of `CLO2`, where no learner is given.
        topology: LAE by default.
        learner: another way to learn the weights.
        divergence: `"ce"` is eq. 2.
    """
    phase = Phase(
        topology=topology,
        learner=learner or weights.CLO2(parametrization, rho, cycle, in_cycle, fresh),
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


def leebert_clo_v1(temperature: float = 1.0, fresh: bool = True) -> Recipe:
    """Cross-level optimisation at every step (eq. 9, Algorithm 1).

    Args:
        temperature: τ.
        fresh: of `CLO1`.
    """
    made = leebert(temperature, learner=weights.CLO1(fresh=fresh))
    return _named(made, "leebert-clo-v1", "3.4", "all teach all, weights by CLO-v1")


def leebert_hyper(temperature: float = 1.0, cycle: int = 4) -> Recipe:
    """Weights by the exact one-step hypergradient; not in the paper, whose eq. 6 it descends."""
    made = leebert(temperature, learner=weights.Hyper(cycle=cycle))
    return _named(made, "leebert-hyper", "3.3", "all teach all, weights by hypergradient")


def fastbert_clo_v2(temperature: float = 1.0, cycle: int = 4) -> Recipe:
    """FastBERT's topology, the last exit as only teacher, with weights by CLO-v2 (section 4.4)."""
    made = leebert(temperature, cycle, topology="last")
    return _named(made, "fastbert-clo-v2", "4.4", "the last exit teaches, weights by CLO-v2")


def _named(made: Recipe, name: str, section: str, summary: str) -> Recipe:
    return replace(made, name=name, section=section, summary=summary)
