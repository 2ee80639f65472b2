"""`loss_matrix`, forward and backward, against loops over exits: how many times faster.

python benchmarks/loss_matrix.py --output benchmarks/results/loss_matrix.json
"""

import argparse

import torch
from common import report, seconds
from torch import Tensor
from torch.nn import functional as F

import multiexit as mx


def naive(logits_MBC: Tensor, labels_B: Tensor, tau: float) -> list[Tensor]:
    """Every term by itself, as a training script would write them."""
    terms = []
    for i, student in enumerate(logits_MBC):
        for j, teacher in enumerate(logits_MBC):
            if i == j:
                terms.append(F.cross_entropy(student, labels_B))
            else:
                soft = F.softmax(teacher.detach() / tau, -1)
                terms.append(-(tau**2) * (soft * F.log_softmax(student / tau, -1)).sum(-1).mean())
    return terms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    rows = []
    for M in (12, 27):
        for B in (32, 128):
            for C in (2, 10, 100):
                logits_MBC = torch.randn(M, B, C, device=device, requires_grad=True)
                labels_B = torch.randint(C, (B,), device=device)

                def ours(z: Tensor = logits_MBC, y: Tensor = labels_B) -> None:
                    mx.loss_matrix(z, y, 4.0).sum().backward()

                def loops(z: Tensor = logits_MBC, y: Tensor = labels_B) -> None:
                    torch.stack(naive(z, y, 4.0)).sum().backward()

                fast, slow = seconds([ours, loops], args.repeats)
                rows.append({"M": M, "B": B, "C": C, "ms": 1e3 * fast, "loops, ms": 1e3 * slow})
                rows[-1]["ratio"] = slow / fast
    report(rows, args.output, "benchmarks/loss_matrix.py")


if __name__ == "__main__":
    main()
