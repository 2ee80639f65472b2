"""Backbones of one's own: what breaks the rules of a batch is refused when a model is made."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn

import multiexit as mx


class Steps(mx.Backbone):
    """Three stages of one layer each; subclasses change one thing."""

    def __init__(self):
        super().__init__(feature_shapes=[(4,)] * 3)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.seen = []

    def start(self, x):
        return {"x": x}

    def stage(self, carry, index):
        x = torch.tanh(self.layers[index](carry["x"]))
        self.seen.append(len(x))
        return {**carry, "x": x}, x

    def stage_module(self, index):
        return self.layers[index]

    def example_inputs(self, batch=1):
        return {"x": torch.zeros(batch, 4)}


class Centred(Steps):
    def stage(self, carry, index):
        carry, x = super().stage(carry, index)
        return carry, x - x.mean(0)


class CentredAtStart(Steps):
    def start(self, x):
        return {"x": x - x.mean(0)}


class Table(Steps):
    """A constant as long as the batch of two that is tried."""

    size = 2

    def start(self, x):
        return {"x": x, "more": {"table": torch.ones(self.size, 4)}}


class LongTable(Table):
    size = 7


class Scalar(Steps):
    def start(self, x):
        return {"x": x, "scale": torch.tensor(2.0)}


class Places(Steps):
    """Rows are looked up by the places that they had at the start."""

    def start(self, x):
        return {"x": x, "place": torch.arange(len(x))}

    def stage(self, carry, index):
        carry, x = super().stage(carry, index)
        return carry, x[carry["place"]]


class Tuple(Steps):
    def start(self, x):
        return (x,)

    def stage(self, carry, index):
        return carry, torch.tanh(self.layers[index](carry[0]))


class Tokens(Steps):
    """Tokens' embeddings, centred over the batch: rows that differ are needed to see it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def start(self, input_ids, attention_mask):
        x = (self.table(input_ids) * attention_mask[..., None]).mean(1)
        return {"x": x - x.mean(0)}

    def example_inputs(self, batch=1):
        ones = torch.ones(batch, 5, dtype=torch.long)
        return {"input_ids": ones, "attention_mask": ones}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Centred, "Centred.stage 0: a row's feature depends on the other rows of its batch"),
        (CentredAtStart, "CentredAtStart.stage 0: a row's feature depends on the other rows"),
        (Table, "Table.start(): more: the carry's 'table' is (2, 4) for 1 row(s)"),
        (LongTable, "LongTable.start(): more: the carry's 'table' is (7, 4) for 2 row(s)"),
        (Scalar, "Scalar.start(): the carry's 'scale' is () for 2 row(s)"),
        (Places, "Places.stage 1 runs on two rows, and not on one of them"),
        (Tuple, "Tuple.start() gives a tuple as carry, and a carry is a dict"),
        (Tokens, "Tokens.stage 0: a row's feature depends on the other rows"),
    ],
)
def test_what_breaks_the_rules_of_a_batch_is_refused(kind, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mx.MultiExitModel(kind(), num_classes=3)


def test_it_is_seen_where_a_model_is_loaded_too():
    backbone = Centred()
    with torch.device("meta"), pytest.raises(ValueError, match="depends on the other rows"):
        mx.MultiExitModel(backbone, num_classes=3)


class Normed(Steps):
    """Batch norm, dropout and layers left out in training, as stochastic depth does."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def stage(self, carry, index):
        if self.training and torch.rand(()) < 0.5:
            return carry, carry["x"]
        carry, x = super().stage(carry, index)
        return carry, self.drop(self.norm(x))


class Experts(Steps):
    """Each row runs through the one layer that its largest number says."""

    def stage(self, carry, index):
        x, choice = carry["x"], carry["x"][:, :3].argmax(1)
        out = torch.zeros_like(x)
        for expert, layer in enumerate(self.layers):
            out[choice == expert] = layer(x[choice == expert])
        return {"x": out}, out


class Drawn(Steps):
    """Draws in evaluation too, so that one call isn't like the next."""

    def stage(self, carry, index):
        carry, x = super().stage(carry, index)
        random.random(), np.random.rand()
        return carry, x + torch.randn_like(x)


class Picky(Steps):
    """Takes no other rows than its example's."""

    def start(self, x):
        if x.any():
            raise RuntimeError("zeros, please")
        return super().start(x)


@pytest.mark.parametrize("kind", [Normed, Experts, Drawn, Picky])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_legitimate_networks_are_taken_and_left_as_they_were(kind, dtype):
    backbone = kind().to(dtype).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    mx.MultiExitModel(backbone, num_classes=3, head=lambda shape, C: nn.Identity())
    drawn = torch.rand(()), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert drawn == (torch.rand(()), np.random.rand(), random.random())
    assert all(part.training for part in backbone.modules())
    after = backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_three_rows_run_through_the_stages_once():
    backbone = Steps()
    mx.MultiExitModel(backbone, num_classes=3)
    assert backbone.seen == [2, 1] * 3
