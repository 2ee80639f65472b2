"""Bounds on the mean loss of 200 rows, beside those of Hoeffding and Bentkus.

    python benchmarks/bounds.py --output benchmarks/results/bounds.json

Losses are drawn, with a seed, many times; bounds are means over the draws. *lower by* is how much
lower the bound in use is than the one by Hoeffding and Bentkus.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import report
from torch import Tensor

from multiexit.evaluation.p_values import upper_bound

Draw = Callable[[torch.Generator, int], Tensor]


def ones(share: float) -> Draw:
    """Losses of 0, and of 1 for a share of the rows."""
    return lambda random, rows: (torch.rand(rows, generator=random) < share).double()


def up_to(most: float, share: float) -> Draw:
    """Losses of 0, and for a share of the rows anything up to a largest one."""

    def draw(random: torch.Generator, rows: int) -> Tensor:
        loss_B = most * torch.rand(rows, generator=random, dtype=torch.float64)
        return loss_B * (torch.rand(rows, generator=random) < share)

    return draw


KINDS: dict[str, tuple[str, Draw]] = {
    "1 on a 100th of the rows, else 0": ("binomial", ones(0.01)),
    "1 on a 20th, else 0": ("binomial", ones(0.05)),
    "1 on a 5th, else 0": ("binomial", ones(0.2)),
    "up to 1 on a 20th, else 0": ("betting", up_to(1.0, 0.05)),
    "up to 1 on a 5th, else 0": ("betting", up_to(1.0, 0.2)),
    "up to ½ on a 5th, else 0": ("betting", up_to(0.5, 0.2)),
    "up to ¼ on all": ("betting", up_to(0.25, 1.0)),
}
"""Losses by name: the bound in use for them, and how they are drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--output")
    args = parser.parse_args()
    delta, rows = 1 - args.confidence, []
    for name, (bound, draw) in KINDS.items():
        random = torch.Generator().manual_seed(0)
        drawn = [draw(random, args.rows) for _ in range(args.draws)]
        theirs, used = (
            sum(upper_bound(loss_B, delta, each) for loss_B in drawn) / args.draws
            for each in ("hoeffding-bentkus", bound)
        )
        row: dict[str, Any] = {"losses": name, "mean": float(torch.stack(drawn).mean())}
        row |= {"Hoeffding, Bentkus": theirs, "in use": bound, "bound": used}
        rows.append(row | {"lower by": f"{100 * (1 - used / theirs):.0f} %"})
    note = f"{args.rows} rows, confidence {args.confidence:g}, {args.draws} draws."
    report(rows, args.output, shlex.join(["benchmarks/bounds.py", *sys.argv[1:]]), note)


if __name__ == "__main__":
    main()
