"""Methods for sentence encoders, whose exits give vectors."""

from multiexit.losses import coefficients
from multiexit.policies import Settled
from multiexit.recipes.base import Phase, Recipe


def embedding(threshold: float = 0.05, similarity: bool = False, trunk: bool = False) -> Recipe:
    """Σ_(m<M) 1 − cos(v_m, v_M) on the early heads: the network stays as it is, without labels.

    With `trunk` the network is trained too, on vectors that it gave before, as labels y:
    Σ_m 1 − cos(v_m, y), the last exit included: `multiexit.collect(model, rows).labels_B`.

    Args:
        threshold: of its policy, `Settled`.
        similarity: early heads also learn how alike their vectors are to the last exit's of other
            rows, see `multiexit.loss_matrix`.
        trunk: train the network, too.

    Inputs:
        A model with `problem="embedding"`, and two exits or more. Labels with `trunk` alone:
        a vector for each row.

    Relations:
        Without `trunk` its phase is that of `fastbert`'s second, but for the rate: the last exit
        teaches the early heads. With `trunk` its loss is that of `joint`.

    Raises:
        ValueError: similarity with `trunk`, where no exit teaches.

    Example:
        >>> import multiexit as mx
        >>> (phase,) = mx.recipe("embedding", similarity=True).phases
        >>> phase.train, phase.topology, phase.divergence
        ('heads', 'last', 'similarity')
    """
    if trunk and similarity:
        raise ValueError(
            "similarity compares exits, and with trunk=True all learn from labels: leave one out"
        )
    students = Phase(
        topology="last",
        coefficients=coefficients.teachers_only,
        divergence="similarity" if similarity else "ce",
        train="heads",
    )
    return Recipe(
        name="embedding",
        paper="Reimers & Gurevych, Making Monolingual Sentence Embeddings Multilingual",
        section="2",
        year=2020,
        summary="early exits learn a sentence encoder's own vectors, without labels",
        phases=(Phase() if trunk else students,),
        policy=Settled(threshold),
        head="linear",
    )
