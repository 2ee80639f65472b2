"""ConsistentEE: the policy gradient without draws, and what gates learn by it."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import Scores, Table, chain, config, fit
from torch.nn import functional as F

import multiexit as mx
from multiexit.recipes import Seen
from multiexit.recipes.consistent import LeavingCost, leave, memorised

M, B, C = 4, 5, 3


def logits_and_gates(seed=0):
    generator = torch.Generator().manual_seed(seed)
    z_MBC = torch.randn(M, B, C, generator=generator, dtype=torch.float64)
    g_MB = torch.randn(M, B, generator=generator, dtype=torch.float64)
    return z_MBC.requires_grad_(), g_MB.requires_grad_()


def test_its_gradient_is_that_of_two_draws_against_their_mean_on_average(monkeypatch):
    """REINFORCE as in their code, over all pairs of exits that may be drawn.

    The mean of K rewards has a part of each, so that it takes 1/K of the gradient.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    alpha, labels_B = 0.2, torch.tensor([0, 1, 2, 0, 1])
    z_MBC, g_MB = logits_and_gates()
    cost = LeavingCost(alpha)(Seen((), {}, labels_B, z_MBC, g_MB.sigmoid(), []))
    wanted_z, wanted_g = torch.autograd.grad(cost, (z_MBC, g_MB))

    p_MB, average = leave(g_MB.sigmoid()), 0.0
    loss_MB = torch.stack([F.cross_entropy(z_BC, labels_B, reduction="none") for z_BC in z_MBC])
    share_B = memorised(z_MBC.argmax(-1) == labels_B) / M
    for row, pair in itertools.product(range(B), itertools.product(range(M), repeat=2)):
        rewards = [-loss_MB[m, row] - alpha * (m + 1) * (1 - share_B[row]) for m in pair]
        rewards = torch.stack(rewards).detach()
        log_p = p_MB[list(pair), row].log()
        policy = -((rewards - rewards.mean()) * log_p).mean()
        drawn = loss_MB[list(pair), row].mean() + policy
        average = average + log_p.sum().exp().detach() * drawn / B
    got_z, got_g = torch.autograd.grad(average, (z_MBC, g_MB))
    torch.testing.assert_close(got_z, wanted_z)
    torch.testing.assert_close(got_g, wanted_g / 2)


def test_rows_leave_somewhere():
    p_MB = leave(logits_and_gates()[1].sigmoid())
    torch.testing.assert_close(p_MB.sum(0), torch.ones(B, dtype=torch.float64))


def test_by_hand():
    """Half of the rows leave at the first of two exits."""

    def cost(first, label):
        z_MBC, half_MB = torch.tensor([[first], [[0.0, 99.0]]]), torch.tensor([[0.5], [1.0]])
        return float(LeavingCost(0.4)(Seen((), {}, torch.tensor([label]), z_MBC, half_MB, [])))

    # Right at the last exit alone: the first one's CE is log 2, and depth is free.
    assert cost([0.0, 0.0], 1) == pytest.approx(0.5 * 0.6931, abs=1e-4)
    # Right at both: half of 0.4 for each exit, and each CE is 0.
    assert cost([0.0, 99.0], 1) == pytest.approx(0.2 * (0.5 * 1 + 0.5 * 2))


@pytest.fixture(scope="module")
def by_price():
    """Mean layers and accuracy, by what an exit costs."""
    found = {}
    for alpha in (0.0, 0.03, 1.0):
        model, rows = chain(M, head="linear+gates"), Table(200)
        settings = config(epochs=20, batch_size=20, lr=0.05)
        fit(model, mx.recipe("consistentee", alpha=alpha), settings, rows, Table(50, seed=1))
        row = mx.judge(mx.collect(model, Table(200, seed=2)), model.policy)
        found[alpha] = row.mean_layers, row.score
    return found


def test_rows_leave_the_earlier_the_more_an_exit_costs(by_price):
    layers = [mean_layers for mean_layers, _ in by_price.values()]
    assert layers[0] > layers[2] + 0.5
    assert layers == sorted(layers, reverse=True)
    assert min(score for _, score in by_price.values()) > 0.85


def test_class_weights_count_in_the_reward():
    z_MBC, g_MB = logits_and_gates()
    labels_B = torch.tensor([0, 1, 2, 0, 1])
    seen = Seen((), {}, labels_B, z_MBC.float(), g_MB.sigmoid().float(), [])
    only = mx.Criterion(class_weights=(1.0, 0.0, 0.0))
    z_BC = seen.logits_MBC[:, labels_B == 0]
    alone = seen._replace(
        labels_B=labels_B[labels_B == 0],
        logits_MBC=z_BC,
        certainty_MB=seen.certainty_MB[:, labels_B == 0],
    )
    weighed = LeavingCost(0.0)(seen._replace(criterion=only))
    torch.testing.assert_close(weighed, LeavingCost(0.0)(alone))


def test_what_it_can_not_train_is_refused():
    with pytest.raises(ValueError, match="alpha must be a number from 0, got -1"):
        mx.recipe("consistentee", alpha=-1.0)
    with pytest.raises(ValueError, match=r"trains a gate at each early exit.*head='\+gates'"):
        fit(chain(M), "consistentee", config(), Table())
    one = chain(1, head="linear+gates")
    with pytest.raises(ValueError, match=r"this model of 1 exit\(s\).* has none"):
        fit(one, "consistentee", config(), Table())
    lone = mx.MultiExitModel(chain(M).backbone, 1, head="linear+gates")
    with pytest.raises(ValueError, match="of regression none is: use 'berxit'"):
        fit(lone, "consistentee", config(), Scores())
    joint = mx.recipe("joint").phases[0]
    with pytest.raises(ValueError, match="keeps 'last' or, by None, the best, not 'best'"):
        replace(joint, keep="best")
