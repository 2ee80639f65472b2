"""How much of the ideal speed-up the engine realises, over batch sizes and mixtures of exits.

    python benchmarks/engine.py --output benchmarks/results/engine.json

ideal = layers of the full network ÷ mean layers run; realised = seconds of the plain network with
one head ÷ seconds of the engine, in turns. Where rows leave is written on them, so that every batch
size sees the same mixture:

    uniform   over all exits           early     at 1/12 … 1/2 of the depth, mostly the first
    late      its mirror image         one hard  all at a quarter of the depth, but one at the end
    none      nobody before the last exit: the ratio is that to the plain network

"clock" is the ideal by measured stage times in place of layers. "reachable" is that where a stage
takes what it takes for the rows that are left, since few rows cost more each than many do; what
"engine / reachable" lacks of 1 went into heads, policies, dropping rows and Python. "wait" stops
when the last row of the batch may, as peers do at batches above 1. "stream" is fed up to 256 rows
(2 to 8 batches). A batch of one is timed at each of its mixture's exits in turn. The engine has a
latency table, and both it and "wait" run `multiexit.for_inference(model)`.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from common import report, seconds
from torch import Tensor
from transformers import AlbertConfig, AutoModelForSequenceClassification, BertConfig

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


MIXTURES = ("uniform", "early", "late", "one hard", "none")


def networks(tokens: int) -> dict[str, Callable[[], tuple[mx.MultiExitModel, Any, Any]]]:
    """By name: a model, the plain network, and how to make inputs of so many rows."""

    def text(config: Any) -> tuple[mx.MultiExitModel, Any, Any]:
        plain = AutoModelForSequenceClassification.from_config(config).eval()

        def inputs(rows: int) -> dict[str, torch.Tensor]:
            ids = torch.randint(1000, 20000, (rows, tokens))
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        return mx.MultiExitModel(mx.wrap(plain), 2).eval(), plain, inputs

    def image(backbone: mx.Backbone, exits: Any = "all") -> tuple[mx.MultiExitModel, Any, Any]:
        model = mx.MultiExitModel(backbone, 10, exits).eval()
        name, example = next(iter(backbone.example_inputs().items()))
        return model, model.full, lambda rows: {name: torch.randn(rows, *example.shape[1:])}

    base: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072}
    albert = AlbertConfig(**base, num_attention_heads=12)
    return {
        f"BERT-base, {tokens} tokens": lambda: text(BertConfig()),
        f"ALBERT-base, {tokens} tokens": lambda: text(albert),
        "ResNet-56, 27 exits": lambda: image(mx.cifar_resnet(56)),
        "ResNet-56, 7 exits": lambda: image(mx.cifar_resnet(56), [3, 7, 11, 15, 19, 23, 26]),
        "ViT-Ti/16": lambda: image(mx.wrap(timm.create_model("vit_tiny_patch16_224"))),
    }


def plan(mixture: str, rows: int, exits: int) -> list[int]:
    """Where each row leaves."""
    last = exits - 1
    match mixture:
        case "uniform":
            return [row % exits for row in range(rows)]
        case "early" | "late":
            depths = [round(last * share) for share in (1 / 12, 1 / 12, 1 / 6, 1 / 4, 1 / 2)]
            early = [depths[row % len(depths)] for row in range(rows)]
            return early if mixture == "early" else [last - exit for exit in early]
        case "one hard":
            return [last] + [last // 4] * (rows - 1)
    return [last] * rows


def wait(model: mx.MultiExitModel, exits: list[int], inputs: dict[str, torch.Tensor]) -> None:
    """Heads and policy at each exit; the batch stops with its last row."""
    policy = Planned(tuple(exits))
    with torch.inference_mode():
        carry, memory, state = model.backbone.start(**inputs), {}, {}
        for m in range(model.num_exits):
            carry, logits_BC, memory = model.segment(m, carry, memory)
            state = policy.init(logits_BC) if m == 0 else state
            state, stop_B = policy.step(state, logits_BC)
            if bool(stop_B.all()):
                return


def stages_ms(table: mx.Latency, exits: list[int]) -> float:
    """Milliseconds of the stages alone, each on the rows that are left."""
    left = [sum(exit >= m for exit in exits) for m in range(max(exits) + 1)]
    spent = [table.at(table.stages_ms[m], rows) for m, rows in enumerate(left)]
    return table.at(table.start_ms, len(exits)) + sum(spent)


def measure(
    model: mx.MultiExitModel,
    plain: Any,
    make: Any,
    table: mx.Latency,
    batch: int,
    mixture: str,
    repeats: int,
) -> dict[str, Any]:
    """One row of the table."""
    M = model.num_exits
    inputs = make(batch)
    # A lone row is timed at each exit of the mixture in turn.
    if batch > 1:
        plans = [plan(mixture, batch, M)]
    else:
        whole = plan(mixture, 1 if mixture == "none" else 2 * M, M)
        plans = [[exit] for exit in (whole[:2] if mixture == "one hard" else whole)]
    engines = [mx.Engine(model, Planned(tuple(exits)), latency=table) for exits in plans]
    stream_of = min(8, max(2, 256 // batch)) if batch > 1 else 0

    def run_plain() -> None:
        with torch.inference_mode():
            for _ in plans:
                plain(**inputs)

    def run_engine() -> None:
        for engine in engines:
            engine.predict(**inputs)

    def run_stream() -> None:
        # Planned reads a plan per batch that begins; the stream begins batches as they came.
        list(engines[0].stream([inputs] * stream_of, batch_size=batch, window=stream_of))

    calls = [run_plain, run_engine, lambda: [wait(model, exits, inputs) for exits in plans]]
    if stream_of:
        calls.append(run_stream)
    slow, fast, waiting, *streamed = seconds(calls, repeats)
    layers = [model.exits[exit] + 1 for exits in plans for exit in exits]
    ideal = (model.exits[-1] + 1) * len(layers) / sum(layers)
    stages = [table.at(spent, batch) for spent in table.stages_ms]
    until = [table.at(table.start_ms, batch) + sum(stages[: m + 1]) for m in range(M)]
    ran = sum(until[exit] for exits in plans for exit in exits) / len(layers)
    whole = stages_ms(table, [M - 1] * batch)
    reachable = len(plans) * whole / sum(stages_ms(table, exits) for exits in plans)
    row = {
        "plain, ms": 1e3 * slow / len(plans),
        "ideal": ideal,
        "clock": until[-1] / ran,
        "reachable": reachable,
        "engine": slow / fast,
        "engine / ideal": slow / fast / ideal,
        "engine / reachable": slow / fast / reachable,
        "wait": slow / waiting,
        "engine ÷ wait": waiting / fast,
    }
    stream = stream_of * slow / streamed[0] if stream_of else None
    row |= {"stream / ideal": "–" if stream is None else stream / ideal}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--mixtures", nargs="+", default=MIXTURES)
    parser.add_argument("--only", help="networks whose name has this in it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, build in networks(args.tokens).items():
        if args.only and args.only not in name:
            continue
        model, plain, make = build()
        model = mx.for_inference(model)
        sizes = [1 << power for power in range(max(args.batches).bit_length())]
        table = mx.profile(model, inputs=make(1), batch_sizes=sizes, repeats=args.repeats)
        for batch in args.batches:
            for mixture in args.mixtures:
                row = measure(model, plain, make, table, batch, mixture, args.repeats)
                rows.append({"network": name, "batch": batch, "mixture": mixture, **row})
                print(rows[-1], flush=True)
    report(rows, args.output, shlex.join(["benchmarks/engine.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
