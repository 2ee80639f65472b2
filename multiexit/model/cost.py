"""The cost of exits: layers, parameters, multiply-accumulates.

Letters: M exits, B batch rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multiexit.backbones.base import Backbone
from multiexit.model.heads import Memory, ask
from multiexit.runtime import countable, evaluating

Shape = Sequence[int]


@dataclass(frozen=True)
class Cost:
    """Cumulated cost of leaving at each exit, of one input row.

    Args:
        layers_M: stages run.
        macs_M: multiply-accumulates of the trunk so far and of *every* head up to this exit,
            since each is run to decide.
        params_M: parameters of the trunk so far and these heads; shared ones count once.
        full_macs: of the same network with its last head alone, what a speed-up compares with.

    Example:
        Two layers of 4·8 and 8·8 MACs, and a head of 8·2 on each:

        >>> import torch, multiexit as mx
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> mx.MultiExitModel(backbone, num_classes=2).cost()
        Cost(layers_M=(1, 2), macs_M=(48, 128), params_M=(58, 148), full_macs=112)
    """

    layers_M: tuple[int, ...]
    macs_M: tuple[int, ...]
    params_M: tuple[int, ...]
    full_macs: int

    @property
    def shares_M(self) -> tuple[float, ...]:
        """C_m, the share of the network's compute that is done at each exit, in 0..1."""
        return tuple(macs / self.macs_M[-1] for macs in self.macs_M)


def count(
    backbone: Backbone,
    heads: nn.ModuleList,
    exits: tuple[int, ...],
    inputs: dict[str, Tensor] | None = None,
) -> Cost:
    """Count layers, MACs and parameters at each exit, by running one row.

    Args:
        backbone, heads, exits: as a `MultiExitModel` holds them.
        inputs: one input row by name; the backbone's own example by default (128 tokens).

    Returns:
        The cumulated cost at each exit, of one row.
    """
    inputs = backbone.example_inputs() if inputs is None else inputs
    layers, macs, params = [], [], []
    sizes: dict[int, int] = {}
    full = 0
    with _at_rest(backbone, heads):
        carry, trunk = _macs(lambda: backbone.start(**inputs))
        staged = {
            id(p) for s in range(backbone.num_stages) for p in backbone.stage_module(s).parameters()
        }
        sizes.update({id(p): p.numel() for p in backbone.parameters() if id(p) not in staged})
        head_macs, next_stage = 0, 0
        memory: Memory = {}
        for exit, head in zip(exits, heads, strict=True):
            feature: Any = None
            for stage in range(next_stage, exit + 1):
                (carry, feature), spent = _macs(lambda c=carry, i=stage: backbone.stage(c, i))
                trunk += spent
                _add_sizes(backbone.stage_module(stage), sizes)
            next_stage = exit + 1
            valid_BT = carry.get("valid_BT")
            (_, memory), spent = _macs(
                lambda h=head, f=feature, v=valid_BT, m=memory: ask(h, f, v, m)
            )
            head_macs += spent
            _add_sizes(head, sizes)
            layers.append(exit + 1)
            macs.append(trunk + head_macs)
            params.append(sum(sizes.values()))
            full = trunk + spent
    return Cost(tuple(layers), tuple(macs), tuple(params), full)


def stage_shares(backbone: Backbone) -> list[float]:
    """Share of the trunk's MACs that is done after each stage, in 0..1, one number each."""
    with _at_rest(backbone):
        carry, total = _macs(lambda: backbone.start(**backbone.example_inputs()))
        so_far = []
        for stage in range(backbone.num_stages):
            (carry, _), spent = _macs(lambda c=carry, i=stage: backbone.stage(c, i))
            total += spent
            so_far.append(total)
    return [macs / total for macs in so_far]


def _grouped(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Of experts: each row of x [S, K] times one of weight [E, K, N]."""
    return 2 * prod(x) * weight[-1]


def _recurrent(x: Shape, *rest: Any, **_: Any) -> int:
    """Of an LSTM or its like: x [T, B, K], and each matrix once for each of T·B vectors."""
    weights = rest[0] if isinstance(rest[0], list) else rest[:2]
    return 2 * prod(x[:2]) * sum(prod(weight) for weight in weights if len(weight) == 2)


UNKNOWN_TO_TORCH = {
    torch.ops.aten._grouped_mm: _grouped,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten._cudnn_rnn: _recurrent,
}
"""Operators that torch's counter takes for nothing → their FLOPs, by what shapes they get."""


@contextmanager
def _at_rest(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no parameter that is trained.

    torch's counter puts hooks on the gradients of what modules are given, which fails for a part of
    a parameter, as DeBERTa's positions are.
    """
    with evaluating(*modules):
        for module in modules:
            module.requires_grad_(False)
        yield


def _macs(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run and count.

    In inference mode torch's counter loses its way among weights that are computed from others.
    """
    counter = FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH)
    with torch.inference_mode(False), torch.no_grad(), counter, countable():
        result = run()
    return result, counter.get_total_flops() // 2


def _add_sizes(module: nn.Module, sizes: dict[int, int]) -> None:
    sizes.update({id(p): p.numel() for p in module.parameters()})
