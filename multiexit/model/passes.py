"""The results of a pass through exits."""

from typing import NamedTuple

from torch import Tensor

from multiexit.backbones import Carry
from multiexit.model import heads


class Pass(NamedTuple):
    """All that one pass through every exit gives.

    Args:
        logits_MBC: all exits' logits [M, B, C].
        certainty_MB: how sure each exit is of being right, in 0..1, of heads that learn to exit;
            None of others.
        features: each exit's feature [B, …], where they were asked for.
    """

    logits_MBC: Tensor
    certainty_MB: Tensor | None
    features: list[Tensor]


class Segment(NamedTuple):
    """The results of a segment: the carry and memory for the next one, and its exit's logits."""

    carry: Carry
    logits_BC: Tensor
    memory: heads.Memory
