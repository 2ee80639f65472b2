"""Places where a network's graph can be cut into stages, and which of them are taken.

Letters: B batch rows.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise, takewhile
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from multiexit.backbones.graphs.tracing import Trace, around
from multiexit.backbones.running import random_rows
from multiexit.runtime import countable, evaluating

ENOUGH = 8
"""Stages; no deeper cuts are looked for once there are as many."""


class Cut(NamedTuple):
    """A place where a graph can be cut.

    Args:
        node: whose tensor alone is alive behind it.
        modules: how many modules the cut goes through.
        work: compute up to here.
        layers: how many layers computed that.
        shape: of the tensor, without the batch.
    """

    node: fx.Node
    modules: int
    work: float
    layers: int
    shape: tuple[int, ...]

    @property
    def is_vector(self) -> bool:
        return len(self.shape) == 1 or (len(self.shape) == 2 and self.shape[0] == 1)  # [B, 1, H]

    @property
    def has_positions(self) -> bool:
        return sum(size > 1 for size in self.shape) > 1


def _alone(traced: Trace) -> list[fx.Node]:
    """The nodes behind which theirs is the only tensor or number alive."""
    varying = traced.varying()
    last_use = {source: node for node in traced.graph.nodes for source in node.all_input_nodes}
    alive: set[fx.Node] = {traced.input}
    alone = []
    for node in traced.graph.nodes:
        alive -= {source for source in node.all_input_nodes if last_use[source] is node}
        if node in varying and node in last_use:
            alive.add(node)
        if alive == {node} and node is not traced.input:
            alone.append(node)
    return alone


def _long_alive(traced: Trace) -> list[fx.Node]:
    """The nodes whose tensors are in use through more than a quarter of the network."""
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    last_use = {source: order[node] for node in order for source in node.all_input_nodes}
    alive = [node for node in order if node in traced.varying() and node in last_use]
    return [node for node in alive if last_use[node] - order[node] > len(order) / 4]


def named(traced: Trace, names: Sequence[str], example: Tensor) -> tuple[Trace, list[fx.Node]]:
    """The nodes of these names, in order, to cut behind.

    Args:
        traced: the network's trace.
        names: as they were when they were chosen.
        example: one input row.

    Returns:
        The trace, with numbers where they were taken for known then; and the nodes.

    Raises:
        ValueError: one behind which the graph can't be cut.
    """
    missing = list(names)
    for variant in _variants(traced, example):
        alone = {node.name: node for node in _alone(variant)}
        missing = [name for name in names if name not in alone]
        if not missing and names and [name for name in alone if name in names] == list(names):
            return variant, [alone[name] for name in names]
    raise ValueError(f"it can't be cut behind {missing or list(names)}, as it is described")


def chosen(traced: Trace, example: Tensor) -> tuple[Trace, list[fx.Node]]:
    """The nodes to cut behind.

    Args:
        traced: the network's trace.
        example: one input row.

    Returns:
        The trace, with numbers taken for known if need be; and the nodes.

    Raises:
        ValueError: fewer than two places, or none in the second half.
    """
    cuts: list[Cut] = []
    total, places = 1.0, 0
    for variant in _variants(traced, example):
        num_alone = len(_alone(variant))
        if num_alone > places:
            try:
                more, total = _stages(variant, example)
            except ValueError:
                if variant is traced:
                    raise
                continue  # a first size that wasn't the number of rows
            cuts, places = max(cuts, more, key=len), num_alone
        if len(cuts) >= ENOUGH:
            break
    if len(cuts) < 2:
        beside = ", ".join(node.name for node in _long_alive(traced))
        raise ValueError(
            "in fewer than two places one tensor alone leads to the next block"
            + (f", while {beside} is in use beside it (a mask?)" if beside else "")
        )
    share = cuts[-1].work / total
    if share < 1 / 2:
        raise ValueError(
            f"where one tensor alone leads to the next block for the last time, {share:.0%} of the "
            "compute is done"
        )
    return named(traced, [cut.node.name for cut in cuts], example)


def _variants(traced: Trace, example: Tensor) -> Iterator[Trace]:
    """The trace, and the same with numbers known that else stand in the way of cuts.

    Numbers that are read from a tensor and used in a later block are alive as a tensor is. First
    the number of rows is known, which any tensor tells; then the sizes that the example has.
    """
    yield traced
    yield traced._replace(numbers=dict.fromkeys(traced.rows()))
    few, more = (_run(traced, random_rows(example, traced.module, rows)).numbers for rows in (2, 3))
    nodes = {node.name: node for node in traced.graph.nodes}
    numbers = {
        nodes[name]: None if (number, more[name]) == (2, 3) else number
        for name, number in few.items()
        if more.get(name) in (number, 3 if number == 2 else number)
    }
    yield traced._replace(numbers=numbers)


def _stages(traced: Trace, example: Tensor) -> tuple[list[Cut], float]:
    """Where the stages end, and the compute of the whole network."""
    cuts, layers, total = _measured(traced, random_rows(example, traced.module, 2))
    return _spread(_trunk(traced, cuts, layers)), total


class _Meter(fx.Interpreter):
    """Runs a graph and notes, of each node, the compute so far; of some also what they gave."""

    def __init__(self, traced: Trace, kept: Collection[fx.Node] = ()):
        super().__init__(traced.piece(traced.input, traced.output))
        self.kept = {node.name for node in kept}
        self.work: dict[str, float] = {}
        self.layers: set[str] = set()
        self.results: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self.numbers: dict[str, Any] = {}
        self.counter = FlopCounterMode(display=False)

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        self.work[n.name] = self.counter.get_total_flops()
        if self.work[n.name] > before:
            self.layers.add(n.name)
        if n.name in self.kept and isinstance(result, Tensor):
            self.results[n.name], self.versions[n.name] = result, result._version
        if isinstance(result, int | float):
            self.numbers[n.name] = result
        elif isinstance(result, tuple | list) and all(isinstance(size, int) for size in result):
            self.numbers[n.name] = list(result) if isinstance(result, list) else tuple(result)
        return result


def _run(traced: Trace, x: Tensor, kept: Collection[fx.Node] = ()) -> _Meter:
    meter = _Meter(traced, kept)
    with evaluating(traced.module), torch.no_grad(), meter.counter, countable():
        traced.module.requires_grad_(False)  # the counter trips over the gradients of expanded ones
        try:
            meter.run(x)
        except Exception as error:  # whatever a network says to an input that it doesn't take
            what, _, _ = str(error).partition("\n")  # then comes a piece of the graph
            raise ValueError(
                f"it doesn't run on an input of shape {tuple(x.shape)}: {what}. Pass input_shape=, "
                "the shape of one row"
            ) from error
    return meter


def _measured(traced: Trace, x: Tensor) -> tuple[list[Cut], list[fx.Node], float]:
    """Places for cuts, the nodes that compute, and the compute of all."""
    alone = _alone(traced)
    meter = _run(traced, x, alone)
    layers = [node for node in traced.graph.nodes if node.name in meter.layers]
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    cuts = []
    for node in alone:
        result = meter.results.get(node.name)
        if result is None or result.ndim < 2 or len(result) != len(x):
            continue
        if result._version > meter.versions[node.name]:
            continue  # a later layer writes over it: an exit would read something else
        before = sum(_count(traced, layer) for layer in layers if order[layer] <= order[node])
        shape = tuple(result.shape[1:])
        cuts.append(Cut(node, _modules(node), meter.work[node.name], before, shape))
    return cuts, layers, max(meter.work.values())


def _count(traced: Trace, node: fx.Node) -> int:
    """The number of layers in a node that computes."""
    module = traced.layer(node)
    parts = [] if module is None else module.modules()
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in parts) or 1


def _modules(node: fx.Node) -> int:
    """The number of modules that run both at a node and behind it."""
    both = zip(around(node), around(node.next), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))


_CLOSING = (
    *("mul", "truediv", "div", "add", "sub", "softmax", "log_softmax", "sigmoid"),
    *("Softmax", "LogSoftmax", "Sigmoid", "Identity", "Flatten", "squeeze", "flatten"),
)
"""What may follow a head's last linear layer: scales, probabilities, another shape."""


def _last_linear(traced: Trace) -> fx.Node | None:
    """The linear layer that gives the answer, as it is or but for what `_CLOSING` names."""
    node, varying = traced.output, traced.varying()
    while not isinstance(layer := traced.layer(node), nn.Linear):
        what = node.target if layer is None else type(layer)
        sources = [source for source in node.all_input_nodes if source in varying]
        if getattr(what, "__name__", what) not in _CLOSING or len(sources) != 1:
            return None
        (node,) = sources
    return node


def _trunk(traced: Trace, cuts: list[Cut], layers: list[fx.Node]) -> list[Cut]:
    """Cuts before the network's head: its last linear layer, and the pooling to a vector.

    A module that pools, and has one layer before that at most, is the head's as a whole.
    """
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    end = len(order)
    if (linear := _last_linear(traced)) is not None:
        end = order[linear]
    for before, after in pairwise(cuts):
        if before.has_positions and not after.has_positions and before.work == after.work:
            end = min(end, order[before.node] + 1)
            inside = around(after.node)
            if inside:
                first = next(n for n in order if inside[-1] in around(n))
                own = [n for n in layers if order[first] <= order[n] < order[after.node]]
                if len(own) <= 1 and any(order[c.node] < order[first] for c in cuts):
                    end = min(end, order[first])
            break
    trunk = [cut for cut in cuts if order[cut.node] < end]
    return [cut for cut in trunk if not cut.is_vector] or trunk


# Which cuts are taken


def _spread(cuts: list[Cut]) -> list[Cut]:
    """Those in the fewest modules that are enough, or nearly as many as there can be."""
    cuts = [cut for cut in cuts if cut.work]
    levels = [_at_level(cuts, level) for level in sorted({cut.modules for cut in cuts})]
    chosen = [_apart(level) for level in levels]
    enough = min(ENOUGH, 0.8 * max(map(len, chosen), default=0))
    return next((level for level in chosen if len(level) >= enough), [])


def _at_level(cuts: list[Cut], level: int) -> list[Cut]:
    """Cuts through so many modules at most, one between two layers.

    It is in the fewest modules, and the latest of these before the shape changes (by a pooling).
    """
    best: dict[float, Cut] = {}
    for cut in cuts:
        if cut.modules <= level:
            other = best.get(cut.work, cut)
            if (-cut.modules, cut.shape == other.shape) >= (-other.modules, True):
                best[cut.work] = cut
    return list(best.values())


def _apart(cuts: list[Cut]) -> list[Cut]:
    """Cuts without those close behind another; the last one stays, in place of the one before.

    From one to the next there is a third of the median compute, and more than half of the median
    number of layers: a stem of one layer is no stage, and a layer between two blocks goes with the
    second.
    """
    least_work = median(_growth([cut.work for cut in cuts])) / 3
    fewest_layers = median(_growth([cut.layers for cut in cuts])) / 2
    kept: list[Cut] = []
    work, layers = 0.0, 0
    for cut in cuts:
        if cut.work - work >= least_work and cut.layers - layers > fewest_layers:
            kept.append(cut)
            work, layers = cut.work, cut.layers
    return [*kept[:-1], cuts[-1]]


def _growth(values: Sequence[float]) -> list[float]:
    return [b - a for a, b in pairwise([0, *values])]
