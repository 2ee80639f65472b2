"""A key for each row of a batch, the same in any batch and under any padding.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiexit.data.padding import BY_TOKEN


def row_keys(args: Sequence[Any], inputs: Mapping[str, Any], rows: int) -> Tensor | None:
    """64 bits of BLAKE2b over what each row holds, int64 [B].

    Of text, the tokens where `attention_mask` [B, T] is 1 count. Of what goes beside it, and by its
    name may go by token or not, all counts but zeros at the end, by which it is padded. A tensor
    with one row for all, such as `position_ids` [1, T], counts as every row's own. Names and labels
    don't count, nor the sign of 0, nor `token_type_ids` of a row that are all 0, as where there are
    none.

    Args:
        args, inputs: what the model is given.
        rows: B.

    Returns:
        None where it can't be told what belongs to which row: tensors inside other things, a
        first dimension other than B, none at all.
    """
    named = {**{str(position): value for position, value in enumerate(args)}, **inputs}
    tensors = {k: v for k, v in named.items() if isinstance(v, Tensor) and v.ndim > 0}
    sizes = {len(value) for value in tensors.values()}
    nested = any(isinstance(value, Mapping | list | tuple) for value in named.values())
    if nested or rows not in sizes or not sizes <= {1, rows}:
        return None
    mask_BT = None
    if "attention_mask" in tensors and tensors["attention_mask"].ndim == 2:
        mask_BT = tensors.pop("attention_mask").cpu().bool().expand(rows, -1).numpy()
    hashers = [blake2b(digest_size=8) for _ in range(rows)]
    for name, value in sorted(tensors.items()):
        numbers = value.float() + 0.0 if value.is_floating_point() else value.long()
        all_rows = numbers.detach().cpu().expand(rows, *value.shape[1:]).numpy()
        for row, hasher in enumerate(hashers):
            row_values = all_rows[row]
            if mask_BT is not None and value.ndim > 1:
                by_token = name in BY_TOKEN and value.shape[1] == mask_BT.shape[1]
                row_values = row_values[mask_BT[row]] if by_token else _without_end(row_values)
            if name == "token_type_ids" and not row_values.any():
                continue
            hasher.update(str(row_values.shape).encode())
            hasher.update(row_values.tobytes())
    numbers = [int.from_bytes(hasher.digest(), "little", signed=True) for hasher in hashers]
    return torch.tensor(numbers, dtype=torch.int64)


def _without_end(values: np.ndarray) -> np.ndarray:
    """Numbers [N, …] without the zeros at their end."""
    filled = np.flatnonzero(values.any(tuple(range(1, values.ndim))))
    return values[: filled[-1] + 1 if len(filled) else 0]
