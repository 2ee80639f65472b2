"""The stages of exits, from any of the forms that a user gives."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral

from multiexit.arguments import check_share
from multiexit.backbones import Backbone
from multiexit.model import cost

Exits = str | int | Sequence[int] | Sequence[float]


def resolve_exits(exits: Exits, backbone: Backbone) -> tuple[int, ...]:
    """The stage of each exit, from any of the forms that `MultiExitModel` takes.

    Args:
        exits: `"all"`, stage indices, a whole number k for every k-th stage, or fractions of the
            trunk's MACs.
        backbone: whose stages they are.

    Returns:
        Stages counted from 0, rising, [M].

    Raises:
        ValueError: none of these forms, stages or fractions out of range, or stages that don't
            rise.

    Example:
        >>> from multiexit.backbones import cifar_resnet
        >>> resolve_exits(4, cifar_resnet(20)), resolve_exits([0.5, 1.0], cifar_resnet(20))
        ((0, 4, 8), (4, 8))
    """
    stages = backbone.num_stages
    if isinstance(exits, str) and exits == "all":
        return tuple(range(stages))
    if isinstance(exits, int) and not isinstance(exits, bool):
        if not 1 <= exits <= stages:
            raise ValueError(f"an exit every {exits} stages: must be 1..{stages}")
        return tuple(range((stages - 1) % exits, stages, exits))
    listed = list(exits) if isinstance(exits, Iterable) and not isinstance(exits, str) else []
    whole = all(isinstance(exit, Integral) and not isinstance(exit, bool) for exit in listed)
    if not listed or not (whole or all(isinstance(exit, float) for exit in listed)):
        raise ValueError(
            f"exits must be 'all', stage indices 0..{stages - 1}, a number k for every k-th stage, "
            f"or fractions of compute in (0, 1]; got {exits!r}"
        )
    resolved = tuple(map(int, listed)) if whole else _at_fractions(listed, backbone)
    wrong = [exit for exit in resolved if not 0 <= exit < stages]
    if wrong:
        raise ValueError(f"exits {wrong} are out of range: this backbone has 0..{stages - 1}")
    if any(later <= earlier for earlier, later in pairwise(resolved)):
        raise ValueError(f"exits must rise and not repeat; got stages {list(resolved)}")
    return resolved


def _at_fractions(fractions: Sequence[float], backbone: Backbone) -> tuple[int, ...]:
    for fraction in fractions:
        check_share("a fraction of compute", fraction, "(0, 1]")
    shares = cost.stage_shares(backbone)
    return tuple(
        next(stage for stage, share in enumerate(shares) if share >= fraction - 1e-9)
        for fraction in fractions
    )
