"""Profiling: measures how long each part of a model takes on one machine, by batch size.

Letters: M exits, S batch sizes, B batch rows.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiexit import policies, problems
from multiexit.arguments import check_whole, rising
from multiexit.backbones.base import select
from multiexit.model import exit_loop
from multiexit.model.latency import Latency, machine_of, nested
from multiexit.model.model import MultiExitModel
from multiexit.problems import are_vectors
from multiexit.runtime import evaluating
from multiexit.serving.engine import Engine
from multiexit.serving.timing import median_seconds

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
UNREACHED = 1.01  # no probability is that large


@torch.inference_mode()
def profile(
    model: MultiExitModel,
    policy: policies.ExitPolicy | None = None,
    inputs: Tensor | Mapping[str, Tensor] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 5,
) -> Latency:
    """Measure a model's parts where it is, as an engine runs them: the medians of some repeats.

    What whole calls take beyond their parts is in the table too: of a call that ends at the first
    exit in `start_ms`, and what one to the last exit has more, in even shares, in `check_ms` of the
    exits behind the first. Whole calls are timed in turn, as rows come that leave here and there: a
    short call after a long one takes longer than after its like, whose memory is still at hand.

    Args:
        model: is put into evaluation mode for the while.
        policy: that exits are asked by; by default the model's own, or one that costs what
            most do (max p; a fixed exit for regression).
        inputs: rows, by name or of the one input, of which the first is used; by default the
            backbone's own example (text: 128 tokens). Give text as long as yours is.
        batch_sizes: rising.
        repeats: readings of each part.

    Returns:
        The table, in milliseconds. As `model.latency` it is saved with the model.

    Raises:
        ValueError: batch sizes that don't rise from 1 at least, no repeats, no input, or a policy
            that doesn't fit.

    Example:
        >>> import torch, multiexit as mx
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> model.latency = mx.profile(model, batch_sizes=(1, 2), repeats=1)
        >>> model.latency.batch_sizes, len(model.latency.stages_ms)
        ((1, 2), 2)
    """
    sizes = tuple(rising("batch_sizes", batch_sizes, 1))
    check_whole("repeats", repeats)
    if policy is None:
        policy = model.policy or _usual(model)
    example = model.example_inputs()
    if inputs is not None:
        example = {next(iter(example)): inputs} if isinstance(inputs, Tensor) else inputs
        if not isinstance(inputs, Tensor | Mapping) or not exit_loop.num_rows((), example):
            raise ValueError("inputs must be a row or more: a tensor, or tensors by name")
    device = next(model.parameters()).device
    columns = []
    with evaluating(model):
        engine = Engine(model, policy)
        for size in sizes:
            rows = {k: v[:1].expand(size, *v.shape[1:]).to(device) for k, v in example.items()}
            columns.append(_column(engine, rows, repeats))
    start, stages, check, drop, full = zip(*columns, strict=True)
    return Latency(
        machine_of(model),
        sizes,
        start,
        nested(np.array(stages).T),
        nested(np.array(check).T),
        drop,
        full,
    )


def _column(
    engine: Engine, inputs: dict[str, Tensor], repeats: int
) -> tuple[float, list[float], list[float], float, float]:
    """All parts at one batch size."""

    def milliseconds(call: Callable[[], Any]) -> float:
        return 1e3 * median_seconds([call], repeats, least=0.002)[0]

    model = engine.model_for(exit_loop.num_rows((), inputs))
    start, stages, check, drop = _parts(model, engine.policy, inputs, milliseconds)
    ends = (_all_until(engine, exit).predict for exit in (0, model.num_exits - 1))
    calls = [partial(call, **inputs) for call in (*ends, model.full)]
    to_first, to_last, full = (1e3 * seconds for seconds in median_seconds(calls, repeats))
    beyond = max(0.0, to_first - start - stages[0] - check[0])
    further = max(0.0, to_last - start - sum(stages) - sum(check) - beyond)
    check = [ms + (further / (len(check) - 1) if exit else 0) for exit, ms in enumerate(check)]
    return start + beyond, stages, check, drop, full


def _all_until(engine: Engine, last: int) -> Engine:
    """An engine that does all it does, but lets all rows leave at one exit."""
    other = engine.with_policy(engine.policy)

    def decide_by(model: MultiExitModel) -> exit_loop.Decide:
        def decide_until(exit: int, carry: Any, memory: Any, state: Any) -> exit_loop.Decision:
            decision = model.decide(engine.policy, exit, carry, memory, state)
            return decision._replace(stop_B=torch.full_like(decision.stop_B, exit >= last))

        return decide_until

    other._decide_by = decide_by
    return other


def _parts(
    model: MultiExitModel,
    policy: policies.ExitPolicy,
    inputs: dict[str, Tensor],
    milliseconds: Callable[[Callable[[], Any]], float],
) -> tuple[float, list[float], list[float], float]:
    """The parts of a call, each by itself."""
    policy = policies.for_problem(policy, model.problem)
    carry = model.start((), inputs)
    start = milliseconds(lambda: model.start((), inputs))
    memory, state = {}, {}
    stages, check = [], []
    all_rows = torch.arange(
        len(next(iter(inputs.values()))), device=next(model.parameters()).device
    )
    drop = milliseconds(lambda: select(carry, all_rows))
    for exit in range(model.num_exits):
        stages.append(milliseconds(partial(model.to_exit, exit, carry)))
        carry, feature = model.to_exit(exit, carry)

        def ask(c: Any = carry, f: Any = feature, m: Any = memory, s: Any = state, e: int = exit):
            logits_BC, after = model.ask(e, f, c, m)
            before = policy.init(logits_BC.float()) if e == 0 else s
            now, stop_B = policies.step(
                policy, before, logits_BC.float(), after.get("certainty"), c.get("asked_BT")
            )
            stop_B.sum().item()
            return after, now

        check.append(milliseconds(ask))
        memory, state = ask()
    return start, stages, check, drop


def _usual(model: MultiExitModel) -> policies.ExitPolicy:
    """A policy that stops no row, and costs what most do."""
    if are_vectors(model.problem):
        return policies.Settled(0.0)
    K = problems.classes_of_decision(model.problem, model.num_classes)
    return policies.MaxProb(UNREACHED) if K > 1 else policies.FixedExit(0)
