"""Encoders of six layers, and how they are run and saved."""

import torch
from helpers import Text, assert_same, tensors
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
)

import multiexit as mx

H, A, LAYERS, CLASSES = 16, 4, 6, 3
SIZES = {
    "vocab_size": 60,
    "hidden_size": H,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": A,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**changes):
    return mx.wrap(BertModel(BertConfig(**{**SIZES, **changes})))


def albert(groups=1, **changes):
    sizes = {**SIZES, "embedding_size": 8, "num_hidden_groups": groups, **changes}
    return mx.wrap(AlbertModel(AlbertConfig(**sizes)))


def distilbert():
    sizes = {"vocab_size": 60, "dim": H, "n_layers": LAYERS, "n_heads": A, "hidden_dim": 32}
    return mx.wrap(DistilBertModel(DistilBertConfig(**sizes, max_position_embeddings=40)))


def electra():
    return mx.wrap(ElectraModel(ElectraConfig(**SIZES, embedding_size=8)))


MAKE = {
    "bert": bert,
    "albert": albert,
    "albert of 3 groups": lambda: albert(3),
    "distilbert": distilbert,
    "electra": electra,
}


def on(backbone, exits=None):
    """A model of one exit at the last stage."""
    return mx.MultiExitModel(backbone, CLASSES, exits or [backbone.num_stages - 1])


def batch(rows=5):
    train = Text()
    made = train.collate([train[row] for row in range(rows)])
    return {k: v for k, v in made.items() if k != "labels"}, made["labels"]


def by_hand(backbone, layers, inputs):
    """The last feature of a run through these layers alone."""
    carry = backbone.start(**inputs)
    for layer in layers:
        carry, feature = backbone.stage(carry, layer)
    return feature


def assert_saves(model, folder):
    """Saved, loaded and run again: the same to the last bit, in a plain encoder."""
    inputs, _ = batch()
    model.eval().save_pretrained(folder)
    again = mx.MultiExitModel.from_pretrained(folder)
    assert type(again.backbone).__name__ == "TransformerBackbone"
    assert_same(tensors(again), tensors(model))
    with torch.no_grad():
        assert torch.equal(again(**inputs), model(**inputs))
    prediction = again.predict(mx.FixedExit(again.num_exits - 1), **inputs)
    torch.testing.assert_close(prediction.logits_BC, model(**inputs)[-1].detach())
    assert again.cost() == model.cost()


def count_runs(backbone, run):
    """How often each distinct layer is run."""
    runs = [0] * len(backbone.layers)
    hooks = []
    for index, layer in enumerate(backbone.layers):
        hooks.append(
            layer.register_forward_hook(lambda *_, i=index: runs.__setitem__(i, runs[i] + 1))
        )
    run()
    for hook in hooks:
        hook.remove()
    return runs
