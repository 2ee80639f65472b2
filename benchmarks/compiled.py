"""What `torch.compile` gives the engine, against the plain network eager and compiled.

    python benchmarks/compiled.py --output benchmarks/results/compiled.json

Mixtures of exits and networks as in `engine.py`. All four are timed in turns. "compiling, s" is
what the engine's first calls took: a graph for each exit and each power of two of rows in use.
"""

import argparse
import inspect
import shlex
import sys
import time
from functools import partial
from typing import Any

import torch
from common import report, seconds
from engine import Planned, networks, plan

import multiexit as mx


def measure(
    model: mx.MultiExitModel,
    plain: Any,
    inputs: Any,
    batch: int,
    mixture: str,
    repeats: int,
    mode: Any,
) -> dict[str, Any]:
    """One row of the table."""
    M = model.num_exits
    plans = [plan(mixture, batch, M)]
    if batch == 1:  # a lone row is timed at some exits in turn
        plans = [[M - 1]] if mixture == "none" else [[M * part // 8] for part in (1, 3, 5, 7)]
    policies = [Planned(tuple(exits)) for exits in plans]
    eager = [mx.Engine(model, policy) for policy in policies]
    compiled = [mx.Engine(model, policy, compile=mode or True) for policy in policies]
    compiled_plain = torch.compile(_bare(plain), mode=mode)

    def run(network: Any) -> None:
        with torch.inference_mode():
            for _ in plans:
                network(**inputs)

    def ask(engines: list[mx.Engine]) -> None:
        for engine in engines:
            engine.predict(**inputs)

    begin = time.perf_counter()
    ask(compiled)
    took = time.perf_counter() - begin
    calls = [
        lambda: run(plain),
        lambda: run(compiled_plain),
        lambda: ask(eager),
        lambda: ask(compiled),
    ]
    ms = [1e3 * spent / len(plans) for spent in seconds(calls, repeats)]
    layers = [model.exits[exit] + 1 for exits in plans for exit in exits]
    ideal = (model.exits[-1] + 1) * len(layers) / sum(layers)
    names = ("plain", "plain, compiled", "engine", "engine, compiled")
    row: dict[str, Any] = {f"{name}, ms": spent for name, spent in zip(names, ms, strict=True)}
    row |= {"compiling, s": took, "ideal": ideal, "plain ÷ engine": ms[0] / ms[2]}
    return row | {"plain ÷ compiled engine": ms[0] / ms[3], "both compiled": ms[1] / ms[3]}


def _bare(plain: Any) -> Any:
    """`model.full` without its inference mode, which can't be compiled."""
    if not inspect.ismethod(plain):
        return plain
    return partial(inspect.unwrap(plain.__func__), plain.__self__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--mixtures", nargs="+", default=["uniform", "none"])
    parser.add_argument("--only", nargs="+", default=["BERT-base", "7 exits"])
    parser.add_argument("--mode", help="of torch.compile, such as reduce-overhead on a GPU")
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, build in networks(args.tokens).items():
        if not any(name.startswith(only) or name.endswith(only) for only in args.only):
            continue
        model, plain, make = build()
        for batch in args.batches:
            inputs = make(batch)
            for mixture in args.mixtures:
                row = measure(model, plain, inputs, batch, mixture, args.repeats, args.mode)
                rows.append({"network": name, "batch": batch, "mixture": mixture, **row})
                print(rows[-1], flush=True)
    report(rows, args.output, shlex.join(["benchmarks/compiled.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
