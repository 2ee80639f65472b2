"""Rows of text and their padding: cut, filled, put together.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.data.batches import map_tensors

BY_TOKEN = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "inputs_embeds",
    "answer_mask",
}
"""Inputs [B, T, …] by name. Of any other its width doesn't tell whether it goes by token, as
columns of numbers beside a text may be as many as its tokens are."""


def lengths(inputs: Mapping[str, Any]) -> Tensor | None:
    """Tokens of each row up to its last real one, [B]; None without an `attention_mask` [B, T]."""
    mask_BT = inputs.get("attention_mask")
    if (
        not isinstance(mask_BT, Tensor)
        or mask_BT.ndim != 2
        or not mask_BT.shape[1]
        or mask_BT.is_meta
    ):
        return None
    place_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    return (place_T * (mask_BT != 0)).amax(1)


def trim(inputs: dict[str, Any], step: int = 1, most: int | None = None) -> dict[str, Any]:
    """Cut the columns of padding that all rows share.

    Positions are counted from the left, so only what stands to the right of every row goes. Nothing
    is cut beside an input as wide as the mask that may go by token or not.

    Args:
        inputs: by name.
        step: the length is then a multiple of it.
        most: or else this one, which is all that the network takes.
    """
    length_B = lengths(inputs)
    if length_B is None or not _as_wide(inputs) <= BY_TOKEN:
        return inputs
    longest = max(1, int(length_B.max()))
    length = -(-longest // step) * step
    length = length if most is None else max(longest, min(length, most))
    return _resize(inputs, length, BY_TOKEN)


def rows_of(inputs: Any, index_B: Tensor, rows: int) -> Any:
    """Take some rows of a batch; tensors with one row for all keep it.

    Args:
        inputs: a tensor, or dicts, tuples and lists of these.
        index_B: the rows' numbers.
        rows: how many rows the batch has.
    """
    return map_tensors(inputs, lambda x: x[index_B.to(x.device)] if len(x) == rows else x)


def join(batches: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Put batches one under another, text padded to the longest.

    Of batches of several lengths, an input as wide as each one's mask goes by token too.

    Args:
        batches: inputs by name, the same in each.
        sizes: their rows.

    Raises:
        ValueError: an input that has neither one row nor a row per row.
    """
    masks = [batch.get("attention_mask") for batch in batches]
    if all(isinstance(mask, Tensor) and mask.ndim == 2 for mask in masks):
        longest = max(mask.shape[1] for mask in masks)  # type: ignore[union-attr]
        names = BY_TOKEN | set.intersection(*map(_as_wide, batches))
        batches = [_resize(batch, longest, names) for batch in batches]
    return {key: _stack(key, [batch[key] for batch in batches], sizes) for key in batches[0]}


def _stack(name: Any, values: Sequence[Any], sizes: Sequence[int]) -> Any:
    if not isinstance(values[0], Tensor):
        return values[0]
    for tensor, size in zip(values, sizes, strict=True):
        if len(tensor) not in (1, size):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, and there are {size} rows")
    return torch.cat(
        [
            tensor if len(tensor) == size else tensor.expand(size, *tensor.shape[1:])
            for tensor, size in zip(values, sizes, strict=True)
        ]
    )


def filled_up(tensor: Tensor, dim: int, length: int, value: float = 0) -> Tensor:
    """A tensor filled up with a value behind its end.

    Args:
        tensor: of any shape.
        dim: that grows, counted from 0.
        length: of it.
        value: that is filled in.
    """
    behind = (0, 0) * (tensor.ndim - dim - 1)
    return F.pad(tensor, (*behind, 0, length - tensor.shape[dim]), value=value)


def _as_wide(inputs: Mapping[str, Any]) -> set[str]:
    """The names of inputs [B, T, …] that are as wide as the mask."""
    T = inputs["attention_mask"].shape[1]
    return {
        name
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == T
    }


def _resize(inputs: dict[str, Any], length: int, names: set[str]) -> dict[str, Any]:
    """Cut these inputs where they are [B, T, …] to [B, length, …], or fill them up with zeros."""
    T = inputs["attention_mask"].shape[1]
    if length == T:
        return inputs
    fits = {
        name: inputs[name][:, :length] if length < T else filled_up(inputs[name], 1, length)
        for name in names & _as_wide(inputs)
    }
    return {**inputs, **fits}
