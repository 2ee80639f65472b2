"""Batches of a stream: read, named, sorted, and regrouped on their way.

Letters: M exits, B batch rows.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multiexit.backbones.base import Carry
from multiexit.data import padding
from multiexit.data.batches import move, unpack_inputs
from multiexit.model.finite import NotFinite
from multiexit.model.model import MultiExitModel


class Place(NamedTuple):
    """A place in a stream: the numbers of batches and rows that came before."""

    batch: int
    row: int


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
