"""Gradients changed on their way: without pulls against the anchor, and in equilibrium."""

import pytest
import torch
from helpers import CLASSES, WIDTH, Table, linear_chain
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit.losses import gradients
from multiexit.losses.gradients import Aggregation, Conflictless, equilibrium

# RomeBERT: gradients without pulls against the anchor

SHAPES = ((3, 2), (4,), (2, 2))


def drawn_gradients(generator, scale=1.0):
    return [scale * torch.randn(shape, generator=generator, dtype=torch.double) for shape in SHAPES]


def flat(tensors, shared):
    return torch.cat([t.flatten() for t, common in zip(tensors, shared, strict=True) if common])


@given(
    anchor=st.sampled_from(["last", "early"]),
    seed=st.integers(0, 99_999),
    pull=st.floats(-3, 3),
    shared=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@settings(max_examples=150, deadline=None)
def test_the_altered_gradient_never_opposes_the_anchor(anchor, seed, pull, shared):
    generator = torch.Generator().manual_seed(seed)
    g = drawn_gradients(generator)
    e = [pull * a + b for a, b in zip(g, drawn_gradients(generator), strict=True)]
    merged = Conflictless(anchor).merge([g, e], shared)
    plain = [a + b for a, b in zip(g, e, strict=True)]
    for got, summed, common in zip(merged, plain, shared, strict=True):
        if not common:
            assert torch.equal(got, summed)
    if not any(shared):
        return
    anchor_g, other_e, together = (flat(some, shared) for some in (g, e, merged))
    left = together - anchor_g
    if other_e @ anchor_g >= 0:
        torch.testing.assert_close(together, flat(plain, shared), rtol=0, atol=0)
    else:  # the pull is gone, and nothing but the pull
        assert abs(float(left @ anchor_g)) < 1e-9 * float(anchor_g.norm() * other_e.norm() + 1)
        taken = other_e - left
        torch.testing.assert_close(taken, (taken @ anchor_g) / (anchor_g @ anchor_g) * anchor_g)
    assert together @ anchor_g >= anchor_g @ anchor_g * (1 - 1e-9)
    # How long the anchor is doesn't matter, only where it points.
    longer = Conflictless(anchor).merge([[7 * t for t in g], e], shared)
    torch.testing.assert_close(flat(longer, shared) - 7 * anchor_g, left)


def test_an_anchor_of_zero_changes_nothing():
    e = drawn_gradients(torch.Generator().manual_seed(0))
    zero = [torch.zeros_like(t) for t in e]
    merged = Conflictless().merge([zero, e], [True] * 3)
    assert all(torch.equal(one, two) for one, two in zip(merged, e, strict=True))


def test_the_anchor_s_part_comes_first_and_parts_sum_to_the_whole():
    factors_MM = torch.arange(9.0).reshape(3, 3)
    for anchor, own in (("last", [False, False, True]), ("early", [True, True, False])):
        first, second = Conflictless(anchor).split(factors_MM)
        assert torch.equal(first + second, factors_MM)
        assert torch.equal(first, factors_MM * torch.tensor(own).unsqueeze(1))
    with pytest.raises(ValueError, match="anchor of recipe 'romebert' must be 'last' or 'early'"):
        mx.recipe("romebert", anchor="first")


# Aggregation by TorchJD, of which test_aggregation.py has the rest


def test_what_cannot_be_had_is_refused_at_once(monkeypatch):
    with pytest.raises(ValueError, match="no aggregation 'sum'; there are cagrad, pcgrad, upgrad"):
        Aggregation("sum")
    with pytest.raises(ValueError, match="aggregation of recipe 'joint' must be 'upgrad' or"):
        mx.recipe("joint", aggregation="sum")
    monkeypatch.setattr(gradients, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'upgrad' needs torchjd, which isn't installed: pip"):
        mx.recipe("joint", aggregation="upgrad")


# ElasticBERT: gradient equilibrium


@given(
    stages=st.integers(1, 6),
    keep=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 99_999),
)
@settings(max_examples=20, deadline=None)
def test_each_stage_gets_the_mean_of_what_the_exits_above_it_ask_for(stages, keep, seed):
    exits = [stage for stage in range(stages - 1) if keep[stage]] + [stages - 1]
    model = linear_chain(exits=exits, stages=stages, seed=seed).double()
    x = torch.randn(5, WIDTH, dtype=torch.double)
    pull_MBC = torch.randn(len(exits), 5, CLASSES, dtype=torch.double)
    balanced = model.run((x,), {}, equilibrium).logits_MBC
    plain = model(x)
    assert torch.equal(balanced, plain), "what exits say stays"
    (balanced * pull_MBC).sum().backward()
    named = dict(model.named_parameters())
    raw = [
        torch.autograd.grad(asked, named.values(), retain_graph=True, allow_unused=True)
        for asked in (plain * pull_MBC).sum((1, 2))
    ]
    for index, (name, p) in enumerate(named.items()):
        total = sum(r[index] for r in raw if r[index] is not None)
        if name.startswith("backbone."):
            stage = int(name.split(".")[2])
            total = total / sum(exit >= stage for exit in exits)
        torch.testing.assert_close(p.grad, total, msg=lambda m, n=name: n + m)


def test_embeddings_get_the_mean_over_all_exits():
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    bert = BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=10))
    model = mx.MultiExitModel(mx.wrap(bert), CLASSES, head="linear").eval()
    ids = torch.randint(5, 30, (4, 6))
    words = bert.embeddings.word_embeddings.weight
    balanced = model.run((), {"input_ids": ids}, equilibrium).logits_MBC
    own = balanced.square().sum()
    (found,) = torch.autograd.grad(own, words)
    (wanted,) = torch.autograd.grad(model(input_ids=ids).square().sum() / 3, words)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_equilibrium_keeps_the_trunk_s_gradient_level_by_hand():
    """Stages that pass everything on and equal heads: each exit asks for the same g."""
    stages = [nn.Linear(WIDTH, WIDTH) for _ in range(5)]
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(*stages)), CLASSES)
    with torch.no_grad():
        for stage, head in zip(stages, model.heads, strict=True):
            stage.weight.copy_(torch.eye(WIDTH))
            stage.bias.zero_()
            head.load_state_dict(model.heads[-1].state_dict())
    x, y = Table(8).x, Table(8).labels

    def asked(branch):
        logits_MBC = model.run((x,), {}, branch).logits_MBC
        loss = sum(F.cross_entropy(logits_BC, y) for logits_BC in logits_MBC)
        return torch.autograd.grad(loss, [stage.bias for stage in stages])

    g = asked(None)[-1]
    for stage, (level, grown) in enumerate(zip(asked(equilibrium), asked(None), strict=True)):
        torch.testing.assert_close(level, g)
        torch.testing.assert_close(grown, (5 - stage) * g)
