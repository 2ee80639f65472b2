"""A training step of each method against plain fine-tuning of the same backbone with one exit.

    python benchmarks/train_step.py --output benchmarks/results/train_step.json

A whole cycle of CLO-v2 (C = 4 steps) is timed and divided by 4. "floor" is what the arithmetic
says if a backward pass costs two forward passes.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from common import report, seconds
from transformers import AlbertConfig, AutoModel, BertConfig

import multiexit as mx
from multiexit.training.stepper import Stepper

FLOORS: dict[str, tuple[float, dict[str, Any]]] = {
    "pabee": (1.0, {}),
    "joint": (1.0, {}),
    "leebert": (1 + 2 / 12, {}),
    "leebert, fresh=False": (1 + 1 / 12, {"fresh": False}),
    "leebert-clo-v1": (5 / 3, {}),
    "leebert-clo-v1, fresh=False": (4 / 3, {"fresh": False}),
}


def backbones(small: bool) -> dict[str, Callable[[], mx.Backbone]]:
    """The networks, as functions that make a fresh one."""
    size: dict[str, Any] = {"num_hidden_layers": 12}
    if small:
        size |= {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    else:
        size |= {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    name = "384 wide" if small else "base"
    return {
        f"BERT, {name}": lambda: mx.wrap(AutoModel.from_config(BertConfig(**size))),
        f"ALBERT, {name}": lambda: mx.wrap(AutoModel.from_config(AlbertConfig(**size))),
        "ResNet-56": lambda: mx.cifar_resnet(56),
    }


def batch(backbone: mx.Backbone, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random inputs with labels of two classes."""
    inputs = backbone.example_inputs(rows)
    if "input_ids" in inputs:
        inputs = {name: tensor[:, :tokens].contiguous() for name, tensor in inputs.items()}
        inputs["input_ids"] = torch.randint(1000, 20000, inputs["input_ids"].shape)
    else:
        inputs["x"] = torch.randn_like(inputs["x"])
    return {**inputs, "labels": torch.randint(2, (rows,))}


def cycle(
    backbone: mx.Backbone, recipe: mx.Recipe, exits: Any, args: Any, phase: int = 0
) -> Callable[[], None]:
    """Four steps of a recipe's phase on one model."""
    image = len(backbone.feature_shapes[0]) == 3
    model = mx.MultiExitModel(backbone, 2, exits, recipe.head)
    kind: dict[str, Any] = {"optimizer": "sgd", "lr": 1e-4} if image else {"lr": 1e-6}
    config = mx.TrainConfig(omega_lr=1e-3, **kind)
    stepper = Stepper(model, recipe.phases[phase], config, Accelerator())
    rows = args.images if image else args.sentences
    first, second = (batch(backbone, rows, args.tokens) for _ in range(2))
    steps = count()

    def run() -> None:
        for _ in range(4):
            stepper.step([first], lambda: [second], next(steps), 10**6)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--small", action="store_true", help="encoders 384 wide")
    parser.add_argument("--output")
    args = parser.parse_args()
    rows = []
    for name, make in backbones(args.small).items():
        torch.manual_seed(0)
        last = [make().num_stages - 1]
        calls = [cycle(make(), mx.recipes.joint(), last, args)]
        for recipe, (_, options) in FLOORS.items():
            made = mx.recipe(recipe.partition(",")[0], **options)
            calls.append(cycle(make(), made, "all", args))
        plain, *others = seconds(calls, args.repeats)
        for (recipe, (floor, _)), time in zip(FLOORS.items(), others, strict=True):
            rows.append({"backbone": name, "recipe": recipe, "step, ms": 250 * time})
            rows[-1] |= {"plain, ms": 250 * plain, "ratio": time / plain, "floor": floor}
    report(rows, args.output, shlex.join(["benchmarks/train_step.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
