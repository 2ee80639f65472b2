"""Policies that go by vectors of length 1, those of a model whose problem is `"embedding"`.

Letters: M exits, B batch rows, D a vector's entries. Exits are counted from 0.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multiexit.policies.base import ExitPolicy, State
from multiexit.policies.numbers import number, unit


@dataclass(frozen=True)
class Settled(ExitPolicy):
    """Stop when the vector has stopped moving: 1 − cos(v_m, v_(m−1)) < threshold.

    The first exit has none before it, so the second is the earliest to stop at.

    Args:
        threshold: of 1 − cos, in 0..2.

    Raises:
        ValueError: a threshold that is no finite number; when it meets a model, outputs that are
            no vectors of length 1.

    Example:
        Three exits, the first row turning by 60° and then by 0°, the second by 0° at once:

        >>> import torch, multiexit as mx
        >>> angle_MB = torch.deg2rad(torch.tensor([[0.0, 5], [60, 5], [60, 5], [60, 5]]))
        >>> vectors_MBD = torch.stack([angle_MB.cos(), angle_MB.sin()], -1)
        >>> mx.simulate(mx.Settled(0.1), vectors_MBD, problem="embedding")  # 0.5, then 0; 0
        tensor([2, 1])
    """

    reads: ClassVar[tuple[str, ...]] = ("vectors",)

    threshold: float = number(unit, scale=lambda known: (0.0, 2.0))

    def init(self, logits_BC: Tensor) -> State:
        return {"before": logits_BC.new_full(logits_BC.shape, math.nan)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        # Of vectors of length 1, |v − u|² / 2 = 1 − cos, and it is exact where they are close.
        moved_B = (logits_BC - state["before"]).square().sum(-1) / 2
        return {"before": logits_BC}, moved_B < self.threshold
