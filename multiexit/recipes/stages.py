"""Methods that train in stages: the network first, its exits after that."""

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from multiexit.losses import coefficients
from multiexit.model.heads import CascadedHead, Vote
from multiexit.model.model import MultiExitModel
from multiexit.policies import Entropy, MaxProb, MostConfident, NormalizedEntropy
from multiexit.recipes.base import Phase, Recipe
from multiexit.recipes.labels import SHALLOW_DEEP

NETWORK = Phase(coefficients=coefficients.last_only, train="last")
"""Ordinary fine-tuning: CE_M on everything but the early heads."""

EXITS = Phase(coefficients=coefficients.early_only, train="heads")
"""Σ_(m<M) CE_m on the early heads alone, the rest frozen."""


def _on_network(pretrained: bool, network: Phase, *exits: Phase) -> tuple[Phase, ...]:
    """The network's phase, unless it is trained already, and the exits' ones."""
    return exits if pretrained else (network, *exits)


def deebert(threshold: float = 0.3, pretrained: bool = False) -> Recipe:
    """CE_M on the network, then Σ_(m<M) CE_m on the early heads alone (DeeBERT, section 2.3).

    Args:
        threshold: of its policy, entropy in nats.
        pretrained: the network is trained already, last head included: leave out the first phase.

    Inputs:
        Two exits or more, any head; the paper's is `"own-pooler"`. Classes. With `pretrained` a
        last exit that has learnt: the network's own classifier, or that of a trained model.

    Relations:
        The phases of `shallow_deep_heads`; the policy and the suggested head are others.

    Example:
        >>> import multiexit as mx
        >>> [phase.train for phase in mx.recipe("deebert").phases]
        ['last', 'heads']
        >>> len(mx.recipe("deebert", pretrained=True).phases)
        1
    """
    return Recipe(
        name="deebert",
        paper="Xin et al., DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference",
        section="2",
        year=2020,
        summary="fine-tune, then train the early heads on the frozen network",
        phases=_on_network(pretrained, NETWORK, EXITS),
        policy=Entropy(threshold),
        head="own-pooler",
        pretrained=pretrained,
    )


def mixed(threshold: float = 0.9) -> Recipe:
    """CE_M on the network, then Σ_m CE_m on everything (the mixed regime, Kubaty et al. 2025).

    Args:
        threshold: of its policy, the largest probability.

    Inputs:
        Two exits or more, any head. Classes; with another policy regression too. Each phase has
        the run's epochs.

    Relations:
        The first phase is `deebert`'s, the second `joint`'s: on a network that is trained already,
        it is `joint`.

    Example:
        >>> import multiexit as mx
        >>> [phase.train for phase in mx.recipe("mixed").phases]
        ['last', 'all']
    """
    return Recipe(
        name="mixed",
        paper=(
            "Kubaty et al., How to Train Your Multi-Exit Model? Analyzing the Impact of Training "
            "Strategies"
        ),
        section="abstract",
        year=2025,
        summary="train the network, then network and all exits together",
        phases=(NETWORK, Phase()),
        policy=MaxProb(threshold),
    )


def fastbert(speed: float = 0.5, pretrained: bool = False) -> Recipe:
    """CE_M on the network, then Σ_(m<M) KL(p_M ‖ p_m) on the early heads, without labels.

    The second phase has ten times the learning rate, and may have rows of its own that have no
    labels: `Trainer.fit(train, dev, unlabelled)`.

    Args:
        speed: its policy's threshold of H / log K, in 0..1.
        pretrained: the network is trained already, last head included: leave out the first phase.

    Inputs:
        Two exits or more; the paper's head is `"attention"`, which reads tokens, so images take
        another. Classes. Labels for the first phase alone. With `pretrained` a last exit that has
        learnt, as for `deebert`.

    Relations:
        The first phase is `deebert`'s. In the second the labels of the training set change
        nothing. `fastbert_clo_v2` has the same teacher, and trains jointly, with labels.

    Example:
        >>> import multiexit as mx
        >>> [(phase.train, phase.lr) for phase in mx.recipe("fastbert").phases]
        [('last', 1.0), ('heads', 10.0)]
    """
    students = Phase(
        topology="last",
        coefficients=coefficients.teachers_only,
        divergence="kl",
        train="heads",
        lr=10.0,
    )
    return Recipe(
        name="fastbert",
        paper="Liu et al., FastBERT: a Self-distilling BERT with Adaptive Inference Time",
        section="3",
        year=2020,
        summary="fine-tune, then the last exit teaches the early heads, without labels",
        phases=_on_network(pretrained, NETWORK, students),
        policy=NormalizedEntropy(speed),
        head="attention",
        pretrained=pretrained,
    )


def shallow_deep_heads(threshold: float = 0.9, pretrained: bool = False) -> Recipe:
    """Shallow-Deep's exits on a finished network: Σ_(m<M) CE_m on the early heads (section 4).

    Args:
        threshold: of the largest probability.
        pretrained: the network is trained already, last head included: leave out the first phase.

    Inputs:
        Two exits or more, any head; the paper's own, for images, is `"mixed-pool"`. Classes. With
        `pretrained` a last exit that has learnt, as for `deebert`.

    Relations:
        The phases of `deebert`; the policy is another. `shallow_deep` trains network and exits
        together.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("shallow-deep-heads").phases == mx.recipe("deebert").phases
        True
    """
    return Recipe(
        name="shallow-deep-heads",
        paper=SHALLOW_DEEP,
        section="4",
        year=2019,
        summary="train the network, then early heads on it; with pretrained=true these alone",
        phases=_on_network(pretrained, NETWORK, EXITS),
        policy=MostConfident(threshold),
        pretrained=pretrained,
    )


def ztw(threshold: float = 0.9, pretrained: bool = False) -> Recipe:
    """The network, then cascaded early heads on it, then how they vote (Zero Time Waste).

    Args:
        threshold: of the largest probability.
        pretrained: the network is trained already, last head included: leave out the first phase.

    Inputs:
        Two exits or more, whose heads read each other: `"linear+cascade"`, or another name with
        `+cascade` behind it. Classes. With `pretrained` a last exit that has learnt, as for
        `deebert`.

    Relations:
        The first phase trains what `deebert`'s trains, on the same loss. The second and the third
        have the loss of `deebert`'s second, on the heads without their votes, then on the votes.

    Example:
        >>> import multiexit as mx
        >>> recipe = mx.recipe("ztw")
        >>> len(recipe.phases), recipe.head
        (3, 'linear+cascade')
    """
    return Recipe(
        name="ztw",
        paper=(
            "Wolczyk et al., Zero Time Waste: Recycling Predictions in Early Exit Neural Networks"
        ),
        section="3",
        year=2021,
        summary="train the network, then early heads that read each other, then their vote",
        phases=_on_network(
            pretrained,
            replace(NETWORK, before_step=switch_off),
            Phase(
                coefficients=coefficients.early_only, train=cascade_alone, before_step=switch_off
            ),
            Phase(coefficients=coefficients.early_only, train=votes_alone, before_step=switch_on),
        ),
        policy=MaxProb(threshold),
        head="linear+cascade",
        pretrained=pretrained,
    )


def cascade_alone(model: MultiExitModel) -> Iterable[nn.Parameter]:
    """The early heads without their votes, and without what they share with the last one.

    Raises:
        ValueError: heads without votes.
    """
    untrained = {*votes_alone(model), *model.heads[-1].parameters()}
    return [p for head in model.heads[:-1] for p in head.parameters() if p not in untrained]


def votes_alone(model: MultiExitModel) -> Iterable[nn.Parameter]:
    """The parameters of the early heads' votes.

    Raises:
        ValueError: heads without votes.
    """
    return [p for vote in _votes(model) for p in vote.parameters()]


def switch_off(model: MultiExitModel, progress: float) -> None:
    """Let the early exits answer by their own heads, until the votes are trained.

    Raises:
        ValueError: heads without votes.
    """
    for vote in _votes(model):
        vote.on.fill_(False)


def switch_on(model: MultiExitModel, progress: float) -> None:
    """Let the early exits answer by their vote.

    Raises:
        ValueError: heads without votes.
    """
    for vote in _votes(model):
        vote.on.fill_(True)


def _votes(model: MultiExitModel) -> list[Vote]:
    early = list(model.heads[:-1])
    votes = [head.vote for head in early if isinstance(head, CascadedHead) and head.vote]
    if len(votes) < len(early):
        raise ValueError(
            f"Zero Time Waste's heads read each other and vote; this model's head is "
            f"{model.head!r}: make it with head='linear+cascade'"
        )
    return votes
