"""LayerDrop: layers are skipped at random in training, so that some may go afterwards.

Letters: B batch rows, T tokens, H width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from multiexit.arguments import check_share
from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.transformers.transformer import TransformerBackbone
from multiexit.recipes.static.layers import check_encoder
from multiexit.recipes.static.random_layers import adopt, facts, idle


class LayerDrop(Backbone):
    """An encoder whose layers are each skipped with probability p, in training only.

        x ← x with probability p, else f_l(x);  drawn for each layer and batch.

    In evaluation mode it is the encoder itself. Its weights have the encoder's names, so a model
    trained with it is saved and loaded as a plain one. Afterwards take fewer layers:
    `keep_layers(model.backbone.inner, spread_layers(12, 6))`.

    A skipped layer's gradient is 0, not absent, so that it works on many devices too.

    Args:
        backbone: a BERT-like encoder; its parts are shared, not copied.
        rate: p in [0, 1). The paper has 0.2; half of the layers may go more easily after 0.5.

    Raises:
        ValueError: another kind of backbone, or a rate outside [0, 1).

    Relations:
        At rate 0 it is the encoder, in training too.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)))
        >>> dropping = mx.static.LayerDrop(bert, rate=0.2)
        >>> mx.static.keep_layers(dropping.inner, mx.static.spread_layers(4, 2)).num_stages
        2

    Reference: Fan et al., "Reducing Transformer Depth on Demand with Structured Dropout", ICLR
    2020, section 3.2; fairseq's `LayerDropModuleList`, which draws the same way.
    """

    same_path = False

    def __init__(self, backbone: TransformerBackbone, rate: float = 0.2):
        check_encoder(backbone)
        check_share("LayerDrop's rate", rate, "[0, 1)")
        super().__init__(**facts(backbone))
        adopt(self, backbone)
        self.rate = rate
        self._inner = (backbone,)  # in a tuple, so that nn.Module doesn't register it once more

    @property
    def inner(self) -> TransformerBackbone:
        """The encoder, with all its layers."""
        return self._inner[0]

    def start(self, *args: Any, **inputs: Any) -> Carry:
        return self.inner.start(*args, **inputs)

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        if self.training and float(torch.rand(())) < self.rate:
            x_BTH = idle(carry["x_BTH"], self.stage_module(index))
            return {**carry, "x_BTH": x_BTH}, x_BTH
        return self.inner.stage(carry, index)

    def stage_module(self, index: int) -> nn.Module:
        return self.inner.stage_module(index)

    def example_inputs(self, batch: int = 1, tokens: int = 128) -> dict[str, Tensor]:
        return self.inner.example_inputs(batch, tokens)
