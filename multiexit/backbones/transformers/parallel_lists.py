"""XLM and FlauBERT, whose layers lie in parallel lists, as networks with one list of layers.

Letters: B batch rows, T tokens, H width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from multiexit.backbones.layers.forward_calls import trace
from multiexit.backbones.layers.recording import Batch
from multiexit.backbones.verify import mismatch
from multiexit.runtime import evaluating

TYPES = ("xlm", "flaubert")
LISTS = ("attentions", "layer_norm1", "ffns", "layer_norm2")


class ParallelLayer(nn.Module):
    """What the library's forward does with the i-th module of each list.

    Args:
        trunk: whose lists they are.
        index: i.
    """

    def __init__(self, trunk: Any, index: int):
        super().__init__()
        self.attention, self.norm1, self.ffn, self.norm2 = (
            getattr(trunk, name)[index] for name in LISTS
        )
        self.dropout = trunk.dropout
        self.pre_norm = getattr(trunk, "pre_norm", False)

    def forward(self, x_BTH: Tensor, valid_BT: Tensor, mask: Tensor) -> Tensor:
        read_BTH = self.norm1(x_BTH) if self.pre_norm else x_BTH
        attended_BTH = self.attention(read_BTH, mask)[0]
        x_BTH = x_BTH + F.dropout(attended_BTH, self.dropout, self.training)
        x_BTH = x_BTH if self.pre_norm else self.norm1(x_BTH)
        x_BTH = x_BTH + self.ffn(self.norm2(x_BTH) if self.pre_norm else x_BTH)
        x_BTH = x_BTH if self.pre_norm else self.norm2(x_BTH)
        return x_BTH * valid_BT.unsqueeze(-1).to(x_BTH.dtype)


class LoopedTrunk(PreTrainedModel):
    """The library's XLMModel or FlaubertModel with a loop over `layers`; made by `regrouped`."""

    base_model_prefix = "transformer"
    embeddings: Any
    position_embeddings: Any
    layer_norm_emb: Any
    layers: nn.ModuleList
    pad_index: int
    causal: bool
    dropout: float

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **others: Any,
    ) -> BaseModelOutput:
        x_BTH = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        B, T = x_BTH.shape[:2]
        place_T = torch.arange(T, device=x_BTH.device)
        valid_BT = attention_mask
        if valid_BT is None and input_ids is not None:
            valid_BT = place_T < input_ids.ne(self.pad_index).sum(1, keepdim=True)
        elif valid_BT is None:
            valid_BT = torch.ones(B, T, dtype=torch.bool, device=x_BTH.device)
        mask = (place_T <= place_T[:, None]).expand(B, T, T) if self.causal else valid_BT
        x_BTH = x_BTH + self.position_embeddings(place_T if position_ids is None else position_ids)
        if token_type_ids is not None:
            x_BTH = x_BTH + self.embeddings(token_type_ids)
        x_BTH = F.dropout(self.layer_norm_emb(x_BTH), self.dropout, self.training)
        x_BTH = x_BTH * valid_BT.unsqueeze(-1).to(x_BTH.dtype)
        for layer in self.layers:
            if self.training and torch.rand([]) < getattr(self, "layerdrop", 0.0):
                continue
            x_BTH = layer(x_BTH, valid_BT, mask)
        return BaseModelOutput(last_hidden_state=x_BTH)  # type: ignore[arg-type]


def regrouped(model: Any) -> Any:
    """The same network with its trunk as a loop over `layers`; networks of other types as they are.

    All parts are shared.
    """
    trunk = model.base_model
    if trunk.config.model_type not in TYPES:
        return model
    layers = nn.ModuleList(ParallelLayer(trunk, index) for index in range(trunk.n_layers))
    looped = _with_parts(trunk, LoopedTrunk, {**dict.fromkeys(LISTS), "layers": layers})
    return looped if trunk is model else _with_parts(model, type(model), {"transformer": looped})


def _with_parts(module: Any, kind: Any, parts: Mapping[str, nn.Module | None]) -> Any:
    """A shallow copy of a network, of this class, with other parts; None takes one out."""
    copied = kind.__new__(kind)
    vars(copied).update(vars(module))
    named = {**module._modules, **parts}
    copied._modules = {name: part for name, part in named.items() if part is not None}
    return copied


def check(model: Any, looped: Any, batches: Sequence[Batch]) -> None:
    """Refuse a regrouped network whose layers aren't what the network's own forward gives.

    Args:
        model: the network.
        looped: what `regrouped` made of it.
        batches: to compare on.

    Raises:
        ValueError: with the first layer that differs, and by how much.
    """
    layers = [n for n, part in looped.named_modules() if isinstance(part, ParallelLayer)]
    for batch in batches:
        ours = [call.output for call in trace(looped, batch.inputs, layers)[0]]
        with evaluating(model), torch.no_grad():
            theirs = model(**batch.inputs, output_hidden_states=True).hidden_states[1:]
        for index, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
            if gap := mismatch(mine, wanted, 1e-5):  # a cache's keys lie otherwise in memory
                raise ValueError(
                    "its own forward isn't its layers one after another: after layer "
                    f"{index}, {gap}"
                )
