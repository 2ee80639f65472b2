"""Who teaches whom: a matrix over the exits, row = student, column = teacher.

Letters: M exits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from multiexit.arguments import unknown

Topology = Callable[[int], Tensor]
"""`M -> teaches_MM`, bool [M, M]: True where the column's exit teaches the row's."""


def none(M: int) -> Tensor:
    """Nobody teaches: labels alone. All False, [M, M].

    Example:
        >>> import multiexit as mx
        >>> mx.topology.none(2).tolist()
        [[False, False], [False, False]]
    """
    return torch.zeros(M, M, dtype=torch.bool)


def last(M: int) -> Tensor:
    """The last exit teaches all others (Phuong & Lampert 2019; FastBERT). Bool [M, M].

    Example:
        >>> import multiexit as mx
        >>> mx.topology.last(3).int()
        tensor([[0, 0, 1],
                [0, 0, 1],
                [0, 0, 0]], dtype=torch.int32)
    """
    teaches = none(M)
    teaches[:-1, -1] = True
    return teaches


def lle(M: int) -> Tensor:
    """Learn from later exits: T(m) = {m+1, …, M}, empty for the last. Bool [M, M].

    Example:
        >>> import multiexit as mx
        >>> mx.topology.lle(3).int()
        tensor([[0, 1, 1],
                [0, 0, 1],
                [0, 0, 0]], dtype=torch.int32)

    Reference: LeeBERT, section 3.1.2.
    """
    return torch.ones(M, M, dtype=torch.bool).triu(1)


def lae(M: int) -> Tensor:
    """Learn from all exits: T(m) = all but m itself (LeeBERT, section 3.1.2). Bool [M, M].

    Example:
        >>> import multiexit as mx
        >>> mx.topology.lae(3).int()
        tensor([[0, 1, 1],
                [1, 0, 1],
                [1, 1, 0]], dtype=torch.int32)
    """
    return ~torch.eye(M, dtype=torch.bool)


NAMES: dict[str, Topology] = {"none": none, "last": last, "lle": lle, "lae": lae}


def resolve(topology: str | Topology | Tensor, M: int) -> Tensor:
    """Turn a name, a function of M or a matrix into a checked bool [M, M].

    Args:
        topology: `"none"`, `"last"`, `"lle"`, `"lae"`, a function of M, or the matrix.
        M: how many exits there are.

    Returns:
        teaches_MM, bool [M, M], row = student, column = teacher.

    Raises:
        ValueError: an unknown name, another shape or dtype, or an exit that teaches itself.

    Example:
        Each exit learns from the next one:

        >>> import torch, multiexit as mx
        >>> mx.topology.resolve(lambda M: torch.ones(M - 1).diag(1).bool(), 3).tolist()
        [[False, True, False], [False, False, True], [False, False, False]]
    """
    if isinstance(topology, str):
        if topology not in NAMES:
            raise unknown("topology", topology, sorted(NAMES))
        topology = NAMES[topology]
    teaches: object = topology(M) if callable(topology) else topology
    if not isinstance(teaches, Tensor) or teaches.dtype != torch.bool or teaches.shape != (M, M):
        got = (
            f"{teaches.dtype} {tuple(teaches.shape)}"
            if isinstance(teaches, Tensor)
            else type(teaches).__name__
        )
        raise ValueError(
            f"a topology for {M} exits is a torch.bool matrix [{M}, {M}], row = student, "
            f"column = teacher; got {got}"
        )
    selves = teaches.diagonal().nonzero().flatten().tolist()
    if selves:
        raise ValueError(
            f"an exit can't teach itself; this topology's diagonal is True at {selves}"
        )
    return teaches
