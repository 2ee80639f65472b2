"""Calibrated confidences."""

import math

import numpy as np
import pytest
import torch
from helpers import CLASSES, Table, linear_chain
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx

M = 4


def nll(logits_BC, labels_B, temperature):
    log_p = (logits_BC.double() / temperature).log_softmax(-1)
    return float(-log_p[torch.arange(len(labels_B)), labels_B].mean())


@given(seed=st.integers(0, 99_999), scale=st.floats(0.05, 20))
@settings(max_examples=12, deadline=None)
def test_temperatures_make_labels_likeliest(seed, scale):
    model, train = linear_chain(seed=seed), Table(30, seed)
    train.labels = torch.randint(CLASSES, (30,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for head in model.heads:
            head.linear.weight.mul_(scale)
            head.linear.bias.mul_(scale)
    raw = mx.collect(model, train)
    mx.fit_temperatures(model, raw)
    calibrated = mx.collect(model, train)
    assert torch.equal(raw.logits_MBC.argmax(-1), calibrated.logits_MBC.argmax(-1))
    grid = np.exp(np.linspace(math.log(0.01), math.log(100), 400))
    for m in range(M):
        best = min(nll(raw.logits_MBC[m], train.labels, t) for t in grid)
        assert nll(calibrated.logits_MBC[m], train.labels, 1.0) <= best + 1e-5
    # What is calibrated stays as it is; from the same outputs to the bit.
    once = model.temperature_M.clone()
    mx.fit_temperatures(model, raw)
    assert torch.equal(model.temperature_M, once)
    mx.fit_temperatures(model, raw.take(torch.arange(30)))
    assert torch.equal(model.temperature_M, once)
    mx.fit_temperatures(model, calibrated)
    inside = (once > 0.011) & (once < 99)
    torch.testing.assert_close(model.temperature_M[inside], once[inside], rtol=1e-2, atol=0)


def test_outputs_of_other_exits_are_refused():
    logits_MBC, labels_B = torch.randn(3, 20, 2), torch.arange(20) % 2
    model = linear_chain(classes=2, stages=3)
    outputs = mx.Outputs(logits_MBC, labels_B, model.cost())
    for other in (linear_chain(classes=2, stages=2), linear_chain(classes=3, stages=3)):
        with pytest.raises(ValueError, match="outputs are of 3 exits and 2 classes, and the model"):
            mx.fit_temperatures(other, outputs)
        assert torch.equal(other.temperature_M, torch.ones(other.num_exits))


def test_a_temperature_at_the_end_of_its_range_is_warned_of():
    model = linear_chain(classes=2)
    labels_B = torch.arange(20) % 2
    right_BC = torch.nn.functional.one_hot(labels_B, 2).double()
    logits_MBC = torch.stack([right_BC / 20, -right_BC, right_BC, right_BC])
    logits_MBC[2:, :5] = 1 - logits_MBC[2:, :5]  # a quarter wrong, as T = 1 / log 3 says
    outputs = mx.Outputs(logits_MBC, labels_B, model.cost())
    with pytest.warns(UserWarning, match="end of what is tried") as warned:
        mx.fit_temperatures(model, outputs)
    said = [str(one.message) for one in warned]
    assert [message[:7] for message in said] == ["exit 0:", "exit 1:"]
    assert "0.01, since hardly an answer" in said[0]
    assert "100, since answers hardly tell" in said[1]
    assert model.temperature_M[2] == pytest.approx(1 / math.log(3), rel=1e-3)


def test_values_have_no_temperature():
    model = linear_chain(classes=1)
    outputs = mx.Outputs(torch.zeros(M, 2, 1), torch.zeros(2), model.cost())
    with pytest.raises(ValueError, match=r"a temperature needs at least 2 classes.*Patience"):
        mx.fit_temperatures(model, outputs)
