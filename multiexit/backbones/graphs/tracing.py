"""A network's forward as a graph of its layers, the same in training as in evaluation."""

import operator
from collections.abc import Callable, Mapping
from inspect import signature
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError
from torch.nn import functional

from multiexit.backbones.graphs.writes import (
    Unfollowed,
    Watch,
    attributes_kept,
    refuse_unread,
    state_refused,
)
from multiexit.backbones.one_input import needed_inputs
from multiexit.runtime import modes_kept

_DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


class Piece(fx.GraphModule):
    """A part of a graph as a module. What fails in it is raised, and not printed too."""

    def recompile(self) -> Any:
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # in place of the one that prints
        return code


class Trace(NamedTuple):
    """A forward's way with its one tensor, as a graph.

    Args:
        module: whose forward it is.
        graph: from its input to its output, in evaluation mode.
        extras: modules and tensors that the graph uses and the module has no name for.
        numbers: what some nodes stand for, whatever the input; None is how many rows it has.
    """

    module: nn.Module
    graph: fx.Graph
    extras: dict[str, Any]
    numbers: Mapping[fx.Node, Any] = MappingProxyType({})

    def target(self, node: fx.Node) -> Any:
        """The module, parameter or tensor that a node stands for."""
        name = str(node.target)
        return self.extras[name] if name in self.extras else operator.attrgetter(name)(self.module)

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The module that a node runs, if it runs one as a whole."""
        return self.target(node) if node.op == "call_module" else None

    def piece(self, begin: fx.Node, end: fx.Node) -> Piece:
        """The part between two nodes, behind the first, as a module that shares the layers.

        What doesn't depend on the input, such as a parameter, is worked out where it is used.
        """
        graph = fx.Graph()
        x = graph.placeholder(begin.name)
        rows = graph.create_node("call_method", "size", (x, 0), name="number_of_rows")
        numbers = {node: rows if n is None else n for node, n in self.numbers.items()}
        copies: dict[fx.Node, Any] = {begin: x, **numbers}

        def copy(node: fx.Node) -> None:
            for source in node.all_input_nodes:
                if source not in copies:
                    copy(source)
            copies[node] = graph.node_copy(node, lambda n: copies[n])

        nodes, varying = list(self.graph.nodes), self.varying()
        for node in nodes[nodes.index(begin) + 1 : nodes.index(end) + 1]:
            if node in varying:
                copy(node)
        graph.output(copies[end])
        if not rows.users:
            graph.erase_node(rows)
        used = {str(n.target): self.target(n) for n in graph.nodes if n.op in _NAMED}
        piece = Piece(used, graph)  # type: ignore[arg-type]
        own = set(self.module.modules())
        for m in piece.modules():
            if m not in own:
                m.training = self.module.training
        return piece

    def varying(self) -> set[fx.Node]:
        """The nodes that depend on the input."""
        varying: set[fx.Node] = set()
        for node in self.graph.nodes:
            depends = node is self.input or not varying.isdisjoint(node.all_input_nodes)
            if depends and node not in self.numbers:
                varying.add(node)
        return varying

    def reads_tokens(self) -> bool:
        """Whether an embedding reads the input, which is then whole numbers."""
        readers = [self.layer(node) or node.target for node in self.input.users]
        return any(isinstance(r, nn.Embedding) or r is functional.embedding for r in readers)

    def rows(self) -> set[fx.Node]:
        """The nodes that read the first size of a tensor."""
        return {node for node in self.varying() if _is_first_size(node)}

    @property
    def input(self) -> fx.Node:
        """The node of the one tensor that comes in."""
        return next(iter(self.graph.nodes))

    @property
    def output(self) -> fx.Node:
        """The node of what comes out, before layers that do nothing."""
        node: Any = next(iter(reversed(self.graph.nodes))).args[0]
        while isinstance(self.layer(node), nn.Identity):
            (node,) = node.all_input_nodes
        return node


def _is_first_size(node: fx.Node) -> bool:
    if node.target == "size":
        return node.args[1:] == (0,)
    sizes = node.args[0] if node.target is operator.getitem else None
    if not isinstance(sizes, fx.Node) or node.args[1] != 0:
        return False
    is_shape = sizes.target is getattr and "shape" in sizes.args
    return is_shape or (sizes.target == "size" and len(sizes.args) == 1)


_NAMED = ("get_attr", "call_module")


def follow(module: nn.Module) -> Trace:
    """Follow a forward with one tensor through all modules that have parts of their own.

    Modules without parts are taken whole, and so are those whose forward can't be followed (it
    asks how large its input is) or differs in training: what they do then they go on doing.

    Raises:
        ValueError: a forward that itself can't be followed, differs in training, or gives more than
            one tensor.
    """
    whole: set[type[nn.Module]] = set()
    while True:
        traces = [_trace(module, training, whole) for training in (False, True)]
        culprits = [outcome for outcome in traces if not isinstance(outcome, Trace)]
        if not culprits:
            evaluated, trained = traces
            assert isinstance(evaluated, Trace)
            assert isinstance(trained, Trace)
            _check_output(evaluated)
            node = _first_difference(evaluated.graph, trained.graph)
            if node is None:
                return evaluated
            owners = around(node)
            if not owners:
                raise ValueError(
                    f"it does something else in training than in evaluation: {node.format_node()}"
                )
            culprits = [owners[-1][1]]
        whole.update(culprits)


def _trace(
    module: nn.Module, training: bool, whole: set[type[nn.Module]]
) -> Trace | type[nn.Module]:
    """A trace in one mode; the class of the innermost module that couldn't be followed, if any."""
    tracer = _Tracer(module, whole)
    parameters = list(signature(module.forward).parameters.values())
    defaults = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
    if needed_inputs(module) != [parameter.name for parameter in parameters[:1]]:
        raise ValueError(f"its forward takes {', '.join(map(str, parameters))}, not one tensor")
    with (
        attributes_kept(module),
        modes_kept(module),
        mock.patch.object(nn.TransformerEncoder, "forward", _run_layers),
    ):
        module.train(training)
        names, buffers = set(vars(module)), set(module._buffers)
        try:
            with tracer.watch, state_refused(module):
                graph = tracer.trace(module, defaults)
        except Exception as error:  # whatever a forward says to a tensor without values
            if tracer.culprit is None:
                if isinstance(error, Unfollowed):
                    raise
                why, *_ = str(error).split(". ") if isinstance(error, TraceError) else [error]
                raise ValueError(f"its forward can't be followed: {why}") from error
            return tracer.culprit
        # Tensors that the forward makes are put into the module.
        extras = {name: vars(module)[name] for name in set(vars(module)) - names}
        extras |= {name: module._buffers[name] for name in set(module._buffers) - buffers}
    traced = Trace(module, graph, extras)
    for node in graph.nodes:
        try:
            refuse_unread(node, traced.layer(node))
        except Unfollowed:
            if not (owners := around(node)):
                raise
            return owners[-1][1]
    _name_dropouts(traced, training)
    return traced


def _run_layers(
    encoder: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """What torch's encoder computes, without what it asks of its input's values for speed."""
    for layer in encoder.layers:
        src = layer(src, mask, src_key_padding_mask, bool(is_causal))
    return src if encoder.norm is None else encoder.norm(src)


def _check_output(traced: Trace) -> None:
    (output,) = next(iter(reversed(traced.graph.nodes))).args
    kind, entry = type(output), "[0]"
    match output:
        case fx.Node(target=type() as kind):  # a dataclass or a tuple with names
            entry = f".{next(iter(output.kwargs))}" if output.kwargs else entry
        case fx.Node():
            return
        case dict():
            entry = f"[{next(iter(output), 0)!r}]"
        case None:
            raise ValueError("its forward gives nothing")
    raise Unfollowed(
        f"its forward gives no single tensor but {kind.__name__.removeprefix('immutable_')}",
        "What works: wrap a module of your own that holds this one as self.net and gives one of "
        f"its tensors, return self.net(x){entry}",
    )


class _Proxy(fx.Proxy):
    def __len__(self) -> int:
        raise Unfollowed("its forward asks for len(x)", "What works: x.shape[0] in its place")


class _Tracer(fx.Tracer):
    """Goes into modules with parts, but for some classes."""

    def __init__(self, module: nn.Module, whole: set[type[nn.Module]]):
        super().__init__(param_shapes_constant=True)
        self.watch = Watch(module)
        self.whole = whole
        self.culprit: type[nn.Module] | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in self.whole or next(m.children(), None) is None:
            return True
        is_torchs = super().is_leaf_module(m, module_qualified_name)
        return is_torchs and not isinstance(m, nn.TransformerEncoder)

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], *rest: Any, **options: Any
    ) -> fx.Node:
        if kind in ("call_function", "call_method"):
            self.watch.check(target, args)
        return super().create_node(kind, target, args, *rest, **options)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            with state_refused(m):
                return super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self.is_leaf_module(m, ""):
                self.culprit = self.culprit or type(m)
            raise


def _name_dropouts(traced: Trace, training: bool) -> None:
    """`F.dropout(x, p, training=self.training)` becomes a module, which knows its own mode."""
    for node in traced.graph.nodes:
        kind = _DROPOUTS.get(node.target)
        if kind is None:
            continue
        call = signature(node.target).bind(*node.args, **node.kwargs)
        call.apply_defaults()
        if call.arguments["training"] is training:
            node.op, node.target = "call_module", node.name
            traced.extras[node.name] = kind(call.arguments["p"], call.arguments["inplace"])
            node.args, node.kwargs = (call.arguments["input"],), {}


def _first_difference(evaluated: fx.Graph, trained: fx.Graph) -> fx.Node | None:
    """The first node of one graph that the other hasn't, but for what is returned."""
    numbers: dict[Any, int] = {}

    def numbered(graph: fx.Graph) -> dict[fx.Node, int]:
        number_of: dict[fx.Node, int] = {}
        for node in graph.nodes:
            arguments = map_arg((node.args, node.kwargs), lambda n: f"%{number_of[n]}")
            key = (node.op, node.target, repr(arguments))
            number_of[node] = numbers.setdefault(key, len(numbers))
        return number_of

    there = set(numbered(trained).values())
    for node, number in numbered(evaluated).items():
        if node.op != "output" and number not in there:
            return node
    return None


def around(node: fx.Node) -> list[tuple[str, type[nn.Module]]]:
    """The modules whose forwards a node is part of, from the outside in: call's name, class."""
    stack: dict[str, tuple[str, type]] = node.meta.get("nn_module_stack") or {}
    return [(call, kind) for call, (name, kind) in stack.items() if name != node.target]
