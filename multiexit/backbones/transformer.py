"""BERT-like encoders of transformers, layer by layer: BERT, ALBERT and their relatives.

Letters: B batch rows, T tokens, H width.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from multiexit.backbones import attention, configs
from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.classifier import Classifier, FirstToken

SUPPORTED = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")

MAY_NOT_LOOK = "allow_is_bidirectional_skip" in signature(create_bidirectional_mask).parameters
"""Whether this version of transformers can make a mask without a look at its values."""


class TransformerBackbone(Backbone):
    """One stage per layer; feature i equals the library's own `hidden_states[i + 1]`.

    The submodules are shared with the model they come from, not copied. ALBERT's shared layers
    are kept once and used again: layer i runs group `⌊i / (layers / groups)⌋` (Lan et al. 2020).

    Args:
        model: a bare encoder (`AutoModel`) or a task model around one, of a type in `SUPPORTED`.

    Raises:
        ValueError: a model of another type, or a decoder.
    """

    def __init__(self, model: PreTrainedModel):
        encoder: Any = model.base_model
        config = encoder.config
        if config.model_type not in SUPPORTED:
            raise ValueError(
                f"can't stage a {config.model_type!r} model; of transformers, "
                f"{', '.join(SUPPORTED)} can be wrapped. For others register an adapter: "
                "@multiexit.wrap.register(YourClass)"
            )
        if getattr(config, "is_decoder", False):
            raise ValueError("can't stage a decoder: set is_decoder=False in its configuration")
        if config._attn_implementation == "flex_attention":
            raise ValueError(
                "flex_attention's mask can't lose rows as inputs leave: load the model with "
                "attn_implementation='sdpa' or 'eager'"
            )
        layers, order = _layers(encoder)
        super().__init__(
            feature_shapes=[(None, config.hidden_size)] * len(order),
            head="pooler",
            pool="first",
            spec={
                "kind": "transformers",
                "config": config.to_dict(),
                "attention": config._attn_implementation,
            },
            pooler=_pooler(encoder),
            classifier=_classifier(model),
        )
        self.config: Any = config
        self.embeddings = encoder.embeddings
        self.projection = _projection(encoder)
        self.layers = layers
        self.order = order

    def start(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Carry:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if self.config.model_type != "distilbert":  # it knows no token types
            inputs["token_type_ids"] = token_type_ids
        x_BTH = self.projection(self.embeddings(**inputs))
        # By position: the second parameter's name changed within transformers 5.
        # Whether nothing is masked is looked up in inference alone: that waits for the device.
        train = self.training or torch.is_grad_enabled()
        look = not (train or torch.compiler.is_compiling())
        options: dict[str, Any] = {"allow_is_bidirectional_skip": look} if MAY_NOT_LOOK else {}
        mask = create_bidirectional_mask(self.config, x_BTH, attention_mask, **options)
        valid_BT = None if attention_mask is None else attention_mask.bool()
        return {"x_BTH": x_BTH, "mask": mask, "valid_BT": valid_BT}

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        x_BTH = self.stage_module(index)(carry["x_BTH"], carry["mask"])
        return {**carry, "x_BTH": x_BTH}, x_BTH

    def stage_module(self, index: int) -> nn.Module:
        return self.layers[self.order[index]]

    def example_inputs(self, batch: int = 1, tokens: int = 128) -> dict[str, Tensor]:
        tokens = min(tokens, self.config.max_position_embeddings - 2)
        device = next(self.parameters()).device
        # 5 is an ordinary token in every vocabulary here: RoBERTa counts positions by padding.
        return {
            "input_ids": torch.full((batch, tokens), 5, device=device),
            "attention_mask": torch.ones(batch, tokens, dtype=torch.long, device=device),
        }


def from_name(name: str, **kwargs: Any) -> TransformerBackbone:
    """Load an encoder from a hub name or a local folder, in float32 unless `dtype` says else."""
    configs.check_source(name, **kwargs)
    return TransformerBackbone(
        AutoModel.from_pretrained(name, **{"dtype": torch.float32, **kwargs, **configs.ONLY})
    )


def from_spec(spec: dict[str, Any]) -> TransformerBackbone:
    """Make the architecture of a saved spec, with random weights and without any download."""
    config = configs.described(spec["config"], spec.get("attention"))
    auto = AutoModelForSequenceClassification if spec.get("classifier") is True else AutoModel
    made = TransformerBackbone(
        auto.from_config(
            config,
            dtype=torch.float32,
            attn_implementation=spec.get("attention"),
            trust_remote_code=False,
        )
    )
    if "order" in spec:  # of some of ALBERT's layers
        made.order = list(spec["order"])
    if "heads" in spec:  # not all of them
        attention.cut(made, spec["heads"])
    made.spec = {**(made.spec or {}), **spec}
    return made


def _layers(encoder: Any) -> tuple[nn.ModuleList, list[int]]:
    """The distinct layers, and which of them each stage runs."""
    config = encoder.config
    if config.model_type == "albert":
        depth, groups = config.num_hidden_layers, config.num_hidden_groups
        return encoder.encoder.albert_layer_groups, [
            int(i / (depth / groups)) for i in range(depth)
        ]
    trunk = encoder.transformer if config.model_type == "distilbert" else encoder.encoder
    return trunk.layer, list(range(len(trunk.layer)))


def _projection(encoder: Any) -> nn.Module:
    """What takes embeddings to the layers' width, where they differ."""
    config = encoder.config
    if config.model_type == "albert":
        return encoder.encoder.embedding_hidden_mapping_in
    if config.model_type == "electra" and config.embedding_size != config.hidden_size:
        return encoder.embeddings_project
    return nn.Identity()


def _pooler(encoder: Any) -> nn.Linear | None:
    pooler = getattr(encoder, "pooler", None)  # absent in some types, None in some instances
    if pooler is None or isinstance(pooler, nn.Linear):
        return pooler
    return pooler.dense


def _classifier(model: Any) -> Classifier | None:
    """The head of a task model that classifies whole rows, as its library's forward has it."""
    kind = model.config.model_type
    names = [f"{base.__module__}.{base.__name__}" for base in type(model).__mro__]
    own = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(kind)
    if not any(name.startswith("transformers.") and name.endswith(f".{own}") for name in names):
        return None
    if kind in ("bert", "albert"):
        pooler = model.base_model.pooler
        activation = pooler.activation if kind == "bert" else model.base_model.pooler_activation
        dense = pooler.dense if kind == "bert" else pooler
        read = FirstToken(pooler=dense, activation=activation, dropout=model.dropout)
        linear = model.classifier
    elif kind == "distilbert":
        read = FirstToken(dense=model.pre_classifier, activation=nn.ReLU(), dropout=model.dropout)
        linear = model.classifier
    else:
        head = model.classifier
        activation = head.activation if kind == "electra" else nn.Tanh()
        read = FirstToken(
            before=head.dropout, dense=head.dense, activation=activation, dropout=head.dropout
        )
        linear = head.out_proj
    return Classifier(linear, model.config.num_labels, read, _labels(model.config))


def _labels(config: Any) -> list[str] | None:
    """The classes' names, if they are more than numbers."""
    if config.num_labels == 1:
        return None
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    return None if all(label == f"LABEL_{i}" for i, label in enumerate(labels)) else labels
