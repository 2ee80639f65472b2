"""A network's chain of layers, and what it calls them with, found in runs of its own forward.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.backbones.layers import forward_calls, plans
from multiexit.backbones.layers.forward_calls import Call, LayerChain
from multiexit.backbones.layers.plans import GIVES, Kind, Path
from multiexit.backbones.layers.shell import Given, feature_of, make_shell, record, result_at
from multiexit.files.unreadable import one_line
from multiexit.runtime import evaluating


class Batch(NamedTuple):
    """Inputs that a network is tried on.

    Args:
        inputs: by name.
        rows: B.
        length: T, or the same number for all where rows have no length.
        valid_BT: which tokens are real, where there are tokens.
    """

    inputs: dict[str, Any]
    rows: int
    length: int = 0
    valid_BT: Tensor | None = None


class Recording(NamedTuple):
    """All that a `RecordedBackbone` is made of.

    Args:
        chain: its layers by name.
        late: names of the modules that run behind the last layer only.
        shell: the network with recorders in their place.
        kinds: of what they are called with.
        batch: the first one.
        calls, output: of it.
        features: what each stage gave for it, of text [B, T, H].
        turned: the two dimensions that layers have in the other order, if they do.
    """

    chain: LayerChain
    late: list[str]
    shell: nn.Module
    kinds: dict[Path, Kind]
    batch: Batch
    calls: list[Call]
    output: Any
    features: list[Tensor]
    turned: tuple[int, int] | None


def record_layers(module: nn.Module, batches: Sequence[Batch]) -> Recording:
    """Find a network's chain of layers, and what it calls them with.

    Args:
        module: the network, in any mode.
        batches: two of one length with different numbers of rows, then others.

    Raises:
        ValueError: no chain, or layers that are called with what can't be handed on.
    """
    calls, output = _first_run(module, batches[0])
    chain = forward_calls.find_chain(module, calls)
    if chain is None:
        raise ValueError("it has no list of layers that run one after another")
    by_name = {call.name: call for call in calls}
    last = by_name[chain.layers[-1]]
    late = {call.name for call in calls} - {c.name for c in calls if c.began < last.began}
    shell = make_shell(module, [by_name[name] for name in chain.layers], late)
    with evaluating(module, shell), torch.no_grad():
        given = [_recorded(shell, batch) for batch in batches]
    runs = [
        (batch.rows, batch.length, plans.tensors_in(layers))
        for batch, layers in zip(batches, given, strict=True)
    ]
    kinds = plans.kinds_of(runs)
    _check_shared(kinds, dict(runs[0][2]), dict(runs[1][2]))
    kinds |= _made_kinds(module, chain, batches, given, by_name)
    features = [feature_of(by_name[chain.layers[end]].result) for end in chain.ends]
    turned = _turned([layers[0].x for layers in given], batches)
    if turned is not None:
        features = [feature.transpose(*turned) for feature in features]
    return Recording(chain, sorted(late), shell, kinds, batches[0], calls, output, features, turned)


def _turned(xs: Sequence[Tensor], batches: Sequence[Batch]) -> tuple[int, int] | None:
    """The two dimensions that make a text's feature [B, T, H] when they change places.

    Args:
        xs: what the first layer reads, by batch.
        batches: of the first two the second rows end with the same padding, and differ before it.
    """
    (one, other), T = xs[:2], batches[0].length
    if batches[0].valid_BT is None or one.ndim != 3:
        return None
    sizes = [batch.rows for batch in batches[:2]]
    rows = next((dim for dim in (0, 1) if [one.shape[dim], other.shape[dim]] == sizes), None)
    if rows == 1:
        return 0, 1
    may_be_last = rows == 0 and one.shape[2] == T
    if may_be_last and one.shape[1] == T:
        return None if torch.equal(one[1, -1], other[1, -1]) else (1, 2)
    return (1, 2) if may_be_last else None


def _check_shared(
    kinds: Mapping[Path, Kind], one: Mapping[Path, Tensor], other: Mapping[Path, Tensor]
) -> None:
    """Refuse what all rows share and depends on what is in them: rows of two batches may meet."""
    for path, kind in kinds.items():
        shared = kind in ("expanded", "all", "fixed") and path in one and path in other
        if shared and not _same_values(one[path], other[path]):
            raise ValueError(
                f"layer {path[0]} is called with a tensor ({plans.spelt(path)}) that all rows "
                "share and that depends on what is in them"
            )


def _same_values(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _first_run(module: nn.Module, batch: Batch) -> tuple[list[Call], Any]:
    """A run of a network as it is; its error says what it was tried on."""
    try:
        return forward_calls.trace(module, batch.inputs)
    except Exception as error:  # whatever a network says to what it doesn't take
        tried = " and ".join(
            f"{name} {list(value.shape)}"
            for name, value in batch.inputs.items()
            if isinstance(value, Tensor)
        )
        hint = "" if batch.valid_BT is not None else "; input_shape=(…) is for rows of other sizes"
        raise ValueError(
            f"its forward doesn't run on {tried} alone ({one_line(error)}){hint}"
        ) from error


def _recorded(shell: nn.Module, batch: Batch) -> list[Given]:
    try:
        return record(shell, batch.inputs)
    except ValueError:
        raise
    except Exception as error:  # whatever it does with what isn't there
        raise ValueError(
            "its forward uses what its layers give beside the feature, other than to hand it to "
            f"the next ({one_line(error)})"
        ) from error


def _made_kinds(
    module: nn.Module,
    chain: LayerChain,
    batches: Sequence[Batch],
    given: Sequence[Sequence[Given]],
    first: Mapping[str, Call],
) -> dict[Path, Kind]:
    """The kinds of what layers give beside the feature and others are called with."""
    made = set().union(*map(plans.made_in, given))
    if not made:
        return {}
    second = {call.name: call for call in forward_calls.trace(module, batches[1].inputs)[0]}
    runs = []
    for batch, calls in zip(batches, (first, second), strict=False):
        tensors = [
            ((m.layer, GIVES, m.place), result_at(calls[chain.layers[m.layer]].result, m.place))
            for m in made
        ]
        runs.append((batch.rows, batch.length, tensors))
    kinds = plans.kinds_of(runs)
    return {path: "all" if kind == "fixed" else kind for path, kind in kinds.items()}
