"""The meaning of a phase for a model: who is trained, on which factors, which exits are judged.

Letters: M exits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multiexit.losses import topology
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase

TIMES = 100
"""At how many points of a phase its factors are looked at beforehand."""


def factors(
    phase: Phase, teaches_MM: Tensor, progress: float, shares_M: Sequence[float]
) -> list[Tensor]:
    """The phase's matrices A that take turns.

    Args:
        phase: with its rules for A.
        teaches_MM: its topology, bool [M, M].
        progress: the share of the phase that is done when the running epoch ends, in (0, 1].
        shares_M: each exit's share of the network's MACs.

    Returns:
        A matrix [M, M] per turn.

    Raises:
        ValueError: one of another shape, or not finite.
    """
    M = len(teaches_MM)
    turns = [rule(teaches_MM, progress, shares_M) for rule in phase.turns]
    for A_MM in turns:
        if A_MM.shape != (M, M) or not A_MM.isfinite().all():
            raise ValueError(
                f"coefficients for {M} exits are finite numbers [{M}, {M}]; got "
                f"{tuple(A_MM.shape)} {A_MM.tolist()}"
            )
    return turns


def factors_throughout(phase: Phase, shares_M: Sequence[float]) -> Tensor:
    """The phase's matrices A of all turns at 1 %, 2 %, …, 100 % of it, [times and turns, M, M].

    Args:
        phase: with its rules for A.
        shares_M: each exit's share of the network's MACs.

    Raises:
        ValueError: a topology or factors that don't fit so many exits.
    """
    teaches_MM = topology.resolve(phase.topology, len(shares_M))
    return torch.stack(
        [
            A_MM.cpu()
            for time in range(1, TIMES + 1)
            for A_MM in factors(phase, teaches_MM, time / TIMES, shares_M)
        ]
    )


def learns_from_labels(phase: Phase, shares_M: Sequence[float]) -> bool:
    """Whether the phase learns from labels, so that its batches must have them."""
    needed = phase.extra is not None or phase.learner.looks_back
    return needed or bool(counted_terms(phase, shares_M).diagonal().any())


def judged_exits(phase: Phase, shares_M: Sequence[float]) -> list[int]:
    """The exits that the phase trains, whose mean score selects its best epoch."""
    learned_M = counted_terms(phase, shares_M).any(1)
    exits = learned_M.nonzero().flatten().tolist()
    return exits or list(range(len(shares_M)))


def counted_terms(phase: Phase, shares_M: Sequence[float]) -> Tensor:
    """The terms that count at any time of the phase, bool [M, M]."""
    return (factors_throughout(phase, shares_M) != 0).any(0)


def trained_parameters(model: MultiExitModel, phase: Phase) -> set[nn.Parameter]:
    """The parameters that the phase trains, but for those that were frozen before."""
    if callable(phase.train):
        return set(phase.train(model))
    reached, unreached = (
        {p for stage in stages for p in model.backbone.stage_module(stage).parameters()}
        for stages in (
            range(model.exits[-1] + 1),
            range(model.exits[-1] + 1, model.backbone.num_stages),
        )
    )
    # Stages behind the last exit are never run, so never trained.
    trunk = set(model.backbone.parameters()) - (unreached - reached)
    last_head = set(model.heads[-1].parameters())
    early_heads = set(model.heads.parameters()) - last_head
    return {
        "all": trunk | early_heads | last_head,
        "last": trunk | last_head,
        "heads": early_heads,
    }[phase.train]


def freeze_untrained(model: MultiExitModel, phase: Phase) -> list[nn.Parameter]:
    """Switch gradients off for what the phase doesn't train, and list what it does.

    What was frozen before stays so.

    Returns:
        The parameters that are trained, in the model's order.
    """
    trained = trained_parameters(model, phase)
    for p in model.parameters():
        p.requires_grad_(p.requires_grad and p in trained)
    return [p for p in model.parameters() if p.requires_grad]


def shared_parameters(model: MultiExitModel) -> set[nn.Parameter]:
    """The trunk's weight matrices that an early exit and the last one both use."""
    early = range(model.exits[-2] + 1) if model.num_exits > 1 else range(0)
    return {
        p for stage in early for p in model.backbone.stage_module(stage).parameters() if p.ndim > 1
    }
