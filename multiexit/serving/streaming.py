"""Batches of a stream: read, named, sorted, and regrouped on their way.

Letters: M exits, B batch rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multiexit import policies
from multiexit.backbones.base import Carry
from multiexit.data import padding
from multiexit.data.batches import in_order, move, unpack_inputs
from multiexit.data.columns import Columns
from multiexit.model.exit_loop import num_rows
from multiexit.model.finite import NotFinite
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy
from multiexit.serving.own_policies import of_rows
from multiexit_runner.reading import Window, check_one_each, one_each, windows, windows_at_hand

Policies = ExitPolicy | Iterable[ExitPolicy | Sequence[ExitPolicy] | None]
"""One for a whole stream, or for each batch what `Engine.predict` takes."""


class Place(NamedTuple):
    """A place in a stream: the numbers of batches and rows that came before."""

    batch: int
    row: int


class Batch(NamedTuple):
    """Inputs by name or place, and the policy of each row; None where all have the engine's."""

    inputs: dict[Any, Any]
    own: list[ExitPolicy] | None


def check(model: MultiExitModel, data: Any, policy: Any) -> None:
    """Refuse what no stream can be made of, by a ValueError.

    Args:
        model: that answers.
        data, policy: as `Engine.stream` takes them.
    """
    if isinstance(data, Tensor | Mapping | str | bytes) or not (
        isinstance(data, Dataset | Iterable)
    ):
        raise ValueError(
            "a stream takes a data set or an iterable of batches, such as x.split(32); got one "
            f"{type(data).__name__}, which predict would take"
        )
    if isinstance(policy, ExitPolicy):
        policies.check(policy, model.num_exits, model.num_classes, model.problem)
    elif isinstance(policy, Mapping | str | bytes) or not isinstance(policy, Iterable | None):
        raise ValueError(
            "policy is an exit policy, such as MaxProb(0.9), or an iterable that gives each batch "
            f"one, or one for each of its rows; got {policy!r:.80}"
        )


def read(
    model: MultiExitModel,
    data: Any,
    batch_size: int,
    window: int,
    policy: Policies | None,
    default: ExitPolicy,
) -> Iterable[Window]:
    """Windows of `Batch`es.

    Args:
        model: that answers.
        data, batch_size, window, policy: as `Engine.stream` takes them, checked.
        default: of a batch that has None.

    Raises:
        ValueError: at once, where other numbers of policies and batches are known by then.
    """
    batches = in_order(data, batch_size)
    columns = Columns(model.backbone.start, model.own_inputs)
    source = named_inputs(batches, columns)
    at_hand = isinstance(data, Dataset | Sized)
    if not isinstance(data, Dataset | list | tuple):  # it may fill the same tensors again
        source = (padding.map_tensors(batch, Tensor.clone) for batch in source)
    if policy is None:
        whole: Iterator[Batch] = (Batch(inputs, None) for inputs in source)
    elif isinstance(policy, ExitPolicy):
        whole = _with_policies(model, zip(source, repeat(policy)), default)
    else:
        check_one_each(batches, policy, "policy")
        whole = _with_policies(model, one_each(source, policy, "policy"), default)
        at_hand = at_hand and isinstance(policy, Sized)
    return windows_at_hand(whole, window) if at_hand else windows(whole, window)


def _with_policies(
    model: MultiExitModel, pairs: Iterable[tuple[dict[Any, Any], Any]], default: ExitPolicy
) -> Iterator[Batch]:
    """Batches whose rows have policies of their own, of inputs and what was given for them."""
    for number, (inputs, policy) in enumerate(pairs):
        with placed(Place(number, 0)):
            rows = num_rows((), inputs)
            own = of_rows(model, rows, default if policy is None else policy)
        yield Batch(inputs, own)


def named_inputs(source: Iterable[Any], columns: Callable[[Any], Any]) -> Iterator[dict[Any, Any]]:
    """Each batch's inputs by name, or by place; they must be the same ones.

    Args:
        source: of batches.
        columns: what of a batch the network takes.

    Raises:
        ValueError: a batch with other inputs than the first, named.
    """
    first: list[Any] = []
    for number, batch in enumerate(source):
        with placed(Place(number, 0)):
            args, inputs = unpack_inputs(columns(batch))
            named = {**dict(enumerate(args)), **inputs}
            first = first or list(named)
            if set(named) != set(first):
                raise ValueError(
                    f"a stream's batches must have the same inputs; got {list(named)} after {first}"
                )
        yield named


def start(model: MultiExitModel, inputs: dict[Any, Any], device: torch.device) -> Carry:
    """What the first stage reads of inputs by place and by name, on the device."""
    moved = move(inputs, device)
    args = [moved[place] for place in sorted(k for k in moved if isinstance(k, int))]
    named = {name: value for name, value in moved.items() if isinstance(name, str)}
    return model.start(args, named)


@contextmanager
def placed(before: Place) -> Iterator[None]:
    """Errors inside name the batch, and its rows as counted over the whole stream."""
    where = f"batch {before.batch} of the stream"
    try:
        yield
    except NotFinite as error:
        raise error.shifted(before.row, f" ({where})") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:
        error.add_note(f"in {where}, counted from 0")
        raise


def by_length(
    batches: list[dict[Any, Any]], sizes: list[int], batch_size: int
) -> Iterator[tuple[dict[Any, Any], Tensor]]:
    """Regroup rows of like length, long ones first.

    Args:
        batches: inputs by name or place, the same in each.
        sizes: their rows.
        batch_size: rows of each group; the last may have fewer.

    Returns:
        Per group, its inputs, and the rows' places among all, [B].
    """
    rows = sum(sizes)
    if not rows:
        return
    filled = [(batch, size) for batch, size in zip(batches, sizes, strict=True) if size]
    inputs = padding.join([batch for batch, _ in filled], [size for _, size in filled])
    order_B, length_B = torch.arange(rows), padding.lengths(inputs)
    if length_B is not None:
        order_B = length_B.cpu().argsort(stable=True, descending=True)
    for rows_B in order_B.split(batch_size):
        yield padding.rows_of(inputs, rows_B, rows), rows_B
