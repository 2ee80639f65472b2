"""COSEE: rows weigh by how far each exit is from where they would leave."""

import math

import pytest
import torch
from accelerate import Accelerator
from helpers import Table, chain, config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import multiexit as mx
from multiexit.losses import topology
from multiexit.losses.weights.simulated import ExitDistances, SimulatedExits
from multiexit.training.stepper import Stepper


def naive_weights(logits_MBC, beta, draws):
    """Row by row, threshold by threshold, from numbers in 0..1 that place each threshold."""
    M, B, C = logits_MBC.shape
    doubts = [
        [
            -sum(float(p) * math.log(float(p)) for p in z.softmax(0) if p > 0) / math.log(C)
            for z in logits_BC
        ]
        for logits_BC in logits_MBC[:-1]
    ]
    low, high = min(map(min, doubts)), max(map(max, doubts))
    w = [[0.0] * B for _ in range(M)]
    for draw in draws:
        threshold = low + (high - low) * draw
        for b in range(B):
            exit = next((m for m in range(M - 1) if doubts[m][b] < threshold), M - 1)
            shares = [math.exp(-beta * abs(m - exit)) for m in range(M)]
            for m in range(M):
                w[m][b] += shares[m] / sum(shares) / len(draws)
    return torch.tensor(w)


@given(
    M=st.integers(2, 6),
    B=st.integers(1, 9),
    C=st.integers(2, 4),
    K=st.integers(1, 6),
    beta=st.floats(0, 12),
    progress=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_weights_by_plain_loops(M, B, C, K, beta, progress, seed):
    logits_MBC = 2 * torch.randn(M, B, C, generator=torch.Generator().manual_seed(seed))
    weights = ExitDistances(topology.none(M), beta, K)
    torch.manual_seed(seed)
    w_MB = weights.weigh(torch.rand(M, B), logits_MBC, progress)
    torch.manual_seed(seed)
    torch.rand(M, B)
    draws = torch.rand(K, 1, 1).flatten().tolist()
    torch.testing.assert_close(
        w_MB, naive_weights(logits_MBC, beta * progress, draws), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(w_MB.sum(0), torch.ones(B))


def test_one_exit_has_all_the_weight():
    weights = ExitDistances(topology.none(1), 10.0, 5)
    assert torch.equal(weights.weigh(torch.rand(1, 3), torch.randn(1, 3, 2), 0.5), torch.ones(1, 3))


def test_a_step_descends_the_weighted_rows_of_its_place_in_the_phase():
    train, rate, steps = Table(16), 0.3, 10
    batch = (train.x, train.labels)
    model, still = chain(4), chain(4)
    phase = mx.recipe("cosee", alpha=0.0).phases[0]
    stepper = Stepper(model, phase, config(lr=rate, momentum=0.0), Accelerator(cpu=True))
    torch.manual_seed(3)
    stepper.step([batch], lambda: [batch], 7, steps)
    stepper.close()
    z = still(train.x)
    own_MB = torch.stack([F.cross_entropy(z_BC, train.labels, reduction="none") for z_BC in z])
    torch.manual_seed(3)
    draws = torch.rand(5, 1, 1).flatten().tolist()
    w_MB = naive_weights(z.detach(), 10.0 * 7 / steps, draws)
    loss = (w_MB * own_MB).mean(1).sum()
    gradients = torch.autograd.grad(loss, list(still.parameters()))
    assert (w_MB - 1 / 4).abs().max() > 0.1
    for p, before, g in zip(model.parameters(), still.parameters(), gradients, strict=True):
        torch.testing.assert_close(p, before - rate * g, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be a number from 0, got -1.0"),
        ({"beta": math.inf}, "beta must be a number from 0, got inf"),
        ({"thresholds": 0}, "thresholds must be a whole number from 1, got 0"),
        ({"thresholds": 2.0}, "thresholds must be a whole number from 1, got 2.0"),
    ],
)
def test_what_simulates_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimulatedExits(**options)


def test_it_needs_one_class_a_row():
    model = mx.MultiExitModel(chain().backbone, 3, problem="multi-label")
    with pytest.raises(ValueError, match="one class a row, and the problem is 'multi-label'"):
        mx.Trainer(model, mx.recipe("cosee"), config())
