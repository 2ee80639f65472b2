"""Weights of rows by how far each exit is from where the row would leave (COSEE).

Letters: M exits, B batch rows, C classes.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multiexit.losses.weights.learners import Learner, Plan
from multiexit.losses.weights.parametrisations import LossWeights, RowWeights


class ExitDistances(RowWeights):
    """w_mb = mean over K thresholds t of softmax_m(−β·p·|m − e_b(t)|), p the phase's progress.

        e_b(t) = the first early exit with H_mb / log C < t, else the last,
        t uniform in the range of H / log C over the batch's rows and early exits

    A row's weights sum to 1 over the exits: equal at first, and in the end at the exits where rows
    leave.

    Args:
        teaches_MM: a topology, for the number of exits.
        beta: β.
        thresholds: K, how many are drawn for each batch.

    Example:
        A row that is sure at the first exit, and one that never is; halfway:

        >>> import torch, multiexit as mx
        >>> weights = mx.weights.ExitDistances(mx.topology.none(2), beta=2.0, thresholds=1)
        >>> logits_MBC = torch.tensor([[[9.0, 0], [0, 0]], [[9, 0], [0, 0]]])
        >>> weights.weigh(torch.ones(2, 2), logits_MBC, 0.5)
        tensor([[0.7311, 0.2689],
                [0.2689, 0.7311]])
    """

    def __init__(self, teaches_MM: Tensor, beta: float, thresholds: int):
        super().__init__(teaches_MM)
        self.beta = beta
        self.thresholds = thresholds

    def rows(self, own_MB: Tensor) -> Tensor:
        """Equal weights, those that a phase begins with."""
        return torch.full_like(own_MB, 1 / len(own_MB))

    def weigh(self, own_MB: Tensor, logits_MBC: Tensor, progress: float) -> Tensor:
        M = len(own_MB)
        if M == 1:
            return torch.ones_like(own_MB)
        log_p = logits_MBC[:-1].float().log_softmax(-1)
        doubt_MB = -(log_p.exp() * log_p).sum(-1) / math.log(logits_MBC.shape[-1])
        low, high = doubt_MB.min(), doubt_MB.max()
        t_K11 = low + (high - low) * torch.rand(self.thresholds, 1, 1, device=doubt_MB.device)
        stops_KMB = doubt_MB < t_K11
        exit_KB = torch.where(stops_KMB.any(1), stops_KMB.int().argmax(1), M - 1)
        m_M1 = torch.arange(M, device=doubt_MB.device)[:, None]
        away_KMB = (m_M1 - exit_KB[:, None]).abs()
        return (-self.beta * progress * away_KMB).softmax(1).mean(0)


@dataclass(frozen=True)
class SimulatedExits(Learner):
    """Each row counts the more at an exit the nearer that is to where it would leave (COSEE).

    Nothing is learned: the weights follow what the exits say, and get sharper with the phase.

    Reference: He et al., "COSEE: Consistency-Oriented Signal-Based Early Exiting via Calibrated
    Sample Weighting Mechanism", AAAI 2025, and its code. There thresholds are drawn from the range
    of the epoch before, at first from 0..1.

    Args:
        beta: β, how sharp the weights are in the end.
        thresholds: K, how many are drawn for each batch.

    Raises:
        ValueError: a β below 0, or a K that is no whole number from 1.

    Example:
        >>> import multiexit as mx
        >>> learner = mx.weights.SimulatedExits()
        >>> learner.learns, learner.weighs_rows, learner.splits
        (False, True, False)
    """

    splits: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = True

    beta: float = 10.0
    thresholds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"beta must be a number from 0, got {self.beta}")
        if not isinstance(self.thresholds, int) or self.thresholds < 1:
            raise ValueError(f"thresholds must be a whole number from 1, got {self.thresholds!r}")

    def weights(self, teaches_MM: Tensor, seed: int) -> LossWeights:
        return ExitDistances(teaches_MM, self.beta, self.thresholds)

    def plan(self, step: int, rho: float) -> Plan:
        return Plan()
