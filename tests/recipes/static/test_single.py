"""One exit: what it says, how it is fine-tuned, and its row beside the full network's."""

import copy
from dataclasses import replace

import pytest
import torch
from encoders import STILL, assert_saves, batch, bert, distilbert, on
from helpers import Text, config, fit, tensors
from torch.nn import functional as F

import multiexit as mx
from multiexit.data.order import split_epoch
from multiexit.recipes import static


def test_a_single_exit_says_what_the_last_one_said():
    inputs, _ = batch()
    model = on(bert(), [1, 3]).eval()
    model.temperature_M.copy_(torch.tensor([1.0, 2.0]))
    one = static.single_exit(model)
    assert one.exits == (3,)
    assert torch.equal(one(**inputs)[0], model(**inputs)[1])
    assert not one.training
    with torch.no_grad():
        one.heads[0].linear.weight.zero_()
    assert model.heads[1].linear.weight.abs().sum() > 0
    with pytest.raises(ValueError, match="reads features"):
        static.single_exit(model, bert(hidden_size=32))


def test_fine_tuning_is_ordinary_cross_entropy():
    train, rate = Text(), 0.1
    model = on(static.first_layers(bert(**STILL), 2))
    model.heads[0].dropout.p = 0.0
    still = copy.deepcopy(model)
    run = config(max_steps=1, batch_size=len(train), momentum=0.0, lr=rate)
    history = fit(model, static.fine_tune(), run, train)
    whole = train.collate([train[row] for row in split_epoch(len(train), 0, 0, False)[0]])
    labels = whole.pop("labels")
    loss = F.cross_entropy(still(**whole)[0], labels)
    assert history.steps[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    for after, before in zip(model.parameters(), still.parameters(), strict=True):
        slope = torch.zeros_like(before) if before.grad is None else before.grad
        torch.testing.assert_close(after, before - rate * slope, atol=1e-5, rtol=1e-4)


def test_distilbert_is_wrapped_fine_tuned_and_saved(tmp_path):
    model = on(distilbert())
    before = tensors(model)
    fit(model, static.fine_tune(), config(max_steps=2, output=tmp_path), Text())
    still = [k for k, v in model.named_parameters() if torch.equal(v, before[k])]
    assert not still
    assert_saves(model, tmp_path / "again")
    assert mx.MultiExitModel.from_pretrained(tmp_path / "model").policy == mx.FixedExit(0)


def test_a_static_row_beside_those_of_the_full_network():
    full, model = on(bert()).cost(), on(static.first_layers(bert(), 2))
    outputs = mx.collect(model, Text())
    (row,) = mx.sweep(outputs, [mx.FixedExit(0)])
    assert (row.speedup_layers, row.speedup_macs) == (1, 1)
    beside = static.relative_to(row, model.cost(), full, time=2.5)
    assert beside.speedup_layers == 3
    assert beside.speedup_macs == full.full_macs / model.cost().macs_M[0]
    assert beside.speedup_time == 2.5
    assert replace(beside, speedup_layers=1, speedup_macs=1, speedup_time=None) == row
    with pytest.raises(ValueError, match="has 6"):
        static.relative_to(row, on(bert(), "all").cost(), full)
