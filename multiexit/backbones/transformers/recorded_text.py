"""Networks of transformers that read tokens, taken apart by their own forward.

Letters: B batch rows, T tokens, H width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiexit.backbones.base import Carry
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.transformers import text_inputs
from multiexit.backbones.transformers.text_backbone import TextBackbone
from multiexit.backbones.transformers.text_inputs import Limits
from multiexit.backbones.transformers.trials import text_config


class RecordedText(TextBackbone, RecordedBackbone):
    """A `RecordedBackbone` that reads tokens.

    Args:
        limits: the sizes of its tables, and how many tokens it takes.
        takes: the names of inputs that its forward has.
        fills_up: whether it fills rows up with padding of its own, which features don't have.
        length: T, if all rows are filled up to it; features have the padding then.
        arguments: as `RecordedBackbone` takes them.
    """

    def __init__(
        self,
        limits: Limits,
        takes: Sequence[str],
        fills_up: bool,
        length: int | None,
        **arguments: Any,
    ):
        super().__init__(**arguments)
        self._limits = limits
        self.takes = list(takes)
        self.fills_up = fills_up
        self.length = length

    @property
    def input_limits(self) -> Limits:
        return self._limits

    @property
    def padding(self) -> int | None:
        """The token that fills rows up, if there is one."""
        return getattr(text_config(self.shell.config), "pad_token_id", None)

    def begin(self, inputs: Mapping[str, Any]) -> Carry:
        for name in ("position_ids", "inputs_embeds"):
            if inputs.get(name) is not None and name not in self.takes:
                raise ValueError(f"this network takes no {name}")
        if self.length is not None:
            padding = self.padding
            assert padding is not None
            inputs = text_inputs.filled_up(inputs, self.length, padding)
        valid_BT = inputs.get("attention_mask")
        if valid_BT is None and self.pool == "last" and self.infers:
            self._check_no_padding(inputs.get("input_ids"))
        given = {k: v for k, v in inputs.items() if v is not None and k in self.takes}
        # Without a mask transformers takes uneven positions for several texts in a row.
        takes_mask = "attention_mask" in given or "position_ids" in given
        if valid_BT is None:
            source: Tensor = given["inputs_embeds" if "inputs_embeds" in given else "input_ids"]
            valid_BT = torch.ones(source.shape[:2], dtype=torch.bool).to(source.device)
        if takes_mask and "attention_mask" in self.takes:
            given["attention_mask"] = valid_BT.to(torch.long)  # some subtract it from 1
        if "use_cache" in self.takes:
            given["use_cache"] = False
        carry = RecordedBackbone.begin(self, given)
        valid_BT = valid_BT.to(torch.bool)
        return {**carry, "valid_BT": valid_BT, "first_B": inputs.get("first_B")}

    def _check_no_padding(self, input_ids: Tensor | None) -> None:
        """Refuse rows that seem to have padding, where no mask says which token is the last one."""
        padding = self.padding
        if input_ids is None or padding is None or torch.compiler.is_compiling():
            return
        if bool((input_ids == padding).any()):
            raise ValueError(
                f"rows hold the padding token {padding}, and this network answers at a row's "
                "last real token: give attention_mask, 1 where a token is real and 0 where it is "
                "padding"
            )

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        carry, feature = RecordedBackbone.stage(self, carry, index)
        return carry, feature[:, : carry["valid_BT"].shape[1]] if self.fills_up else feature
