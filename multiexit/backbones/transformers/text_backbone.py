"""What all backbones that read tokens have in common.

Letters: B batch rows, T tokens, H width.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.transformers import text_inputs
from multiexit.backbones.transformers.text_inputs import Limits


class TextBackbone(Backbone):
    """A backbone that reads tokens, where rows may have padding anywhere.

    Where padding comes first, a row's positions count from its first real token, and its features
    stand in the order (first real token … last, padding): a row's answer doesn't depend on its
    batch. Holes within a row stay as the library has them.
    """

    @text_inputs.by_known_names
    def start(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Carry:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self.begin(text_inputs.read(inputs, self.input_limits, self.infers))

    @property
    @abstractmethod
    def input_limits(self) -> Limits:
        """The sizes of its tables, and how many tokens it takes."""

    @abstractmethod
    def begin(self, inputs: Mapping[str, Any]) -> Carry:
        """The carry before the first layer, from inputs that were checked, padding last."""

    @property
    def infers(self) -> bool:
        """Whether it is in inference."""
        return not (self.training or torch.is_grad_enabled())

    def limits(self) -> tuple[dict[str, int], int | None]:
        sizes, most, _ = self.input_limits
        return dict(sizes), most

    def example_inputs(self, batch: int = 1, tokens: int = 128) -> dict[str, Tensor]:
        sizes, most = self.limits()
        tokens = tokens if most is None else min(tokens, most)
        device = next(self.parameters()).device
        # 5 is an ordinary token in every vocabulary here: RoBERTa counts positions by padding.
        token = min(5, sizes.get("input_ids", 6) - 1)
        return {
            "input_ids": torch.full((batch, tokens), token, device=device),
            "attention_mask": torch.ones(batch, tokens, dtype=torch.long, device=device),
        }
