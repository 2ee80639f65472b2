"""ONNX graphs of `MultiExitModel.decide` at each exit, from named tensors to named tensors.

Names: the model's own inputs before the first exit; behind it `carry.…`, `memory.…` and
`state.…`, as they lie in these dicts; `policy.…` for the policy's numbers.

Letters: M exits, B batch rows, C classes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from multiexit import problems
from multiexit.model import exit_loop
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy, PerRow, numbers_of
from multiexit.policies.base import ROW
from multiexit.policies.per_row import Numbers
from multiexit.serving.onnx import knobs
from multiexit.serving.onnx.tracing import ANY, reason, trace
from multiexit.serving.onnx.trees import Tree, filled, flat, form
from multiexit_runner.sessions import graph_outputs
from multiexit_runner.user_line import user_level


class GraphFile(NamedTuple):
    """A graph that was written: the file's name, what it reads and what it gives, in order."""

    file: str
    inputs: list[str]
    outputs: list[str]


def write(
    model: MultiExitModel,
    policy: ExitPolicy,
    examples: Sequence[Mapping[str, Tensor]],
    folder: Path,
    notes: Callable[[str], None] = lambda note: None,
) -> tuple[list[GraphFile], Numbers]:
    """Write a graph for each exit, from the last to the first.

    What a graph leaves as it was is not among its outputs, and neither is what no later one
    reads.

    Args:
        model: in evaluation mode, on the CPU.
        policy: decides who stops.
        examples: two batches of other sizes; dimensions in which they differ can have any size.
        folder: for the files.
        notes: is told how far it is.

    Returns:
        The graphs in order, and the policy's numbers that are inputs of theirs.

    Raises:
        ValueError: a carry that can't cross from one graph to the next, or code that can't be
            traced.

    Warns:
        UserWarning: numbers that are none of the inputs, since the policy can't have one per row.
    """
    K = problems.classes_of_decision(model.problem, model.num_classes)
    every = numbers_of(policy)
    numbers = knobs.turnable(policy, every, K)
    try:
        written = _write(model, policy, numbers, examples, folder, notes)
    except ValueError:
        traceable = knobs.traceable(policy, numbers, K)
        if traceable == numbers:
            raise
        numbers = traceable
        written = _write(model, policy, numbers, examples, folder, notes)
    if fixed := ", ".join(name for name in every if name not in numbers):
        warnings.warn(
            f"{type(policy).__name__}'s {fixed} can't be turned in the export: its code doesn't "
            "work with a tensor [B] in place of the number, one for each row",
            stacklevel=user_level(),
        )
    return written


def _write(
    model: "MultiExitModel",
    policy: ExitPolicy,
    numbers: Numbers,
    examples: Sequence[Mapping[str, Tensor]],
    folder: Path,
    notes: Callable[[str], None],
) -> tuple[list[GraphFile], Numbers]:
    """`write`, with these numbers as inputs."""
    last = model.num_exits - 1
    befores = [[dict(example) for example in examples]]
    afters = []
    for exit in range(model.num_exits):
        with torch.no_grad():
            decisions = [_decide(model, policy, exit, tree, {}) for tree in befores[exit]]
        befores.append([_tree(decision) for decision in decisions])
        afters.append(_output_tensors(decisions[0]))
    graphs: list[GraphFile] = []
    needed: set[str] = set()
    for exit in reversed(range(model.num_exits)):
        before, other = befores[exit]
        _check_alike(exit, before, other)
        tensors, after = flat(before), afters[exit]
        new = {name for name in needed if after[name] is not tensors.get(name)}
        differs = after["answer"] is not after["logits"]
        is_output = {"logits": True, "answer": differs, "stop": exit < last}
        outputs = [name for name in after if is_output.get(name, name in new)]
        module = ExitModule(model, policy, exit, before, list(numbers), outputs)
        graph = _write_graph(module, tensors, flat(other), numbers, folder / f"exit-{exit}.onnx")
        graphs.insert(0, graph)
        notes(f"{len(graphs)} of {model.num_exits} graphs are traced")
        needed = (needed - new) | {name for name in graph.inputs if name in tensors}
    read = {name for graph in graphs for name in graph.inputs}
    return graphs, {field: numbers[field] for field in numbers if knobs.input_name(field) in read}


class ExitModule(nn.Module):
    """`MultiExitModel.decide` at one exit, from tensors to the tensors named.

    Args:
        model, policy, exit: as for `MultiExitModel.decide`.
        before: what it reads; all but tensors becomes part of the graph.
        fields: the policy's, whose numbers are read behind the tensors.
        outputs: names of what it gives.
    """

    def __init__(
        self,
        model: MultiExitModel,
        policy: ExitPolicy,
        exit: int,
        before: Tree,
        fields: Sequence[str],
        outputs: Sequence[str],
    ):
        super().__init__()
        self.model, self.policy, self.exit = model, policy, exit
        self.form = form(before)
        self.inputs = [*flat(before), *map(knobs.input_name, fields)]
        self.fields, self.outputs = list(fields), list(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(self.inputs, tensors, strict=True))
        numbers = {field: by_name[knobs.input_name(field)] for field in self.fields}
        before = filled(self.form, by_name)
        decision = _decide(self.model, self.policy, self.exit, before, numbers)
        outputs = _output_tensors(decision)
        return tuple(outputs[name] for name in self.outputs)


def _write_graph(
    module: ExitModule,
    tensors: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    numbers: Numbers,
    path: Path,
) -> GraphFile:
    """Trace an exit and write it, without the inputs that turn out to be unused."""
    shapes = [_dynamic_sizes(tensor.shape, other[name].shape) for name, tensor in tensors.items()]
    rows = len(next(iter(tensors.values())))
    examples = [*tensors.values(), *knobs.as_tensors(numbers, rows)]
    shapes += [{0: ANY}] * len(numbers)
    try:
        program = trace(module, examples, shapes, module.inputs, graph_outputs(module.outputs))
    except Exception as error:  # whatever a backbone's, head's or policy's code runs into
        raise ValueError(
            f"the segment of exit {module.exit} can't be exported: {reason(error)}. Code of "
            "backbone, head and policy must work on tensors of any batch size and number of "
            "tokens, without decisions in Python that depend on their values"
        ) from error
    graph = program.model.graph
    for value in list(graph.inputs):
        if not value.uses() and value not in graph.outputs:
            graph.inputs.remove(value)
    for node in graph:
        node.metadata_props.clear()  # paths of this machine
    program.save(path, external_data=False)
    return GraphFile(path.name, [str(value.name) for value in graph.inputs], module.outputs)


def _decide(
    model: MultiExitModel,
    policy: ExitPolicy,
    exit: int,
    before: Tree,
    numbers: Mapping[str, Tensor],
) -> exit_loop.Decision:
    """What happens at an exit, with these of the policy's numbers for each row."""
    own = knobs.row_state(numbers.keys(), numbers.values())
    policy = PerRow((policy,))
    if exit == 0:
        return model.decide(policy, 0, model.start((), before), {}, own)
    state = {**before["state"], **own}
    return model.decide(policy, exit, before["carry"], before["memory"], state)


def _tree(decision: exit_loop.Decision) -> Tree:
    """What the next exit reads, but for the numbers, which each graph reads for itself."""
    state = {name: value for name, value in decision.state.items() if not name.startswith(ROW)}
    return {"carry": decision.carry, "memory": decision.memory, "state": state}


def _output_tensors(decision: exit_loop.Decision) -> dict[str, Tensor]:
    answers = {"logits": decision.logits_BC, "answer": decision.answer_BC, "stop": decision.stop_B}
    return {**answers, **flat(_tree(decision))}


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


def _dynamic_sizes(one: Sequence[int], other: Sequence[int]) -> dict[int, object]:
    sizes = zip(one, other, strict=True)
    return {place: ANY for place, (a, b) in enumerate(sizes) if a != b}
