"""What `MultiExitModel.decide` does at an exit, as ONNX graphs from named tensors to named tensors.

Names: the model's own inputs before the first exit; behind it `carry.…`, `memory.…` and
`state.…`, as they lie in these dicts; `policy.…` for the policy's numbers.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.model import exit_loop
from multiexit.policies import ExitPolicy
from multiexit.serving.onnx import knobs
from multiexit.serving.onnx.knobs import Knobs
from multiexit.serving.onnx.tracing import ANY, trace
from multiexit.serving.onnx.trees import Tree, filled, flat, form

if TYPE_CHECKING:
    from multiexit.model.model import MultiExitModel


OWN = ("logits", "answer", "stop")
"""What a graph says of its rows; its other outputs are for the graphs behind it."""


class Segment(NamedTuple):
    """A graph that was written: the file's name, what it reads and what it gives, in order."""

    file: str
    inputs: list[str]
    outputs: list[str]


def write(
    model: "MultiExitModel",
    policy: ExitPolicy,
    examples: Sequence[Mapping[str, Tensor]],
    folder: Path,
) -> tuple[list[Segment], Knobs]:
    """Write a graph for each exit, from the last to the first.

    What a segment leaves as it was is not among its outputs, and neither is what no later one
    reads.

    Args:
        model: in evaluation mode, on the CPU.
        policy: decides who stops.
        examples: two batches of other sizes; dimensions in which they differ can have any size.
        folder: for the files.

    Returns:
        The segments in order, and the policy's numbers that are inputs of theirs.

    Raises:
        ValueError: a carry that can't cross from one graph to the next, or code that can't be
            traced.
    """
    last = model.num_exits - 1
    befores = [[dict(example) for example in examples]]
    afters = []
    for exit in range(model.num_exits):
        with torch.no_grad():
            decisions = [_decide(model, policy, exit, tree) for tree in befores[exit]]
        befores.append([_tree(decision) for decision in decisions])
        afters.append(_named(decisions[0]))
    numbers = knobs.of(policy, model.num_classes)
    segments: list[Segment] = []
    needed: set[str] = set()
    for exit in reversed(range(model.num_exits)):
        before, other = befores[exit]
        _check_alike(exit, before, other)
        given, after = flat(before), afters[exit]
        new = {name for name in needed if after[name] is not given.get(name)}
        own = {
            "logits": True,
            "answer": after["answer"] is not after["logits"],
            "stop": exit < last,
        }
        outputs = [name for name in after if own.get(name, name in new)]
        step = Step(model, policy, exit, before, list(numbers), outputs)
        segment = _write(step, given, flat(other), numbers, folder / f"exit-{exit}.onnx")
        segments.insert(0, segment)
        needed = (needed - new) | {name for name in segment.inputs if name in given}
    read = {name for segment in segments for name in segment.inputs}
    return segments, {field: numbers[field] for field in numbers if knobs.name(field) in read}


class Step(nn.Module):
    """`MultiExitModel.decide` at one exit, from tensors to the tensors named.

    Args:
        model, policy, exit: as for `MultiExitModel.decide`.
        before: what it reads; all but tensors becomes part of the graph.
        fields: the policy's, whose numbers are read behind the tensors.
        outputs: names of what it gives.
    """

    def __init__(
        self,
        model: "MultiExitModel",
        policy: ExitPolicy,
        exit: int,
        before: Tree,
        fields: Sequence[str],
        outputs: Sequence[str],
    ):
        super().__init__()
        self.model, self.policy, self.exit = model, policy, exit
        self.form = form(before)
        self.inputs = [*flat(before), *map(knobs.name, fields)]
        self.fields, self.outputs = list(fields), list(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, tensors, strict=True))
        numbers = {field: given[knobs.name(field)] for field in self.fields}
        policy = knobs.turned(self.policy, numbers)
        named = _named(_decide(self.model, policy, self.exit, filled(self.form, given)))
        return tuple(named[name] for name in self.outputs)


def _write(
    step: Step,
    given: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    numbers: Knobs,
    path: Path,
) -> Segment:
    """Trace a step and write it, without the inputs that turn out to be unused."""
    shapes = [_dynamic(tensor.shape, other[name].shape) for name, tensor in given.items()]
    examples = [*given.values(), *knobs.as_tensors(numbers)]
    shapes += [{}] * len(numbers)
    try:
        # A graph's outputs can't be called as its inputs are.
        outputs = [name if name in OWN else f"next.{name}" for name in step.outputs]
        program = trace(step, examples, shapes, step.inputs, outputs)
    except Exception as error:  # whatever a backbone's, head's or policy's code runs into
        raise ValueError(
            f"the segment of exit {step.exit} can't be traced: {error}\nThe code of backbone, head "
            "and policy must work on tensors of any batch size, without decisions in Python that "
            "depend on their values"
        ) from error
    graph = program.model.graph
    for value in list(graph.inputs):
        if not value.uses() and value not in graph.outputs:
            graph.inputs.remove(value)
    for node in graph:
        node.metadata_props.clear()  # paths of this machine
    program.save(path, external_data=False)
    return Segment(path.name, [str(value.name) for value in graph.inputs], step.outputs)


def _decide(
    model: "MultiExitModel", policy: ExitPolicy, exit: int, before: Tree
) -> exit_loop.Decision:
    if exit == 0:
        return model.decide(policy, 0, model.backbone.start(**before), {}, {})
    return model.decide(policy, exit, before["carry"], before["memory"], before["state"])


def _tree(decision: exit_loop.Decision) -> Tree:
    return {"carry": decision.carry, "memory": decision.memory, "state": decision.state}


def _named(decision: exit_loop.Decision) -> dict[str, Tensor]:
    own = {"logits": decision.logits_BC, "answer": decision.answer_BC, "stop": decision.stop_B}
    return {**own, **flat(_tree(decision))}


def _check_alike(exit: int, one: Tree, other: Tree) -> None:
    """Refuse what differs between batches and is no tensor with a row per row."""
    if form(one) != form(other):
        raise ValueError(
            f"what the segment of exit {exit} reads depends on the batch: {form(one)} in one, "
            f"{form(other)} in another; a carry's numbers must be tensors, or always the same"
        )
    for name, tensor in flat(one).items():
        if not tensor.ndim or len(tensor) == len(flat(other)[name]):
            raise ValueError(f"{name} at exit {exit}: {tuple(tensor.shape)} has no row per row")


def _dynamic(one: Sequence[int], other: Sequence[int]) -> dict[int, object]:
    sizes = zip(one, other, strict=True)
    return {place: ANY for place, (a, b) in enumerate(sizes) if a != b}
