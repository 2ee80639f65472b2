"""Inputs of an encoder: checked once, and rows that begin with padding turned round.

Letters: B batch rows, T tokens, H width.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from multiexit.backbones.pooling import turned_by

NAMES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
TABLES = {
    "input_ids": "word_embeddings",
    "token_type_ids": "token_type_embeddings",
    "position_ids": "position_embeddings",
}
NUMBERS = (torch.int64, torch.int32)

Inputs = dict[str, Tensor | None]
P = ParamSpec("P")
R = TypeVar("R")


class Limits(NamedTuple):
    """Limits of an encoder's inputs, as its tables tell them.

    Args:
        sizes: of inputs that are indices, how many things they count.
        tokens: the most that a row may have; None where there is no such number.
        width: of the embeddings that may be given in place of tokens; None where it isn't known.
    """

    sizes: Mapping[str, int]
    tokens: int | None
    width: int | None


def limits(embeddings: nn.Module) -> Limits:
    """The limits of an encoder whose tables have BERT's names."""
    modules: dict[str, Any] = dict(embeddings.named_children())
    sizes = {
        name: int(modules[table].num_embeddings)
        for name, table in TABLES.items()
        if hasattr(modules.get(table), "num_embeddings")
    }
    width = getattr(modules.get("word_embeddings"), "embedding_dim", None)
    if "position_ids" not in sizes:
        return Limits(sizes, None, width)
    # RoBERTa counts positions from behind that of padding.
    padding = getattr(modules["position_embeddings"], "padding_idx", None)
    most = sizes["position_ids"] - (0 if padding is None else padding + 1)
    return Limits(sizes, most, width)


def read(inputs: Mapping[str, Any], limits: Limits, infers: bool) -> Inputs:
    """The inputs of an encoder, each [B, T] (embeddings [B, T, H]), the mask bool, padding last.

    With a mask, `"first_B"` says where each row's first real token stood.

    Values are looked at on a CPU, and in inference, where making a mask waits for the device.

    Args:
        inputs: by name, None for what wasn't given.
        limits: what is in range.
        infers: whether the network is in inference.

    Raises:
        ValueError: names the input, what it is, and what would be right.
    """
    on_cpu = all(value.is_cpu for value in inputs.values() if isinstance(value, Tensor))
    look = not torch.compiler.is_compiling() and (infers or on_cpu)
    return _padding_last(_checked(inputs, limits, look))


def _checked(inputs: Mapping[str, Any], limits: Limits, look: bool) -> Inputs:
    """The inputs, if all is right.

    Args:
        inputs, limits: as in `read`.
        look: look at values too, which waits for the device: numbers within the tables, masks of
            0 and 1, a real token in every row.
    """
    _check_types(inputs)
    tensors = {name: value for name, value in inputs.items() if value is not None}
    sizes, most, width = limits
    shape_BT = _batch_shape(tensors, width)
    B, T = shape_BT
    if T == 0:
        raise ValueError("rows of 0 tokens: each row needs at least one")
    if most is not None and most < T and "position_ids" not in tensors:
        raise ValueError(
            f"rows of {T} tokens, this network takes {most}: cut them by truncation and "
            f"max_length={most}, where they are tokenised"
        )
    checked_inputs: Inputs = dict(inputs)
    for name, value in tensors.items():
        one_for_all = name not in ("input_ids", "inputs_embeds") and value.shape == (1, T)
        if name != "inputs_embeds" and value.shape != shape_BT and not one_for_all:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, and there are {B} rows of {T} tokens: it "
                f"must be [rows, tokens], {(B, T)}"
            )
        if one_for_all:
            checked_inputs[name] = value.expand(B, T)
        if name in TABLES and value.dtype not in NUMBERS:
            raise ValueError(f"{name} must be whole numbers (torch.int64), not {value.dtype}")
    if look:
        _check_values(tensors, sizes)
    mask_BT = checked_inputs["attention_mask"]
    if mask_BT is not None:
        source = tensors["input_ids"] if "input_ids" in tensors else tensors["inputs_embeds"]
        checked_inputs["attention_mask"] = mask_BT.to(source.device, torch.bool)
    return checked_inputs


def _padding_last(inputs: Inputs) -> Inputs:
    """Rows that begin with padding, turned so that it stands at their end.

    Position t of a row with its first real token at s is what was at (t + s) mod T: positions
    count from the first real token, which `[:, 0]` is, as in the row by itself. Other rows stay as
    they are.
    """
    mask_BT = inputs["attention_mask"]
    if mask_BT is None:
        return {**inputs, "first_B": None}
    first_B = mask_BT.int().argmax(1)
    turned = {
        name: None if value is None else turned_by(value, first_B) for name, value in inputs.items()
    }
    return {**turned, "first_B": first_B}


def filled_up(inputs: Mapping[str, Any], length: int, padding: int) -> Inputs:
    """The inputs as a tokenizer makes them with `padding="max_length"`: each [B, length].

    What isn't real is the padding token, of type 0; without a mask the padding token is what isn't
    real.

    Args:
        inputs: of `read`, without positions and embeddings.
        length: of each row; none is longer.
        padding: the token that fills rows up.
    """
    if inputs["attention_mask"] is None:
        inputs = _padding_last({**inputs, "attention_mask": inputs["input_ids"] != padding})
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    assert ids_BT is not None
    assert mask_BT is not None
    valid_BT = mask_BT.to(torch.bool)
    inputs = {**inputs, "input_ids": torch.where(valid_BT, ids_BT, padding)}
    if inputs.get("token_type_ids") is not None:
        inputs["token_type_ids"] = inputs["token_type_ids"] * valid_BT
    inputs["attention_mask"] = valid_BT
    T = valid_BT.shape[1]
    # By places: a graph of any T can't have a tensor of length - T.
    place_L = torch.arange(length, device=valid_BT.device)
    source_L, is_there_L = place_L.clamp(max=T - 1), place_L < T
    fills = {"input_ids": padding}
    filled = {
        name: torch.where(is_there_L, value.index_select(1, source_L), fills.get(name, 0))
        for name, value in inputs.items()
        if name in NAMES and value is not None
    }
    return {**inputs, **filled}


def by_known_names(start: Callable[P, R]) -> Callable[P, R]:
    """A `start` that refuses inputs by other names than `NAMES` in a sentence."""

    @wraps(start)
    def checked_start(*args: P.args, **inputs: P.kwargs) -> R:
        if unknown := [name for name in inputs if name not in NAMES]:
            raise ValueError(
                f"this network takes {', '.join(NAMES)}, not {', '.join(unknown)}"
                + (": labels are for training" if "labels" in unknown else "")
            )
        return start(*args, **inputs)

    return checked_start


def _check_types(inputs: Mapping[str, Any]) -> None:
    if (inputs["input_ids"] is None) == (inputs["inputs_embeds"] is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    for name, value in inputs.items():
        if value is not None and not isinstance(value, Tensor):
            hint = "; pass a batch's entries by name, **batch" if isinstance(value, Mapping) else ""
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}{hint}")
    meta = [value.is_meta for value in inputs.values() if value is not None]
    if any(meta) and not all(meta):
        name = next(name for name, value in inputs.items() if value is not None and value.is_meta)
        raise ValueError(f"{name} is on the meta device, so it has no values")


def _batch_shape(tensors: Mapping[str, Tensor], width: int | None) -> tuple[int, int]:
    """B and T."""
    if "input_ids" in tensors:
        ids_BT = tensors["input_ids"]
        if ids_BT.ndim != 2:
            raise ValueError(
                f"input_ids has shape {tuple(ids_BT.shape)}: it must be [rows, tokens]"
                + (", one row is input_ids[None]" if ids_BT.ndim == 1 else "")
            )
        return ids_BT.shape[0], ids_BT.shape[1]
    x_BTH = tensors["inputs_embeds"]
    if width is None:
        width = x_BTH.shape[-1] if x_BTH.ndim else 0
    if x_BTH.ndim != 3 or x_BTH.shape[2] != width or not x_BTH.is_floating_point():
        raise ValueError(
            f"inputs_embeds has shape {tuple(x_BTH.shape)}, {x_BTH.dtype}: it must be fractions "
            f"[rows, tokens, {width}]"
        )
    return x_BTH.shape[0], x_BTH.shape[1]


def _check_values(tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    """Refuse values out of range, behind one wait for the device."""
    flags: dict[str, Tensor] = {}
    for name in TABLES:
        if name in tensors and name in sizes:
            flags[name] = ((tensors[name] < 0) | (tensors[name] >= sizes[name])).any()
    mask_BT = tensors.get("attention_mask")
    if mask_BT is not None:
        if mask_BT.dtype != torch.bool:
            flags["values"] = ((mask_BT != 0) & (mask_BT != 1)).any()
        flags["empty"] = (mask_BT == 0).all(1).any()
    if not flags or not bool(torch.stack([*flags.values()]).any()):
        return
    wrong = next(name for name, flag in flags.items() if bool(flag))
    if wrong in sizes:
        values = tensors[wrong].flatten()
        number = int(values[(values < 0) | (values >= sizes[wrong])][0])
        raise ValueError(
            f"{wrong} must be in 0..{sizes[wrong] - 1}, got {number}"
            + (
                ": does the tokenizer belong to this network? For tokens added to it, "
                "model.resize_token_embeddings(len(tokenizer)) before wrapping"
                if wrong == "input_ids"
                else ""
            )
        )
    assert mask_BT is not None
    if wrong == "values":
        value = mask_BT[(mask_BT != 0) & (mask_BT != 1)][0].item()
        raise ValueError(
            f"attention_mask must be 1 where a token is real and 0 where it is padding, got {value}"
        )
    row = int((mask_BT == 0).all(1).nonzero()[0])
    raise ValueError(f"row {row} is all padding: each row needs at least one real token")
