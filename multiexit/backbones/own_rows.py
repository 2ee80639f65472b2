"""Whether a backbone of the user's own keeps to the rules by which rows may leave its batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from multiexit import randomness
from multiexit.backbones.base import Backbone, Carry, select
from multiexit.backbones.running import like_parameters, random_rows
from multiexit.backbones.verify import check_same_rows
from multiexit.runtime import buffers_kept, evaluating


class _NotRun(Exception):
    """A batch of random rows doesn't run, whatever the network says to it."""


def check_own(backbone: Backbone) -> None:
    """Refuse a class of the user's own in which a row needs the others of its batch, in evaluation.

    Two rows run through the stages, and beside them the second: through the first half alone, then
    as what is left of both. What doesn't run on two random rows, has no values, or draws what it
    gives, isn't looked at; classes that come with the library are known to keep to the rules.

    Args:
        backbone: what a model is made of.

    Raises:
        ValueError: names the stage, and the entry of the carry if it is one.
    """
    if type(backbone).__module__.partition(".")[0] == "multiexit":
        return
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return
    on_cpu = torch.device("cpu")  # what is made anew, though a model is loaded on the meta device
    with evaluating(backbone), buffers_kept(backbone), _undrawn(device), torch.no_grad(), on_cpu:
        try:
            inputs = _two_rows(backbone)
        except Exception:  # whatever a class of the user's own says
            return
        try:
            _compare(backbone, inputs)
        except _NotRun:
            return
        except ValueError:
            if all(map(torch.equal, _features(backbone, inputs), _features(backbone, inputs))):
                raise


def _compare(backbone: Backbone, inputs: dict[str, Tensor]) -> None:
    name, second = type(backbone).__name__, torch.tensor([1])
    both: Carry = {}
    alone: Carry = {}
    for index in range(-1, backbone.num_stages):
        where = f"{name}.stage {index}" if index >= 0 else f"{name}.start()"
        try:
            both, feature = _run(backbone, inputs, both, index)
        except Exception as error:
            raise _NotRun from error
        _check_carry(both, 2, where)
        try:
            alone, its = _run(backbone, {k: x[1:] for k, x in inputs.items()}, alone, index)
        except Exception as error:
            raise ValueError(
                f"{where} runs on two rows, and not on one of them: {error}. Rows leave a batch, "
                "so every tensor in a carry has the batch as its first dimension; constants belong "
                "in buffers"
            ) from error
        _check_carry(alone, 1, where)
        if feature is not None:
            check_same_rows(f"{where}: a row's feature", feature[1:], [its])
        if index == backbone.num_stages // 2 - 1:
            alone = select(both, second)


def _run(
    backbone: Backbone, inputs: dict[str, Tensor], carry: Carry, index: int
) -> tuple[Carry, Any]:
    if index < 0:
        return backbone.start(**_cloned(inputs)), None
    return backbone.stage(carry, index)


def _features(backbone: Backbone, inputs: dict[str, Tensor]) -> list[Tensor]:
    carry, features = _run(backbone, inputs, {}, -1)[0], []
    for index in range(backbone.num_stages):
        carry, feature = _run(backbone, inputs, carry, index)
        features.append(feature.clone())
    return features


def _check_carry(carry: Any, rows: int, where: str) -> None:
    """Refuse what is no mapping, and a tensor whose first dimension isn't the batch."""
    if not isinstance(carry, Mapping):
        raise ValueError(
            f"{where} gives a {type(carry).__name__} as carry, and a carry is a dict of tensors "
            "that have the batch as their first dimension"
        )
    for key, value in carry.items():
        if isinstance(value, Mapping):
            _check_carry(value, rows, f"{where}: {key}")
        elif isinstance(value, Tensor) and value.shape[:1] != (rows,):
            raise ValueError(
                f"{where}: the carry's {key!r} is {tuple(value.shape)} for {rows} row(s); every "
                "tensor in a carry has the batch as its first dimension, so that rows can leave; "
                "constants belong in buffers"
            )


def _two_rows(backbone: Backbone) -> dict[str, Tensor]:
    """Rows like the backbone's example: other numbers, and other tokens where it is known which."""
    example, (counts, _) = backbone.example_inputs(), backbone.limits()
    tokens = {*counts, "input_ids"} if len(example) > 1 else {*example}
    return {
        name: random_rows(x, backbone, 2)
        if x.is_floating_point() or name in tokens
        else like_parameters(x.expand(2, *x.shape[1:]), backbone)
        for name, x in example.items()
    }


def _cloned(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in inputs.items()}


@contextmanager
def _undrawn(device: torch.device) -> Iterator[None]:
    """Behind, random numbers go on from where they were."""
    states = randomness.layer_states(device)
    try:
        yield
    finally:
        randomness.set_layer_states(states, device)
