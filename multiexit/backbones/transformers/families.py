"""A row for each type of transformers' encoders, which is all that a new one takes.

A type fits if its layers run one after another on hidden states and a mask. Parts are named as the
library has them, with dots.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn


class Family(NamedTuple):
    """The places of the parts of one type's networks, and what they read.

    Args:
        read: of a `…ForSequenceClassification`, what lies between the first token's feature and
            the last layer, by the names that it has in `FirstToken`; a class where the library has
            a function.
        linear: of the same, its last layer.
        layers: of the encoder, its layers, each once.
        groups: the setting that counts the layers where they are shared; None where none is.
        blocks: of a layer, the blocks with an attention each; None where it is one block.
        inward: of a block, the attention's queries, keys and values.
        outward: of a block, the attention's output.
        projection: of the encoder, from the embeddings' width to the layers', where they differ.
        segments: whether the embeddings read `token_type_ids`.
    """

    read: Mapping[str, str | type[nn.Module]]
    linear: str
    layers: str = "encoder.layer"
    groups: str | None = None
    blocks: str | None = None
    inward: tuple[str, str, str] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    )
    outward: str = "attention.output.dense"
    projection: str | None = None
    segments: bool = True


_BERT = Family(
    read={
        "pooler": "base_model.pooler.dense",
        "activation": "base_model.pooler.activation",
        "dropout": "dropout",
    },
    linear="classifier",
)
_ROBERTA = Family(
    read={
        "before": "classifier.dropout",
        "dense": "classifier.dense",
        "activation": nn.Tanh,
        "dropout": "classifier.dropout",
    },
    linear="classifier.out_proj",
)

FAMILIES: dict[str, Family] = {
    "albert": Family(
        read={
            "pooler": "base_model.pooler",
            "activation": "base_model.pooler_activation",
            "dropout": "dropout",
        },
        linear="classifier",
        layers="encoder.albert_layer_groups",
        groups="num_hidden_groups",
        blocks="albert_layers",
        inward=("attention.query", "attention.key", "attention.value"),
        outward="attention.dense",
        projection="encoder.embedding_hidden_mapping_in",
    ),
    "bert": _BERT,
    "camembert": _ROBERTA,
    "distilbert": Family(
        read={"dense": "pre_classifier", "activation": nn.ReLU, "dropout": "dropout"},
        linear="classifier",
        layers="transformer.layer",
        inward=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        outward="attention.out_lin",
        segments=False,
    ),
    "electra": _ROBERTA._replace(
        read={**_ROBERTA.read, "activation": "classifier.activation"},
        projection="embeddings_project",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""By `model_type`."""


def part(module: Any, name: str) -> Any:
    """The part of this name, or None where there is none."""
    for step in name.split("."):
        module = getattr(module, step, None)
    return module
