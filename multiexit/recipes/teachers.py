"""Methods whose early exits learn from the last one."""

from typing import Literal

from multiexit.losses import coefficients
from multiexit.losses.gradients import Conflictless
from multiexit.losses.temperature import Constant, Rising
from multiexit.policies import Entropy, MaxProb
from multiexit.recipes.base import Phase, Recipe


def dbt(temperature: float | None = None, mix: float = 0.5, threshold: float = 0.9) -> Recipe:
    """The last exit teaches all others beside the labels (Phuong & Lampert).

    Args:
        temperature: a constant τ (their variant: 4); None rises from 1 by ×1.05.
        mix: C, the distillation's part, in [0, 1].
        threshold: of the largest probability.

    Inputs:
        Any head; classes.

    Relations:
        With `mix=0` its loss is that of `joint` times 10/M. `fastbert_clo_v2` has the same terms,
        with learned weights, and without the factors of labels and teachers.

    Raises:
        ValueError: a mix outside [0, 1], or a temperature that isn't above 0.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("dbt").phases[0].temperature
        Rising(value=1.0, factor=1.05, above=0.5)
    """
    rule = Rising() if temperature is None else Constant(temperature)
    return Recipe(
        name="dbt",
        paper="Phuong & Lampert, Distillation-Based Training for Multi-Exit Architectures",
        section="3",
        year=2019,
        summary="the last exit teaches, at a rising temperature",
        phases=(
            Phase(topology="last", coefficients=coefficients.distilled(mix), temperature=rule),
        ),
        policy=MaxProb(threshold),
    )


def romebert(
    mix: float = 0.9,
    temperature: float = 3.0,
    threshold: float = 0.3,
    anchor: Literal["last", "early"] = "last",
    kd_scale: float = 1.0,
) -> Recipe:
    """CE_M + Σ_(m<M) [(1 − γ)·CE_m + γ·τ²·KL_m], without pulls against the last exit (RomeBERT).

    Args:
        mix: γ, in [0, 1].
        temperature: τ.
        threshold: of its policy, entropy in nats.
        anchor: whose gradient stays where both pull against each other. Its code: the early exits'
            on all tasks but MNLI and QQP.
        kd_scale: its code averages KL over the classes too: 1 / K.

    Inputs:
        Any head; the paper's is `"own-pooler"`. Classes.

    Relations:
        With `mix=0` its loss is that of `joint`. Where the early exits' gradient doesn't pull
        against the last exit's, Θ steps along the plain gradient of the loss.

    Raises:
        ValueError: a mix outside [0, 1], a temperature that isn't above 0, or another anchor.

    Example:
        >>> import multiexit as mx
        >>> (phase,) = mx.recipe("romebert", anchor="early").phases
        >>> phase.surgery, phase.divergence
        (Conflictless(anchor='early'), 'kl')
    """
    return Recipe(
        name="romebert",
        paper="Geng et al., RomeBERT: Robust Training of Multi-Exit BERT",
        section="3",
        year=2021,
        summary="the last exit teaches, and no gradient pulls against its own",
        phases=(
            Phase(
                topology="last",
                coefficients=coefficients.blended(mix, kd_scale),
                temperature=Constant(temperature),
                divergence="kl",
                surgery=Conflictless(anchor),
            ),
        ),
        policy=Entropy(threshold),
        head="own-pooler",
    )
