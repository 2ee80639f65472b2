"""Zero Time Waste's heads: a cascade, then votes."""

import math

import pytest
import torch
from helpers import CLASSES, Table, linear_chain, stage_features
from torch.nn import functional as F

M = 4


def cascade_model(seed=1):
    """Linear stages whose early heads read each other; norms and votes are not as they started."""
    model = linear_chain("linear+cascade", seed=seed)
    with torch.no_grad():
        for head in model.heads[:-1]:
            head.vote.w.copy_(torch.randn(len(head.vote.w)))
            head.vote.b.copy_(torch.randn(CLASSES))
            if head.norm is not None:
                head.norm.weight.copy_(torch.rand(CLASSES) + 0.5)
                head.norm.bias.copy_(torch.randn(CLASSES))
    return model


def switch(model, on=True):
    for head in model.heads[:-1]:
        head.vote.on.fill_(on)
    return model


def naive_cascade(model, x):
    """z_m of the early exits, each one layer on the feature and the normed logits before it."""
    found = []
    for m, feature in enumerate(stage_features(model, x)[:-1]):
        head = model.heads[m]
        if m == 0:
            found.append(feature @ head.base.linear.weight.T + head.base.linear.bias)
            continue
        rows = []
        for row, before in zip(feature, found[-1], strict=True):
            away = before - sum(before) / CLASSES
            deviation = (sum(away**2) / CLASSES + 1e-5) ** 0.5
            normed = head.norm.weight * away / deviation + head.norm.bias
            both = torch.cat([head.base.linear.weight, head.joint.weight], 1)
            rows.append(both @ torch.cat([row, normed]) + head.base.linear.bias)
        found.append(torch.stack(rows))
    return found


@torch.no_grad()
def test_a_cascade_is_one_layer_on_the_feature_and_the_normed_logits_before():
    model, x = cascade_model(), Table(7).x
    z = model(x)
    for m, wanted in enumerate(naive_cascade(model, x)):
        torch.testing.assert_close(z[m], wanted, atol=1e-5, rtol=1e-5)
    last = model.heads[-1].base.linear
    torch.testing.assert_close(z[-1], stage_features(model, x)[-1] @ last.weight.T + last.bias)


@torch.no_grad()
def test_votes_are_weighted_mean_log_probabilities():
    model, x = cascade_model(), Table(5).x
    off, on = model(x), switch(model)(x)
    z = naive_cascade(model, x)
    for m in range(M - 1):
        vote = model.heads[m].vote
        for row in range(len(x)):
            for k in range(CLASSES):
                total = 0.0
                for j in range(m + 1):
                    p = math.exp(z[j][row, k]) / sum(math.exp(v) for v in z[j][row])
                    total += math.exp(vote.w[j]) * math.log(p) / (m + 1)
                assert float(on[m, row, k]) == pytest.approx(total + float(vote.b[k]), abs=1e-4)
    assert torch.equal(on[-1], off[-1]), "the network's own answer has no vote"
    assert torch.equal(switch(model, on=False)(x), off)


def test_a_head_s_loss_never_reaches_the_head_before():
    model, train = cascade_model(), Table()
    z = model(train.x)
    for m in range(1, M - 1):
        loss = F.cross_entropy(z[m], train.labels)
        others = [p for i in range(M) if i != m for p in model.heads[i].parameters()]
        found = torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True)
        assert all(g is None or g.abs().max() == 0 for g in found)
        own = torch.autograd.grad(loss, model.heads[m].joint.weight, retain_graph=True)[0]
        assert own.abs().max() > 0


def test_a_cascade_votes_on_classes_alone():
    with pytest.raises(ValueError, match=r"'\+cascade' votes on one distribution .*heads w"):
        linear_chain("linear+cascade", classes=1)
