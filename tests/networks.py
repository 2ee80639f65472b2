"""Networks of five stages, small enough for every test."""

from torch import nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

import multiexit as mx

TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def bert() -> mx.Backbone:
    return mx.wrap(BertModel(BertConfig(**TINY, initializer_range=0.5)))


def albert() -> mx.Backbone:
    config = AlbertConfig(**TINY, embedding_size=8, num_hidden_groups=2, initializer_range=0.5)
    return mx.wrap(AlbertModel(config))


def mlp() -> mx.Backbone:
    return mx.wrap(nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(5))))


MAKE = {"bert": bert, "albert": albert, "resnet": lambda: mx.cifar_resnet(20), "mlp": mlp}
