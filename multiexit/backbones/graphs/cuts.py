"""Any network that takes one tensor, cut where a single tensor is alive and a block ends.

`torch.fx` follows the network's forward. Wherever one tensor alone leads from what has run to what
is to come, the graph can be cut; the pieces are stages. Of these places those are taken that lie in
the fewest modules (the end of a block lies in none of the block's), as deep as it takes for a few
stages that are alike in compute.

Letters: B batch rows, K classes.
"""

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from multiexit.backbones.classifier import NetworkHead
from multiexit.backbones.graphs import cut_places
from multiexit.backbones.graphs.tracing import Trace, follow
from multiexit.backbones.graphs.writes import Unfollowed
from multiexit.backbones.running import like_parameters, random_rows
from multiexit.backbones.sequential import SequentialBackbone
from multiexit.backbones.verify import check_rows, mismatch
from multiexit.runtime import evaluating


class FixedSize(nn.Module):
    """The input, if its rows are of the one size that a network was cut for."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"rows of shape {tuple(x.shape[1:])} for a network cut for {self.shape}: wrap it "
                "with input_shape= of such a row"
            )
        return x


def from_module(
    module: nn.Module,
    example: Tensor,
    layout: str | Sequence[str] | None = None,
    spec: dict[str, Any] | None = None,
) -> SequentialBackbone:
    """Cut a network into stages; what comes behind the last one is its own head.

    Args:
        module: takes one tensor and gives one.
        example: one input row.
        layout: of the features; None where the layers tell it.
        spec: by which the network is made again; where it is cut is put in.

    Raises:
        ValueError: a forward that can't be followed or is another one in training, fewer than two
            places to cut, pieces that compute something else; each with what would work.
    """
    try:
        traced = follow(module)
        example = example.long() if traced.reads_tokens() else example
        traced, nodes = cut_places.chosen(traced, like_parameters(example, module))
        _check_pieces(traced, nodes, example)
    except Exception as error:  # whatever a network says to what follows it
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = f"no {reason} in its graph" if isinstance(error, KeyError) else reason
        children = [name for name, _ in module.named_children()]
        works = (
            "What works: name parts that run one after another, multiexit.wrap(model, stem=[…], "
            f"stages=[…]), of {children} or parts of these"
            if children
            else "It has no parts that could be stages: wrap the network that it belongs to, or "
            "make each of its layers a module"
        )
        works = error.works if isinstance(error, Unfollowed) else works
        raise ValueError(
            f"can't cut this {type(module).__name__} into stages by itself: {reason}. {works}; or "
            "an adapter, @multiexit.wrap.register(YourClass)"
        ) from error
    if spec is not None:
        spec = {**spec, "cuts": [node.name for node in nodes]}
        spec |= {} if layout is None else {"layout": layout}
    backbone = _backbone(traced, nodes, example, layout, spec)
    check_rows(backbone.features, backbone, example, backbone.classifier)
    return backbone


def stage(
    module: nn.Module,
    example: Tensor,
    layout: str | Sequence[str] | None,
    spec: dict[str, Any],
) -> SequentialBackbone:
    """Cut a network where its spec says, but compare nothing.

    Args:
        module, example, layout, spec: as for `from_module`; the spec is that of what it gave.

    Raises:
        ValueError: a spec that doesn't say where, or a place where the network can't be cut.
    """
    if "cuts" not in spec:
        raise ValueError(f"it isn't said how this {type(module).__name__} is cut into stages")
    traced, nodes = cut_places.named(follow(module), spec["cuts"], like_parameters(example, module))
    return _backbone(traced, nodes, example, layout, spec)


def _backbone(
    traced: Trace,
    nodes: Sequence[fx.Node],
    example: Tensor,
    layout: str | Sequence[str] | None,
    spec: dict[str, Any] | None,
) -> SequentialBackbone:
    has_sizes = any(number is not None for number in traced.numbers.values())
    rest = traced.piece(nodes[-1], traced.output)
    return SequentialBackbone(
        FixedSize(example.shape[1:]) if has_sizes else nn.Identity(),
        [traced.piece(a, b) for a, b in pairwise([traced.input, *nodes])],
        example,
        pool="first" if any(map(_is_first_token, rest.graph.nodes)) else "mean",
        spec=spec,
        classifier=_classifier(traced, nodes[-1], rest, example),
        layout=layout,
    )


def _is_first_token(node: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[1:] == ((slice(None), 0),)


def _classifier(
    traced: Trace, last: fx.Node, rest: nn.Module, example: Tensor
) -> NetworkHead | None:
    """The network's own head, which lies behind the last cut, if it classifies."""
    linear = traced.layer(traced.output)
    if isinstance(linear, nn.Linear):
        (read,) = traced.output.all_input_nodes
        return NetworkHead(linear, linear.out_features, traced.piece(last, read))
    if all(p.ndim < 2 for p in rest.parameters()):
        return None
    with evaluating(traced.module), torch.no_grad():
        logits_BK = traced.module(like_parameters(example, traced.module))
    return NetworkHead(rest, logits_BK.shape[1], nn.Identity()) if logits_BK.ndim == 2 else None


def _check_pieces(traced: Trace, nodes: Sequence[fx.Node], example: Tensor) -> None:
    """Refuse pieces that, one after another, give something else than the network's own forward."""
    pieces = nn.Sequential(
        *(traced.piece(a, b) for a, b in pairwise([traced.input, *nodes, traced.output]))
    )
    with evaluating(traced.module, pieces), torch.no_grad():
        for rows in (2, 1):
            x = random_rows(example, traced.module, rows)
            gap = mismatch(pieces(x.clone()), traced.module(x.clone()), 1e-5)
            if gap:
                raise ValueError(f"its pieces give something else than its own forward: {gap}")
