"""The results of a pass through exits."""

from typing import NamedTuple

from torch import Tensor

from multiexit.backbones import Carry
from multiexit.model import heads


class Pass(NamedTuple):
    """All that one pass through every exit gives.

    Args:
        logits_MBC: all exits' logits [M, B, C], or of tokens [M, B, T, C].
        certainty_MB: how sure each exit is of being right, in 0..1, of heads that learn to exit;
            None of others.
        features: each exit's feature [B, …], where they were asked for.
        asked_BT: of tokens, which are asked for, bool; None of others.
    """

    logits_MBC: Tensor
    certainty_MB: Tensor | None
    features: list[Tensor]
    asked_BT: Tensor | None = None


class Segment(NamedTuple):
    """The results of a segment: the carry and memory for the next one, and its exit's logits."""

    carry: Carry
    logits_BC: Tensor
    memory: heads.Memory
