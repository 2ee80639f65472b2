"""An exit policy of your own, in ten lines, against the built-in ones.

    python examples/custom_policy.py

It trains a small ResNet with nine exits on scikit-learn's digits (half a minute on a CPU).
"""

import argparse
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import multiexit as mx
from multiexit import presets, report
from multiexit.data import digits


@dataclass(frozen=True)
class TwoSure(mx.ExitPolicy):
    """Stop when this exit and the one before are both surer than the threshold."""

    threshold: float

    def init(self, logits_BC: Tensor) -> dict[str, Tensor]:
        return {"was_sure": torch.zeros(len(logits_BC), dtype=torch.bool, device=logits_BC.device)}

    def step(self, state: dict[str, Tensor], logits_BC: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        sure_B = logits_BC.softmax(-1).amax(-1) >= self.threshold
        return {"was_sure": sure_B}, sure_B & state["was_sure"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()

    torch.manual_seed(0)
    data = digits.load()
    model = mx.MultiExitModel(mx.cifar_resnet(20, in_channels=1, size=8), num_classes=10)
    config = replace(
        presets.cifar(epochs=args.epochs), batch_size=64, schedule="cosine", warmup=0.1
    )
    mx.Trainer(model, mx.recipes.leebert(temperature=4), config).fit(data.train)

    outputs = mx.collect(model, data.test)
    policies = [
        *(TwoSure(q) for q in (0.5, 0.7, 0.9)),
        *(mx.MaxProb(q) for q in (0.5, 0.7, 0.9)),
        *(mx.Patience(p) for p in (1, 2, 4)),
    ]
    print(report.policy_table(mx.sweep(outputs, policies)))

    # The same decisions on the model itself, with layers really skipped.
    images = torch.stack([data.test[i][0] for i in range(8)])
    policy = mx.calibrate(outputs, TwoSure, speedup=1.5)
    prediction = model.eval().predict(policy, images)
    print(f"\n{policy}: the first eight digits leave at exits {prediction.exit_B.tolist()}")


if __name__ == "__main__":
    main()
