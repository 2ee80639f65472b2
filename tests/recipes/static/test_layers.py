"""Fewer layers, against the network with those layers alone."""

import json

import pytest
import torch
from encoders import CLASSES, LAYERS, SIZES, H, albert, assert_saves, batch, bert, by_hand, on
from helpers import assert_same, tensors
from transformers import BertConfig, BertForSequenceClassification

import multiexit as mx
from multiexit.backbones import rebuild
from multiexit.recipes import static


@pytest.mark.parametrize("layers", [[0, 1, 2], [0, 2, 5], [3], list(range(LAYERS))])
def test_kept_layers_are_those_layers(backbone, layers, tmp_path):
    inputs, _ = batch()
    before = tensors(backbone)
    short = static.keep_layers(backbone, layers)
    with torch.no_grad():
        wanted = by_hand(backbone, layers, inputs)
        assert torch.equal(by_hand(short, range(len(layers)), inputs), wanted)
        for p in short.parameters():
            p.zero_()
    assert_same(tensors(backbone), before)  # copied, not shared
    assert short.num_stages == short.config.num_hidden_layers == len(layers)
    assert rebuild(json.loads(json.dumps(short.spec))).order == short.order
    assert_saves(on(static.keep_layers(backbone, layers)), tmp_path)


def test_parameters_and_macs_fall_by_whole_layers():
    full, short = on(bert()).cost(), on(static.first_layers(bert(), 2)).cost()
    per_layer = sum(p.numel() for p in bert().layers[0].parameters())
    assert full.params_M[0] - short.params_M[0] == 4 * per_layer
    T, inner = 40, 32
    per_layer = 4 * T * H * H + 2 * T * T * H + 2 * T * H * inner
    assert full.macs_M[0] - short.macs_M[0] == 4 * per_layer


def test_albert_stays_shared_and_drops_groups_that_nobody_runs():
    whole, short = albert(3), static.keep_layers(albert(3), [0, 4, 5])
    assert whole.order == [0, 0, 1, 1, 2, 2]
    assert short.order == [0, 1, 1]
    assert len(short.layers) == short.config.num_hidden_groups == 2
    assert short.stage_module(1) is short.stage_module(2)
    uneven = static.keep_layers(albert(2), [0, 3, 4, 5])
    assert uneven.order == [0, 1, 1, 1]  # not what the configuration alone would say
    assert rebuild(uneven.spec).order == [0, 1, 1, 1]


def test_pooler_and_classifier_come_along():
    task = BertForSequenceClassification(BertConfig(**SIZES, num_labels=CLASSES))
    short = static.first_layers(mx.wrap(task), 2)
    model = on(short)
    assert torch.equal(model.heads[0].linear.weight, task.classifier.weight)
    own = model.heads[0].read.layers.pooler
    assert torch.equal(own.weight, task.bert.pooler.dense.weight)


def test_spread_layers_are_the_papers_every_other():
    for depth in (12, 24):
        for every in (2, 3, 4, 6, 12):  # 1/p
            kept = [d - 1 for d in range(1, depth + 1) if d % every != 0]
            assert static.spread_layers(depth, len(kept)) == kept
    assert static.spread_layers(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14]  # fairseq's own example


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [0, 6], [-1, 2], "01", 3])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match=r"rise within 0\.\.5"):
        static.keep_layers(bert(), layers)


def test_what_cannot_be_shortened_is_refused():
    with pytest.raises(ValueError, match="BERT-like"):
        static.keep_layers(mx.cifar_resnet(20), [0])
    with pytest.raises(ValueError, match=r"\.inner"):
        static.first_layers(static.LayerDrop(bert()), 2)
    for n in (0, 7, 2.0, True):
        with pytest.raises(ValueError, match=r"1\.\.6"):
            static.first_layers(bert(), n)
