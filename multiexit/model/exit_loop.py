"""Rows on their way through a multi-exit model: exit after exit, those that stop leave.

One loop serves `MultiExitModel.predict` and `multiexit.Engine`. What happens at one exit is
`MultiExitModel.decide`, a function of tensors alone, so that it can be compiled or exported.

Letters: M exits, B batch rows, C classes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.backbones.base import Carry, select
from multiexit.backbones.one_input import in_place_of
from multiexit.model.finite import check_finite
from multiexit.model.heads import Memory
from multiexit.policies import State


class Prediction(NamedTuple):
    """Answers in the order the rows came in.

    Args:
        logits_BC: the logits of the exit where each row left, float32; of a float64 model float64.
            Of tokens they are [B, T, C], in the order of the inputs, and 0 at padding.
        exit_B: which exit that was, counted from 0, int64.

    Example:
        >>> import torch, multiexit as mx
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=3).eval()
        >>> logits_BC, exit_B = model.predict(mx.FixedExit(0), torch.rand(2, 4))
        >>> logits_BC.shape, exit_B
        (torch.Size([2, 3]), tensor([0, 0]))
    """

    logits_BC: Tensor
    exit_B: Tensor


class Decision(NamedTuple):
    """The outcome of one exit.

    Args:
        carry, memory, state: for the next exit.
        logits_BC: this exit's own, to be looked over for NaN.
        answer_BC: what rows that leave here take along.
        stop_B: who stops, bool; at the last exit everyone.
    """

    carry: Carry
    memory: Memory
    state: State
    logits_BC: Tensor
    answer_BC: Tensor
    stop_B: Tensor


BATCHED = ("rows_B", "carry", "memory", "state")
"""The fields of a `Group` whose first dimension is the batch, `running_B` aside."""

Decide = Callable[[int, Carry, Memory, State], Decision]
BatchSize = Callable[["Group"], int]
"""How many rows to run after an exit. `group.running` drops every row that stopped; a larger number
keeps rows that stopped, or copies, as filling."""


@dataclass(slots=True)
class Group:
    """Rows that go through the model together.

    Args:
        exit: the one they come to next.
        running: how many have not stopped yet.
        rows_B: their places in the answer.
        running_B: which of them have not stopped yet; the others are dragged along.
        carry, memory, state: as `Decision` gives them.
        wasted: milliseconds spent on those dragged along, for whoever reckons with them.
    """

    exit: int
    running: int
    rows_B: Tensor
    running_B: Tensor
    carry: Carry
    memory: Memory
    state: State
    wasted: float = 0.0


class Finished(NamedTuple):
    """Rows that stopped: their places in the answer, at which exit, and their answers."""

    rows_B: Tensor
    exit: int
    answer_BC: Tensor


def first_group(carry: Carry, rows_B: Tensor, running: int) -> Group:
    """Rows before the first exit.

    Args:
        carry: what `backbone.start` gave.
        rows_B: the rows' places in the answer.
        running: how many of them count; those behind are dragged along.
    """
    running_B = torch.arange(len(rows_B), device=rows_B.device) < running
    return Group(0, running, rows_B, running_B, carry, {}, {})


def advance(
    group: Group, decide: Decide, batch_size: BatchSize
) -> tuple[Finished | None, Group | None]:
    """Take a group past its next exit.

    Waits for the device once.

    Args:
        group: the rows, before the exit.
        decide: what happens at an exit.
        batch_size: how many rows to run behind it.

    Returns:
        The rows that left, and the group of those that go on, None where there are none.

    Raises:
        ValueError: NaN or infinite logits of a row that still runs.
    """
    exit = group.exit
    decision = decide(exit, group.carry, group.memory, group.state)
    dragging = group.running < len(group.rows_B)
    leave_B = group.running_B & decision.stop_B if dragging else decision.stop_B
    # A sum is finite only if all it adds is.
    leaving, total = _read(leave_B.count_nonzero(), decision.logits_BC.sum())
    if not math.isfinite(total):
        running_B = group.running_B
        check_finite(exit, decision.logits_BC[running_B], group.rows_B[running_B])
    after = Group(
        exit + 1,
        group.running - int(leaving),
        group.rows_B,
        group.running_B ^ leave_B if leaving else group.running_B,
        decision.carry,
        decision.memory,
        decision.state,
        group.wasted,
    )
    finished = (
        Finished(group.rows_B[leave_B], exit, decision.answer_BC[leave_B]) if leaving else None
    )
    if not after.running:
        return finished, None
    if after.running < len(after.rows_B):
        size = batch_size(after)
        after = after if size >= len(after.rows_B) else resize(after, size)
    return finished, after


def resize(group: Group, size: int) -> Group:
    """Keep the rows that still run; copies of the last one fill the group up to a size."""
    keep = group.running_B.nonzero().squeeze(1)
    if size > group.running:
        keep = torch.cat([keep, keep[-1:].expand(size - group.running)])
    return replace(
        group,
        wasted=0.0,
        running_B=torch.arange(size, device=keep.device) < group.running,
        **{name: select(getattr(group, name), keep) for name in BATCHED},
    )


def merge(groups: Sequence[Group]) -> Group:
    """Put groups together that are at the same exit and have the same `shape_key`."""
    first = groups[0]
    joined = {name: join([getattr(g, name) for g in groups]) for name in ("running_B", *BATCHED)}
    return replace(first, running=sum(group.running for group in groups), **joined)


def shape_key(group: Group) -> Any:
    """A key that groups must have in common to be merged: shapes without the batch, and types."""
    return tuple(tree_key(getattr(group, name)) for name in BATCHED)


def run(group: Group | None, decide: Decide, batch_size: BatchSize, answer: Prediction) -> None:
    """Take a group through all exits, and write down what its rows answer.

    Args:
        group: the rows, before their next exit.
        decide: what happens at an exit.
        batch_size: how many rows to run behind it.
        answer: filled in at the rows' places.

    Raises:
        ValueError: NaN or infinite logits.
    """
    while group is not None:
        finished, group = advance(group, decide, batch_size)
        write_answers(answer, finished)


def empty_prediction(shape: Sequence[int], weight: Tensor) -> Prediction:
    """Answers to be filled in.

    Args:
        shape: of the logits, [B, C], or of tokens [B, T, C].
        weight: of the model, whose device they are on, in its precision or float32.

    Returns:
        Logits, 0 until they are set, and exits [B], not set yet.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return Prediction(
        torch.zeros(*shape, dtype=dtype, device=weight.device),
        torch.empty(shape[0], dtype=torch.long, device=weight.device),
    )


def write_answers(answer: Prediction, finished: Finished | None) -> None:
    """Write down the answers of rows that left, if any did.

    Rows of tokens may have been run with less padding, or more, than their answers have.
    """
    if finished is None:
        return
    logits_BC, answer_BC = answer.logits_BC, finished.answer_BC
    if logits_BC.ndim == 3:
        tokens = min(logits_BC.shape[1], answer_BC.shape[1])
        logits_BC, answer_BC = logits_BC[:, :tokens], answer_BC[:, :tokens]
    logits_BC[finished.rows_B] = answer_BC
    answer.exit_B[finished.rows_B] = finished.exit


def check_evaluating(model: nn.Module) -> None:
    """Refuse train mode, of the model or of any part, by a ValueError."""
    if _trains(model):
        name = next(name for name, part in model.named_modules() if part.training)
        where = f" of its part {name}" if name else ""
        raise ValueError(f"predict in train mode{where} would be random: call model.eval() first")


ELSEWHERE = {
    "labels": ": labels are for training",
    "max_exit": ": it goes with a call of an engine, multiexit.Engine(model, policy).predict(…)",
}
"""What is to be said of names that belong to other calls."""


def check_names(start: Callable[..., Any], names: Iterable[str]) -> None:
    """Refuse inputs that a backbone's `start` doesn't take by name, by a ValueError."""
    takes = signature(start).parameters
    if any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        return
    for name in names:
        if name not in takes:
            raise ValueError(
                f"this network takes {', '.join(takes)}, not {name}{ELSEWHERE.get(name, '')}"
            )


def _trains(model: nn.Module) -> bool:
    """Whether any part is in train mode; `modules()` is too slow for each prediction."""
    parts: list[nn.Module | None] = [model]
    for part in parts:
        if part is None:
            continue
        if part.training:
            return True
        if children := part._modules:
            parts += children.values()
    return False


def num_running(group: Group) -> int:
    """The plain `BatchSize`: whoever stopped leaves the batch at once."""
    return group.running


def _read(*numbers: Tensor) -> list[float]:
    """Numbers from the device, in one wait."""
    if numbers[0].is_cpu:
        return [number.item() for number in numbers]
    return torch.stack([number.float() for number in numbers]).tolist()


def tree_key(tree: Any) -> Any:
    """Shapes without the batch, and types, of all tensors in dicts."""
    if isinstance(tree, Tensor):
        return (tree.shape[1:], tree.dtype)
    if isinstance(tree, Mapping):
        return tuple((key, tree_key(value)) for key, value in tree.items())
    return tree


def join(trees: Sequence[Any]) -> Any:
    """Batches one under another: of tensors, or of dicts of them."""
    if isinstance(trees[0], Tensor):
        return torch.cat(list(trees))
    if isinstance(trees[0], Mapping):
        return {key: join([tree[key] for tree in trees]) for key in trees[0]}
    return trees[0]


def num_rows(args: Sequence[Any], inputs: Mapping[str, Any]) -> int:
    """The batch's size; an input may have one row for all (position_ids).

    Args:
        args, inputs: what a model is given, by place and by name.

    Raises:
        ValueError: no tensor with a dimension.
    """
    values = (*args, *inputs.values())
    tensors = [value for value in values if isinstance(value, Tensor)]
    sizes = [len(tensor) for tensor in tensors if tensor.ndim]
    if not sizes:
        raise ValueError(
            "predict needs at least one input tensor, with a row per row [B, …]; got "
            + in_place_of(values)
        )
    return 0 if 0 in sizes else max(sizes)
