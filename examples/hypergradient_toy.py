"""Who finds the right loss weights, where they are known? A student exit and two fixed teachers.

    python examples/hypergradient_toy.py

Labels are drawn from a known distribution p(y | x). Exit 0 *is* that distribution: whoever
imitates it makes the smallest loss there is. Exit 1 misleads, in one of two ways:

    random  another rule altogether, and sure of it: its distillation term is large;
    sure    the right rule at four times its logits: never a wrong class that exit 0 would not
            choose, but far too sure. Its term is small: a student can please it to the end.

Both are frozen. Exit 2 learns from labels and from both teachers, whose two weights add up to 2,
each from 0.1 up. The right answer is 1.9 for exit 0 and 0.1 for exit 1 in either case; the rows
"known" train with just these, fixed. It takes about a minute on one CPU core.

Letters: M exits, B rows, C classes, D numbers per row.
"""

import argparse
import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import multiexit as mx
from multiexit import report, weights
from multiexit.runtime import versions

D, C, WIDTH = 10, 4, 32
STUDENT, GOOD, BAD = 2, 0, 1
RULE_CD = 2 * torch.randn(C, D, generator=torch.Generator().manual_seed(1)) / D**0.5


class Drawn(Dataset):
    """Rows from a normal distribution with labels from p(y | x) = softmax(x · rule)."""

    def __init__(self, rows: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, D, generator=generator)
        p_BC = (self.x @ RULE_CD.T).softmax(-1)
        self.labels = torch.multinomial(p_BC, 1, generator=generator).squeeze(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.x[rows], self.labels[rows]

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x[row], self.labels[row]

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch


@dataclass(frozen=True)
class Known(weights.Uniform):
    """The right answer, fixed."""

    def weights(self, teaches_MM: Tensor, seed: int) -> weights.LossWeights:
        W_MM = torch.ones(teaches_MM.shape)
        W_MM[STUDENT, GOOD], W_MM[STUDENT, BAD] = 1.9, 0.1
        return weights.FixedWeights(W_MM)


def network(case: str, seed: int) -> mx.MultiExitModel:
    """Two frozen exits on the input itself, and one behind a layer that learns."""
    torch.manual_seed(seed)
    behind = nn.Sequential(nn.Linear(D, WIDTH), nn.Tanh())
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(nn.Identity(), nn.Identity(), behind)), C)
    bad_CD = 4 * RULE_CD if case == "sure" else 4 * torch.randn(C, D) / D**0.5
    with torch.no_grad():
        for exit, rule_CD in ((GOOD, RULE_CD), (BAD, bad_CD)):
            linear = model.heads[exit].linear
            linear.weight.copy_(rule_CD)  # type: ignore[union-attr,operator]
            linear.bias.zero_()  # type: ignore[union-attr,operator]
            model.heads[exit].requires_grad_(False)
    return model


def two_teachers(M: int) -> Tensor:
    """The student learns from the other two, and nobody else from anyone."""
    teaches_MM = torch.zeros(M, M, dtype=torch.bool)
    teaches_MM[STUDENT, [GOOD, BAD]] = True
    return teaches_MM


def labels_and_teachers(teaches_MM: Tensor, progress: float, shares_M: Any) -> Tensor:
    """Every term at full size: A = 1 where it counts."""
    return teaches_MM + torch.eye(len(teaches_MM))


def learners(parametrization: Any) -> dict[str, weights.Learner]:
    return {
        "known": Known(),
        "Uniform": weights.Uniform(),
        "Hyper": weights.Hyper(parametrization),
        "SLO": weights.SLO(parametrization),
        "BLO": weights.BLO(parametrization),
        "CLO-v1": weights.CLO1(parametrization),
        "CLO-v2": weights.CLO2(parametrization),
    }


def run(case: str, learner: weights.Learner, seed: int, steps: int) -> dict[str, float]:
    """Train; the teachers' weights at the end, and losses on 20,000 new rows."""
    model = network(case, seed)
    recipe = mx.recipes.leebert(learner=learner, topology=two_teachers)
    phase = replace(recipe.phases[0], coefficients=labels_and_teachers)
    config = mx.TrainConfig(
        max_steps=steps,
        batch_size=64,
        lr=0.5,
        omega_lr=0.03,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        warmup=0.0,
        clip=None,
        early_stopping=None,
        log_every=steps,
        progress=False,
        seed=seed,
    )
    history = mx.Trainer(model, replace(recipe, phases=(phase,)), config).fit(Drawn(20_000, seed))
    W_MM = history.weights[-1][1] if learner.learns else learner.weights(two_teachers(3), 0)()
    new = Drawn(20_000, 1000 + seed)
    outputs = mx.collect(model, new, batch_size=1000)
    L_MM = mx.loss_matrix(outputs.logits_MBC, new.labels)
    least = F.cross_entropy(outputs.logits_MBC[GOOD], new.labels)
    return {
        "W good": float(W_MM[STUDENT][GOOD] or 0),
        "W bad": float(W_MM[STUDENT][BAD] or 0),
        "W labels": float(W_MM[STUDENT][STUDENT] or 0),
        "term good": float(L_MM[STUDENT, GOOD]),
        "term bad": float(L_MM[STUDENT, BAD]),
        "CE above least": float(L_MM[STUDENT, STUDENT] - least),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="who finds loss weights that are known")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--parametrization", default="softmax", choices=weights.PARAMETRIZATIONS)
    parser.add_argument("--output", help="a JSON file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in ("random", "sure"):
        for name, learner in learners(args.parametrization).items():
            found = [run(case, learner, seed, args.steps) for seed in range(args.seeds)]
            row: dict[str, Any] = {"exit 1": case, "learner": name}
            for key in found[0]:
                values = [one[key] for one in found]
                row[key] = sum(values) / len(values)
            good = [one["W good"] for one in found]
            row["W good, range"] = f"{min(good):.2f} … {max(good):.2f}"
            rows.append(row)
    cells = [
        {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows
    ]
    print(report.table(cells))
    if args.output:
        about = {
            "command": f"python examples/hypergradient_toy.py --seeds {args.seeds} "
            f"--steps {args.steps} --parametrization {args.parametrization}",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": versions(),
        }
        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
