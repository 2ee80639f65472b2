"""Rows of which each token is answered: which are asked for, and where their answers stand.

Letters: B batch rows, T tokens, H width, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.pooling import turned_by

ANSWER_MASK = "answer_mask"
"""The input that says which tokens are asked for, [B, T]; without it all real ones are."""


def check_backbone(backbone: Backbone) -> None:
    """Refuse, by a ValueError, a backbone that gives no vector for each token that it reads."""
    example = backbone.example_inputs()
    reads_tokens = "input_ids" in example or all(x.ndim == 3 for x in example.values())
    if not reads_tokens or set(backbone.layouts) != {"tokens"}:
        shape, layout = backbone.feature_shapes[-1], backbone.layouts[-1]
        raise ValueError(
            "token-classification answers each token that is read, by features [B, T, H] of layout "
            f"'tokens'; this backbone reads {', '.join(example)}, and its features have shape "
            f"(B, {', '.join(map(str, shape))}), layout {layout!r}"
        )


def start(backbone: Backbone, args: Sequence[Any], inputs: Mapping[str, Any]) -> Carry:
    """What `backbone.start` gives, with `"asked_BT"`: the real tokens that are asked for.

    They are in the order of the inputs, whatever order the backbone reads them in.

    Args:
        backbone: of a model that classifies tokens.
        args, inputs: what the model was given; `answer_mask` is 1 where a token is asked for.

    Raises:
        ValueError: an `answer_mask` of another shape, or of other numbers than 0 and 1.
    """
    answer_mask = inputs.get(ANSWER_MASK)
    others = {name: value for name, value in inputs.items() if name != ANSWER_MASK}
    shape_BT = shape(args, others)
    asked_BT = None if answer_mask is None else _checked(answer_mask, shape_BT)
    carry = backbone.start(*args, **others)
    real_BT = _real(carry, shape_BT[1])
    if real_BT is not None:
        asked_BT = real_BT if asked_BT is None else asked_BT.to(real_BT.device) & real_BT
    elif asked_BT is None:
        device = next(backbone.parameters()).device
        asked_BT = torch.ones(shape_BT, dtype=torch.bool, device=device)
    return {**carry, "asked_BT": asked_BT}


def shape(args: Sequence[Any], inputs: Mapping[str, Any]) -> tuple[int, int]:
    """B and T of what a model was given."""
    named = [inputs.get(name) for name in ("input_ids", "inputs_embeds")]
    tensors = [x for x in (*named, *args, *inputs.values()) if isinstance(x, Tensor)]
    size = tensors[0].shape if tensors else ()
    if len(size) < 2:
        raise ValueError(
            f"tokens are rows of numbers, [B, T] or [B, T, H]; got an input of shape {tuple(size)}"
        )
    return size[0], size[1]


def in_order(logits_BTC: Tensor, carry: Carry) -> Tensor:
    """Logits in the order of the inputs, and 0 at padding.

    Args:
        logits_BTC: as a head made them of a stage's feature.
        carry: of that stage.
    """
    first_B = carry.get("first_B")
    if first_B is not None:
        logits_BTC = turned_by(logits_BTC, -first_B)
    return blank(logits_BTC[:, : carry["asked_BT"].shape[1]], carry)


def blank(answer_BTC: Tensor, carry: Carry) -> Tensor:
    """Answers in the order of the inputs, 0 at padding.

    Args:
        answer_BTC: whatever at padding.
        carry: of the stage.
    """
    real_BT = _real(carry, answer_BTC.shape[1])
    return answer_BTC if real_BT is None else answer_BTC.masked_fill(~real_BT.unsqueeze(-1), 0)


def _real(carry: Carry, length: int) -> Tensor | None:
    """Which tokens are real, in the order of the inputs; some backbones fill rows up."""
    valid_BT, first_B = carry.get("valid_BT"), carry.get("first_B")
    if valid_BT is None:
        return None
    real_BT = valid_BT if first_B is None else turned_by(valid_BT, -first_B)
    return real_BT[:, :length]


def _checked(answer_mask: Any, shape_BT: tuple[int, int]) -> Tensor:
    """The mask as bools."""
    if not isinstance(answer_mask, Tensor) or tuple(answer_mask.shape) != shape_BT:
        got = getattr(answer_mask, "shape", type(answer_mask).__name__)
        got = tuple(got) if isinstance(got, torch.Size) else got
        raise ValueError(
            f"answer_mask is {got}; it must be a tensor [rows, tokens], {shape_BT}: 1 where a "
            "token is asked for, else 0"
        )
    if answer_mask.dtype == torch.bool:
        return answer_mask
    look = answer_mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if look and bool(((answer_mask != 0) & (answer_mask != 1)).any()):
        raise ValueError("answer_mask must be 1 where a token is asked for, and 0 elsewhere")
    return answer_mask != 0
