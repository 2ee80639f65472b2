"""How much of the ideal speed-up `predict` realises, over batch sizes.

    python benchmarks/predict.py --output benchmarks/results/predict.json

ideal = layers of the full network ÷ mean layers run; realised = seconds of the plain transformers
model with one head ÷ seconds of `predict`. Rows leave at exits drawn uniformly, by a policy that
reads them off, so that every batch size sees the same mixture.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from common import report, seconds
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig

import multiexit as mx


@dataclass(frozen=True)
class Planned(mx.ExitPolicy):
    """Leave where the plan says; costs what patience costs."""

    plan: tuple[int, ...]

    def init(self, logits_BC: Tensor) -> dict[str, Tensor]:
        zeros_B = torch.zeros(len(logits_BC), dtype=torch.long, device=logits_BC.device)
        plan_B = torch.tensor(self.plan, device=logits_BC.device)
        return {"plan": plan_B, "exit": zeros_B, "answer": zeros_B}

    def step(self, state: dict[str, Tensor], logits_BC: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stop_B = state["exit"] >= state["plan"]
        return {**state, "exit": state["exit"] + 1, "answer": logits_BC.argmax(-1)}, stop_B


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(BertConfig()).eval()
    model = mx.MultiExitModel(mx.wrap(plain), 2).eval()
    M = model.num_exits
    rows: list[dict[str, Any]] = []
    for B in args.batches:
        ids = torch.randint(1000, 20000, (B, args.tokens))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        # A lone row is timed at each exit in turn; a batch holds the mixture.
        plans = [(m,) for m in range(M)] if B == 1 else [tuple(i % M for i in range(B))]

        def ours(plans: Any = plans, inputs: Any = inputs) -> None:
            for plan in plans:
                model.predict(Planned(plan), **inputs)

        def theirs(plans: Any = plans, inputs: Any = inputs) -> None:
            with torch.inference_mode():
                for _ in plans:
                    plain(**inputs)

        fast, slow = seconds([ours, theirs], args.repeats)
        layers = [exit + 1 for plan in plans for exit in plan]
        ideal = M * len(layers) / sum(layers)
        rows.append({"batch": B, "plain, ms": 1e3 * slow / len(plans), "ideal": ideal})
        rows[-1] |= {"realised": slow / fast, "realised / ideal": slow / fast / ideal}
    report(rows, args.output, "benchmarks/predict.py")


if __name__ == "__main__":
    main()
