"""What a call of `Engine.predict` spends beside its stages, where no row leaves early.

    python benchmarks/engine_parts.py --threads 1 --output benchmarks/results/engine_parts.json

Each column has all that those before it have, in milliseconds a call:

    plain     the network with one head
    stages    the stages alone; of images with batch norms folded, as `multiexit.for_inference` does
    heads     every exit's head
    policy    patience that is never reached
    loop      reading who stops and whether logits are finite, once for each exit
    predict   checks of the input
    looking   an engine of the model as it was given: a row alone isn't folded, and of more it looks
              whether the model has changed

"3 at once" is beside "policy": features wait for the third of three exits, whose heads are then
asked in one product, the policy still exit by exit. Nobody leaves here, so the difference is the
most that it could bring: a row that leaves at the first of three would run two stages more.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from common import report, seconds
from engine import networks
from torch import Tensor

import multiexit as mx
from multiexit import policies
from multiexit.model import exit_loop

NETWORKS = ("BERT-base, 32 tokens", "ResNet-56, 27 exits")


def parts(
    model: mx.MultiExitModel, plain: Any, inputs: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """The columns' calls, by name."""
    rows = len(next(iter(inputs.values())))
    policy = mx.Patience(model.num_exits)
    runs = mx.for_inference(model)
    engine, looking = mx.Engine(runs, policy), mx.Engine(model, policy)
    groups = list(of_like_exits(runs, inputs, 3))

    def stages() -> None:
        carry = runs.start((), inputs)
        for exit in range(runs.num_exits):
            carry, _ = runs.to_exit(exit, carry)

    def heads() -> None:
        carry, memory = runs.start((), inputs), {}
        for exit in range(runs.num_exits):
            carry, _, memory = runs.segment(exit, carry, memory)

    def decides() -> None:
        carry, memory, state = runs.start((), inputs), {}, {}
        for exit in range(runs.num_exits):
            decision = runs.decide(policy, exit, carry, memory, state)
            carry, memory, state = decision.carry, decision.memory, decision.state

    def loop() -> None:
        group = exit_loop.first_group(runs.start((), inputs), torch.arange(rows), rows)
        answer = exit_loop.empty_prediction((rows, runs.num_classes), runs.temperature_M)
        exit_loop.run(group, partial(runs.decide, policy), exit_loop.num_running, answer)

    def at_once() -> None:
        carry, state = runs.start((), inputs), {}
        for exits, w_MDK, b_M1K in groups:
            features = []
            for exit in exits:
                carry, feature = runs.to_exit(exit, carry)
                features.append(feature)
            vectors = runs.heads[exits[0]].vector(torch.cat(features))  # type: ignore[operator]
            raw_MBK = torch.baddbmm(b_M1K, vectors.view(len(exits), rows, -1), w_MDK)
            logits_MBK = raw_MBK / runs.temperature_M[exits[0] : exits[-1] + 1, None, None]
            for exit, logits_BK in zip(exits, logits_MBK, strict=True):
                state = policy.init(logits_BK) if exit == 0 else state
                state, _ = policies.step(policy, state, logits_BK)

    calls = {
        "plain": lambda: plain(**inputs),
        "stages": stages,
        "heads": heads,
        "policy": decides,
        "3 at once": at_once,
        "loop": loop,
    }
    inferring = {name: torch.inference_mode()(call) for name, call in calls.items()}
    return {
        **inferring,
        "predict": lambda: engine.predict(**inputs),
        "looking": lambda: looking.predict(**inputs),
    }


def of_like_exits(
    model: mx.MultiExitModel, inputs: dict[str, Tensor], most: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Exits in a row whose features have one shape, and their last layers, laid side by side."""
    with torch.inference_mode():
        carry, shapes = model.start((), inputs), []
        for exit in range(model.num_exits):
            carry, feature = model.to_exit(exit, carry)
            shapes.append(feature.shape)
    first = 0
    while first < len(shapes):
        candidates = range(first, min(first + most, len(shapes)))
        exits = [exit for exit in candidates if shapes[exit] == shapes[first]]
        linears: Any = [model.heads[e].linear for e in exits]
        yield (
            exits,
            torch.stack([linear.weight.detach().T for linear in linears]),
            torch.stack([linear.bias.detach() for linear in linears]).unsqueeze(1),
        )
        first += len(exits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name in NETWORKS:
        model, plain, make = networks(tokens=32)[name]()
        for batch in args.batches:
            calls = parts(model, plain, make(batch))
            spent = seconds(list(calls.values()), args.repeats)
            times = {part: 1e3 * s for part, s in zip(calls, spent, strict=True)}
            rows.append({"network": name, "rows": batch, **times})
            print(rows[-1], flush=True)
    report(rows, args.output, shlex.join(["benchmarks/engine_parts.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
