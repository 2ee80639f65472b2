"""What a model said about a data set, and parts of it.

Letters: M exits, B = N rows of the set, C classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multiexit.cost import Cost
from multiexit.metrics import Metric
from multiexit.policies.certificate import Certificate


@dataclass(frozen=True)
class Outputs:
    """Everything a model said about a data set.

    Args:
        logits_MBC: all exits' logits over the whole set on the CPU, B = N rows in order; float32,
            of a float64 model float64.
        labels_B: int64 classes, or float targets for regression.
        cost: what leaving at each exit costs.
        metric: a name in `multiexit.metrics.METRICS`, or a function.
        certainty_MB: how sure each exit is of being right, of models that learn to exit.
        keys_B: a 64-bit key of each row's inputs, by which rows are known again; None where there
            are none.
    """

    logits_MBC: Tensor
    labels_B: Tensor
    cost: Cost
    metric: str | Metric = "accuracy"
    certainty_MB: Tensor | None = None
    keys_B: Tensor | None = None

    @property
    def num_exits(self) -> int:
        """M."""
        return len(self.logits_MBC)

    def take(self, rows: Tensor) -> "Outputs":
        """Some of the rows: their numbers, or a mask [B]."""
        return replace(
            self,
            logits_MBC=self.logits_MBC[:, rows],
            labels_B=self.labels_B[rows],
            certainty_MB=None if self.certainty_MB is None else self.certainty_MB[:, rows],
            keys_B=None if self.keys_B is None else self.keys_B[rows],
        )

    def split(self, share: float, seed: int = 0) -> "tuple[Outputs, Outputs]":
        """A random share of the rows, rounded down, and the rest.

        Drawn plainly, not by class, as bounds on the risk need it.

        Raises:
            ValueError: a share that leaves either part empty.
        """
        first = cut(len(self.labels_B), share)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.labels_B), generator=generator)
        return self.take(order[:first].sort().values), self.take(order[first:].sort().values)

    def seen(self, certificate: Certificate) -> Tensor:
        """Which rows a policy was calibrated on, bool [B]; none where keys are missing."""
        if self.keys_B is None:
            return torch.zeros(len(self.labels_B), dtype=torch.bool)
        return certificate.seen(self.keys_B)

    def without(self, certificate: Certificate) -> "Outputs":
        """The rows that a policy was not calibrated on.

        Raises:
            ValueError: no row is left.
        """
        seen_B = self.seen(certificate)
        if seen_B.all():
            raise ValueError(
                f"all {len(seen_B)} rows are among the {certificate.rows} that the policy was "
                "calibrated on: judge it on others"
            )
        return self.take(~seen_B)


def cut(rows: int, share: float) -> int:
    """How many rows a share of them is, rounded down; ValueError where either part is empty."""
    first = int(rows * share + 1e-9) if 0 < share < 1 else 0
    if first == 0:
        raise ValueError(
            f"share must be in (0, 1) and leave rows in both parts; {share} of {rows} doesn't"
        )
    return first
