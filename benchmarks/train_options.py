"""A training step of LeeBERT (LAE, CLO-v2, C = 4) with each option, and where its time goes.

    python benchmarks/train_options.py --output benchmarks/results/train_options.json
    python benchmarks/train_options.py --profile

A whole cycle of 4 steps is timed and divided by 4. With `--profile`, cycles of each backbone
without options: milliseconds a step by part (each part is waited for), and one cycle by operation.
"""

import argparse
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from common import report, seconds
from torch.profiler import ProfilerActivity, profile
from train_step import backbones, batch

import multiexit as mx
from multiexit.data.images import ImageDataset
from multiexit.training.stepper import Stepper

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"mixed_precision": "bf16"},
    "channels last": {"channels_last": True},
    "compile": {"compile": True},
    "stages twice": {"checkpoint_gradients": True},
    "bf16 + channels last + compile": {
        "mixed_precision": "bf16",
        "channels_last": True,
        "compile": True,
    },
    "all": {
        "mixed_precision": "bf16",
        "channels_last": True,
        "compile": True,
        "checkpoint_gradients": True,
    },
}


class Cycle:
    """Four steps of one model, again and again; by default LeeBERT's, with all exits."""

    def __init__(
        self,
        backbone: mx.Backbone,
        options: dict[str, Any],
        args: Any,
        recipe: mx.Recipe | None = None,
        exits: Any = "all",
    ):
        self.image = len(backbone.feature_shapes[0]) == 3
        if not self.image:
            options = {**options, "channels_last": False}
        recipe = recipe or mx.recipes.leebert(4.0 if self.image else 1.0)
        kind: dict[str, Any] = {"optimizer": "sgd", "lr": 1e-4} if self.image else {"lr": 1e-6}
        config = mx.TrainConfig(omega_lr=1e-3, **kind, **options)
        AcceleratorState._reset_state()  # another precision
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
        model = mx.MultiExitModel(backbone, 10 if self.image else 2, exits).to(accelerator.device)
        self.stepper = Stepper(model, recipe.phases[0], config, accelerator)
        self.rows = args.images if self.image else args.sentences
        self.draw = self._data(backbone, args.tokens, accelerator.device)
        self.steps = count()

    def _data(self, backbone: mx.Backbone, tokens: int, device: torch.device) -> Callable[[], Any]:
        if not self.image:
            made = batch(backbone, self.rows, tokens)
            return lambda: made
        shape = (4 * self.rows, *next(iter(backbone.example_inputs().values())).shape[1:])
        pixels, labels = torch.randint(256, shape).to(torch.uint8), torch.randint(10, shape[:1])
        data = ImageDataset(pixels, labels, (0.5,) * 3, (0.25,) * 3, augment=True).to(device)
        return lambda: data.__getitems__(torch.randperm(len(data))[: self.rows].tolist())

    def __call__(self) -> None:
        for _ in range(4):
            self.stepper.step([self.draw()], lambda: [self.draw()], next(self.steps), 10**6)


class Parts:
    """Seconds in each part of a step: outer parts don't count what parts inside them take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            self.inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = self.now() - begin
                self.seconds[name] += took - self.inside.pop()
                if self.inside:
                    self.inside[-1] += took

        return call

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def by_part(cycle: Cycle, repeats: int) -> dict[str, float]:
    """Milliseconds a step, by part; what Ω's passes take counts as Ω's."""
    cycle()
    parts, stepper = Parts(), cycle.stepper
    current_losses = parts.timed("Ω", stepper._current_losses)
    forward = parts.timed("forward", stepper._wrapped.forward)
    plain_forward = stepper._wrapped.forward

    def omega_pass(batches: list[Any]) -> Any:
        stepper._wrapped.forward = plain_forward
        try:
            return current_losses(batches)
        finally:
            stepper._wrapped.forward = forward

    stepper._wrapped.forward = forward
    stepper._current_losses = omega_pass
    stepper.omega.update = parts.timed("Ω", stepper.omega.update)
    stepper.accelerator.backward = parts.timed("backward", stepper.accelerator.backward)
    stepper.optimizer.step = parts.timed("optimiser", stepper.optimizer.step)
    cycle.draw = parts.timed("data", cycle.draw)
    whole = parts.timed("rest", cycle)
    for _ in range(repeats):
        whole()
    return {name: 1000 * took / (4 * repeats) for name, took in parts.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--small", action="store_true", help="encoders 384 wide")
    parser.add_argument("--backbone", help="only those whose name begins so, such as ResNet")
    parser.add_argument("--option", action="append", help="only these, and plain", choices=OPTIONS)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output")
    args = parser.parse_args()
    makes = {k: v for k, v in backbones(args.small).items() if k.startswith(args.backbone or "")}
    chosen = {k: v for k, v in OPTIONS.items() if k in ("plain", *(args.option or OPTIONS))}
    rows: list[dict[str, Any]] = []
    for name, make in makes.items():
        torch.manual_seed(0)
        if args.profile:
            cycle = Cycle(make(), {}, args)
            rows.append({"backbone": name, **by_part(cycle, args.repeats)})
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            with profile(activities=activities) as seen:
                cycle()
            key = "cuda" if torch.cuda.is_available() else "cpu"
            print(seen.key_averages().table(sort_by=f"self_{key}_time_total", row_limit=15))
            continue
        image = len(make().feature_shapes[0]) == 3
        fitting = {k: v for k, v in chosen.items() if image or k != "channels last"}
        cycles = [Cycle(make(), changes, args) for changes in fitting.values()]
        times = seconds(cycles, args.repeats)
        for option, cycle, took in zip(fitting, cycles, times, strict=True):
            row = {"backbone": name, "option": option, "step, ms": 250 * took}
            rows.append(row | {"rows/s": 4 * cycle.rows / took, "plain ÷ this": times[0] / took})
    report(rows, args.output, shlex.join(["benchmarks/train_options.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
