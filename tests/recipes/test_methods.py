"""What only one method has, proven for it: what it freezes, balances, projects or calibrates."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import (
    CLASSES,
    WIDTH,
    Table,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    fit,
    images,
    tensors,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit.evaluation import budget, metrics
from multiexit.losses import topology, weights
from multiexit.losses.gradients import Conflictless, equilibrium
from multiexit.losses.weights.rows import MetaWeights, WeightNet, allot
from multiexit.model.heads import CascadedHead
from multiexit.recipes.base import Seen
from multiexit.recipes.labels import certainty_loss
from multiexit.training.stepper import Stepper

M, ROWS = 4, 40


def linear_chain(head=None, exits="all", classes=CLASSES, stages=M, seed=1):
    """Linear stages with a head of one's choice."""
    model = mx.MultiExitModel(chain(stages, seed=seed).backbone, classes, exits, head)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def through(model, x):
    """The feature after each stage."""
    found = []
    for stage in range(model.backbone.num_stages):
        x = model.backbone.stage_module(stage)(x)
        found.append(x)
    return found


def one_phase(recipe, index):
    """The recipe with a single one of its phases."""
    return replace(recipe, phases=(recipe.phases[index],), finish=None)


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


# Methods in stages: what was trained before stands still

STAGED = {
    "deebert": "own-pooler",
    "fastbert": "linear",
    "shallow-deep-heads": "mixed-pool",
    "ztw": "linear+cascade",
}


@pytest.mark.parametrize("name", STAGED)
def test_after_the_first_phase_the_network_stands_still(name):
    """To the last bit, with its BatchNorm statistics, and without dropout while heads train."""
    model, kept = convnet(dropout=0.5, head=STAGED[name]), []

    def watch(seen):
        if seen.args:  # not the trainer's look at the model before it starts
            kept.append((seen.args[0], seen.features[-1].detach().clone()))
        return seen.logits_MBC.sum() * 0

    recipe = mx.recipe(name)
    later = tuple(replace(phase, extra=watch) for phase in recipe.phases[1:])
    before = tensors(model)
    settings = config(optimizer="adamw", weight_decay=0.1, lr=0.01)
    fit(model, replace(recipe, phases=later), settings, images())
    moved = changed(before, tensors(model))
    early = {k for k in before if k.startswith("heads.") and not k.startswith(f"heads.{M - 1}.")}
    assert moved == early
    model.eval()
    assert len(kept) == 10 * len(later)
    for x, feature in kept:
        with torch.no_grad():
            assert torch.equal(model.run((x,), {}, keep_features=True).features[-1], feature)


class NoLabels(Dataset):
    """The inputs of a table alone."""

    def __init__(self, table):
        self.x = table.x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return (self.x[row],)


def test_fastberts_students_never_see_a_label():
    def trained(unlabelled=None):
        model = chain(dropout=0.3)
        history = mx.Trainer(model, mx.recipe("fastbert"), config()).fit(Table(), None, unlabelled)
        return tensors(model), history

    shuffled = Table()
    shuffled.labels = shuffled.labels[torch.randperm(ROWS)]
    with_labels, history = trained()
    for rows in (shuffled, NoLabels(Table())):
        without, same = trained(rows)
        assert_same(with_labels, without)
        assert same.steps == history.steps
    # 40 rows in batches of 8 over two epochs; students have ten times the rate.
    assert [row["phase"] for row in history.steps] == [0] * 10 + [1] * 10
    assert [row["lr"] for row in history.steps] == pytest.approx([0.1] * 10 + [1.0] * 10)
    # Other rows teach other things, and as many as there are.
    other, fewer = trained(NoLabels(Table(16, seed=5)))
    assert [row["phase"] for row in fewer.steps] == [0] * 10 + [1] * 4
    assert all("heads." in name for name in changed(with_labels, other))
    assert changed(with_labels, other)


def test_rows_without_labels_are_refused_where_they_would_be_read():
    model = chain()
    before = tensors(model)
    with pytest.raises(ValueError, match=r"'pabee' learns from labels.*FastBERT"):
        mx.Trainer(model, mx.recipe("pabee"), config()).fit(Table(), None, NoLabels(Table()))
    with pytest.raises(ValueError, match="labels"):
        mx.Trainer(model, mx.recipe("fastbert"), config()).fit(NoLabels(Table()))
    assert_same(before, tensors(model))


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    model = chain()
    with torch.no_grad():
        for head in model.heads:  # all exits say the same of every row
            head.linear.weight.zero_()
            head.linear.bias.copy_(torch.tensor([0.3, -1.0, 2.0]))
    before = tensors(model)
    history = fit(model, one_phase(mx.recipe("fastbert"), 1), config(), Table())
    assert all(abs(row["loss"]) < 1e-6 for row in history.steps)
    for name, value in tensors(model).items():
        torch.testing.assert_close(value, before[name], atol=1e-5, rtol=0)
    with torch.no_grad():
        model.heads[0].linear.bias.add_(torch.tensor([1.0, 0.0, 0.0]))
    (loss,) = {row["loss"] for row in history.steps[:1]}
    again = fit(model, one_phase(mx.recipe("fastbert"), 1), config(), Table())
    assert again.steps[0]["loss"] > 0.05 > again.steps[-1]["loss"] > loss - 1e-6


# Phases: what is judged, and what the next one starts from


@pytest.fixture
def crafted(monkeypatch):
    """A metric whose scores are told beforehand, one for each exit and epoch."""

    def tell(*scores):
        given = iter((0.0, *scores))  # it is tried once before
        monkeypatch.setitem(
            metrics.METRICS, "crafted", lambda predicted, labels: {"score": next(given)}
        )

    return tell


def test_a_phase_is_judged_by_the_exits_it_trains_and_the_next_starts_from_its_best(crafted):
    crafted(
        *(0.9, 0.9, 0.1),
        *(0.1, 0.1, 0.6),  # the last exit's best
        *(0.9, 0.9, 0.5),
        *(0.5, 0.5, 0.0),
        *(0.4, 0.7, 0.0),  # the early exits' best: 0.55 on average
        *(0.1, 0.1, 1.0),  # all exits' best
    )
    model = chain(3)
    recipe = mx.recipe("deebert")
    history = fit(model, recipe, config(epochs=3, metric="crafted"), Table(), Table(9))
    assert [row["mean"] for row in history.epochs] == pytest.approx([0.1, 0.6, 0.5, 0.5, 0.55, 0.1])
    assert (history.best["phase"], history.best["epoch"]) == (1, 1)
    by_hand = chain(3)
    first, second = recipe.phases
    until = replace(recipe, phases=(replace(first, epochs=2), replace(second, epochs=2)))
    fit(by_hand, until, config(), Table())
    assert_same(tensors(model), tensors(by_hand))


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
    with pytest.raises(ValueError, match="anchor must be 'last' or 'early'"):
        mx.recipe("romebert", anchor="first")


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


# BERxiT: learning to exit


def seen(logits_MBC, labels_B, certainty_MB):
    return Seen((), {}, labels_B, logits_MBC, certainty_MB, [])


def test_how_certain_an_exit_should_be_by_hand():
    # Exit 0 is right on rows 0 and 2, exit 1 on row 1 alone; ties go to class 0.
    logits_MBC = torch.tensor([[[2.0, 1], [3, 0], [0, 9]], [[0, 1], [-1, 5], [1, 1]]])
    labels_B = torch.tensor([0, 1, 1])
    u_MB = torch.tensor([[0.9, 0.2, 0.5], [0.25, 1.0, 0.0]])
    off = (0.1**2 + 0.2**2 + 0.5**2 + 0.25**2 + 0.0 + 0.0) / 6
    assert float(certainty_loss(seen(logits_MBC, labels_B, u_MB))) == pytest.approx(off)
    # tanh(0.5493) = 0.5: that far off is half certain, on either side.
    half = math.atanh(0.5)
    logits_MB1 = torch.tensor([[[2.0 + half], [2.0 - half], [2.0], [99.0]]])
    u_MB = torch.tensor([[0.5, 0.4, 0.9, 0.2]])
    off = (0.0 + 0.1**2 + 0.1**2 + 0.2**2) / 4
    found = certainty_loss(seen(logits_MB1, torch.full((4,), 2.0), u_MB))
    assert float(found) == pytest.approx(off, rel=1e-5)


@pytest.mark.parametrize("classes", [1, CLASSES])
def test_certainty_teaches_the_trunk_but_not_the_answers(classes):
    model = linear_chain("own-pooler+lte", classes=classes)
    train = Table()
    labels_B = train.labels.float() if classes == 1 else train.labels
    said = model.run((train.x,), {})
    certainty_loss(seen(said.logits_MBC, labels_B, said.certainty_MB)).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    answering = {name for name, _ in model.named_parameters() if ".linear." in name}
    assert reached == {name for name, _ in model.named_parameters()} - answering
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)
    gates = {id(head.gate) for head in model.heads}
    assert len(gates) == 1, "one layer tells for all exits"


# Zero Time Waste: a cascade, then votes


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
    for m, feature in enumerate(through(model, x)[:-1]):
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
    torch.testing.assert_close(z[-1], through(model, x)[-1] @ last.weight.T + last.bias)


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


def test_first_the_network_then_the_cascade_then_the_votes():
    recipe, after = mx.recipe("ztw"), []
    decaying = config(weight_decay=0.01)  # which moves whatever is in the optimiser's hands
    for phases in range(4):
        model = linear_chain("linear+cascade")
        if phases:
            fit(model, replace(recipe, phases=recipe.phases[:phases]), decaying, Table())
        after.append(tensors(model))
    of_last = f"heads.{M - 1}."
    network = {k for k in after[0] if k.startswith(("backbone.", of_last))}
    votes = {k for k in after[0] if ".vote." in k}
    cascade = {k for k in after[0] if k.startswith("heads.")} - network - votes
    assert changed(after[0], after[1]) == network
    assert changed(after[1], after[2]) == cascade
    assert changed(after[2], after[3]) == votes, "and they are switched on"
    assert isinstance(model.heads[0], CascadedHead)
    assert all(head.vote.on for head in model.heads[:-1])


@torch.no_grad()
def test_votes_are_trained_as_votes():
    """Their phase lowers the loss of what the exits say together."""
    model, train = linear_chain("linear+cascade"), Table(64)

    def early_loss():
        return sum(float(F.cross_entropy(z_BC, train.labels)) for z_BC in model(train.x)[:-1])

    with torch.enable_grad():
        fit(model, "ztw", config(epochs=4), train)
    learned = early_loss()
    for head in model.heads[:-1]:
        head.vote.w.zero_()
        head.vote.b.zero_()
    assert learned < early_loss()


# The Right Tool: mixed layers and calibrated confidences


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
    # What is calibrated stays as it is.
    once = model.temperature_M.clone()
    mx.fit_temperatures(model, calibrated)
    inside = (once > 0.011) & (once < 99)
    torch.testing.assert_close(model.temperature_M[inside], once[inside], rtol=1e-2, atol=0)


def test_the_right_tool_ends_calibrated_and_a_mix_learns():
    model, train = linear_chain("+mix"), Table(64)
    fit(model, "right-tool", config(epochs=3), train, Table(30, seed=3))
    assert (model.temperature_M != 1).all()
    for m, head in enumerate(model.heads):
        share = head.mix.softmax(0)
        assert len(share) == m + 1
        assert float(share.detach().sum()) == pytest.approx(1)
        assert m == 0 or not torch.equal(head.mix, torch.zeros(m + 1)), "equal at the start"
        vectors = through(model, train.x)
        mixed = sum(share[j] * vectors[j] for j in range(m + 1))
        wanted = (mixed @ head.base.linear.weight.T + head.base.linear.bias) / model.temperature_M[
            m
        ]
        torch.testing.assert_close(model(train.x)[m], wanted, atol=1e-5, rtol=1e-5)


# MSDNet: a budget


def told(logits_MBC, macs_M, full=None):
    """Outputs of a network that costs this much."""
    exits = len(logits_MBC)
    cost = mx.Cost(tuple(range(1, exits + 1)), tuple(macs_M), (1,) * exits, full or macs_M[-1])
    return mx.Outputs(logits_MBC, torch.zeros(logits_MBC.shape[1], dtype=torch.long), cost)


COSTS = st.lists(st.integers(1, 1000), min_size=2, max_size=6).map(
    lambda steps: tuple(int(total) for total in np.cumsum(steps))
)


@given(macs_M=COSTS, where=st.floats(0.02, 0.98), rows=st.integers(1, 60), seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_rows_spend_the_budget_and_no_more_than_whole_rows_need(macs_M, where, rows, seed):
    spend = macs_M[0] + where * (macs_M[-1] - macs_M[0])
    exits = len(macs_M)
    generator = torch.Generator().manual_seed(seed)
    logits_MBC = torch.randn(exits, rows, 3, generator=generator)
    sure_MB = logits_MBC.softmax(-1).amax(-1)
    assume(all(len(set(sure_B.tolist())) == rows for sure_B in sure_MB))
    policy = mx.budgeted(told(logits_MBC, macs_M), macs_M[-1] / spend)
    exit_B = mx.simulate(policy, logits_MBC)
    spent = sum(macs_M[m] for m in exit_B.tolist()) / rows
    # Shares are cut to whole rows, and who is cut goes on to the end: less than a row per exit.
    most = sum(macs_M[-1] - macs_M[m] for m in range(exits - 1)) / rows
    assert spend * (1 - 1e-6) <= spent <= spend * (1 + 1e-6) + most


@given(macs_M=COSTS, where=st.floats(0.02, 0.98))
@settings(max_examples=50, deadline=None)
def test_shares_are_geometric_and_meet_the_budget(macs_M, where):
    spend = macs_M[0] + where * (macs_M[-1] - macs_M[0])
    share_M = budget.shares(macs_M, spend).tolist()
    assert sum(share_M) == pytest.approx(1)
    assert sum(p * macs for p, macs in zip(share_M, macs_M, strict=True)) == pytest.approx(spend)
    for m in range(len(share_M) - 2):
        assert share_M[m] * share_M[m + 2] == pytest.approx(share_M[m + 1] ** 2, rel=1e-6)


def naive_thresholds(sure, share_M):
    """The rule of MSDNet's code, row by row; None where nobody leaves."""
    exits, rows = len(sure), len(sure[0])
    gone, thresholds = [False] * rows, []
    for m in range(exits - 1):
        wanted, counted, threshold = math.floor(rows * share_M[m] + 1e-9), 0, None
        for row in sorted(range(rows), key=lambda row: -sure[m][row]):
            if not gone[row]:
                counted += 1
                if counted == wanted:
                    threshold = sure[m][row]
                    break
        thresholds.append(threshold)
        for row in range(rows):
            gone[row] = gone[row] or (threshold is not None and sure[m][row] >= threshold)
    return thresholds


@given(
    levels=st.integers(1, 40),
    rows=st.integers(1, 40),
    where=st.floats(0.02, 0.98),
    seed=st.integers(0, 9999),
)
@settings(max_examples=120, deadline=None)
def test_thresholds_are_those_of_msdnets_code_ties_and_all(levels, rows, where, seed):
    macs_M = (10, 25, 70, 100)
    generator = torch.Generator().manual_seed(seed)
    first_MB = torch.randint(1, levels + 1, (4, rows), generator=generator) / 10
    logits_MBC = torch.stack([first_MB, torch.zeros(4, rows)], -1)
    spend = 10 + where * 90
    policy = mx.budgeted(told(logits_MBC, macs_M), 100 / spend)
    sure = logits_MBC.softmax(-1).amax(-1).tolist()
    wanted = naive_thresholds(sure, budget.shares(macs_M, spend).tolist())
    assert len(policy.threshold) == 3
    for got, threshold in zip(policy.threshold, wanted, strict=True):
        assert got > 1 if threshold is None else got == threshold


def test_a_budget_by_hand():
    """Even shares of 8 rows over 4 exits: two leave at each."""
    order = [[8, 7, 6, 5, 4, 3, 2, 1], [9, 9, 1, 2, 3, 4, 5, 6], [9, 9, 1, 7, 3, 4, 9, 9]]
    z = torch.tensor([*order, [0] * 8]).float().unsqueeze(-1)
    logits_MBC = torch.cat([z / 10, torch.zeros_like(z)], -1)
    policy = mx.budgeted(told(logits_MBC, (1, 2, 3, 4)), 4 / 2.5)
    assert mx.simulate(policy, logits_MBC).tolist() == [0, 0, 3, 2, 3, 2, 1, 1]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: mx.budgeted(told(torch.zeros(2, 3, 2), (50, 100)), 2.5), "first exit costs 50"),
        (lambda: mx.budgeted(told(torch.zeros(2, 3, 2), (50, 100), 400), 2.0), "the last 100"),
        (lambda: mx.budgeted(told(torch.zeros(2, 3, 1), (50, 100)), 1.5), "regression"),
        (lambda: mx.recipe("msdnet", speedup=0.0), "speedup must be above 0"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


# L2W-DEN: a network that weighs rows


@given(
    epsilon=st.floats(0.05, 1),
    over=st.sampled_from(["batch", "exits"]),
    exits=st.integers(1, 6),
    rows=st.integers(1, 9),
    seed=st.integers(0, 9999),
)
@settings(max_examples=40, deadline=None)
def test_rows_weigh_1_on_average_and_never_far_from_it(epsilon, over, exits, rows, seed):
    torch.manual_seed(seed)
    net = WeightNet(topology.none(exits), epsilon, over)
    w_MB = net.rows(5 * torch.rand(exits, rows)).detach()
    mean = w_MB.mean() if over == "batch" else w_MB.mean(0)
    torch.testing.assert_close(mean, torch.ones_like(mean))
    assert (w_MB - 1).abs().max() <= 2 * epsilon


def naive_allotment(logits_MBC, q):
    exits, rows, _ = logits_MBC.shape
    shares = [q**m / sum(q**k for k in range(exits)) for m in range(exits)]
    sure = logits_MBC.softmax(-1).amax(-1).tolist()
    given_to = [exits - 1] * rows
    left = list(range(rows))
    for m in range(exits - 1):
        surest = sorted(left, key=lambda row, m=m: -sure[m][row])[: math.floor(rows * shares[m])]
        for row in surest:
            given_to[row] = m
        left = [row for row in left if row not in surest]
    return given_to


@given(
    exits=st.integers(1, 6),
    rows=st.integers(1, 30),
    q=st.floats(0.1, 2),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_each_exit_is_given_the_surest_of_the_rows_that_are_left(exits, rows, q, seed):
    logits_MBC = torch.randn(exits, rows, 3, generator=torch.Generator().manual_seed(seed))
    shares = [rows * q**m / sum(q**k for k in range(exits)) for m in range(exits)]
    assume(all(abs(share - round(share)) > 1e-6 for share in shares[:-1]))
    assert allot(logits_MBC, q).tolist() == naive_allotment(logits_MBC, q)


def per_row(logits_MBC, labels_B):
    return torch.stack([F.cross_entropy(z_BC, labels_B, reduction="none") for z_BC in logits_MBC])


@pytest.mark.parametrize("over", ["batch", "exits"])
def test_the_weighting_net_descends_the_gradient_through_the_network_s_own_step(over):
    """One step of SGD, unrolled in double precision."""
    train, rate, epsilon, q = Table(24), 0.5, 0.3, 0.75
    one, two = (train.x[:16], train.labels[:16]), (train.x[16:], train.labels[16:])
    model = chain(3)
    still = copy.deepcopy(model).double()
    phase = mx.recipe("l2w-den", epsilon=epsilon, over=over, q=q).phases[0]
    plain = config(lr=rate, momentum=0.0)
    stepper = Stepper(model, phase, plain, Accelerator(cpu=True))
    weighting = stepper.omega.weights
    net = copy.deepcopy(weighting.net).double()
    stepper.omega.optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)
    before = copy.deepcopy(weighting.net)
    stepper.step([one], lambda: two, 0, 1)
    stepper.close()

    theta = dict(still.named_parameters())
    own_MB = per_row(functional_call(still, theta, one[0].double()), one[1])
    t_BM = torch.tanh(net(own_MB.detach().T))
    mean = t_BM.mean() if over == "batch" else t_BM.mean(1, keepdim=True)
    w_MB = (1 + epsilon * (t_BM - mean)).T
    loss = (w_MB * own_MB).mean(1).sum()
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    stepped = {name: p - rate * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
    logits_MBC = functional_call(still, stepped, two[0].double())
    given_to = torch.tensor(naive_allotment(logits_MBC.detach(), q))
    assert set(given_to.tolist()) == {0, 1, 2}
    outer_MB = per_row(logits_MBC, two[1])
    outer = sum(outer_MB[m][given_to == m].mean() for m in range(3))
    wanted = torch.autograd.grad(outer, list(net.parameters()))

    for (name, p), value in zip(model.named_parameters(), stepped.values(), strict=True):
        torch.testing.assert_close(p.double(), value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: n)
    for after, was, g in zip(weighting.net.parameters(), before.parameters(), wanted, strict=True):
        moved = (was - after).double()
        assert g.abs().max() > 1e-6
        # The step is small beside the parameter it is taken from: single precision's grain.
        torch.testing.assert_close(moved, g, atol=2e-7, rtol=1e-3)


# LeeBERT's variants where they are one


def same_run(one, other, settings=None, other_settings=None):
    """Train a chain by each; equal to the last bit, losses and weights too."""
    first, second = chain(dropout=0.2), chain(dropout=0.2)
    settings = settings or config()
    history = fit(first, one, settings, Table())
    again = fit(second, other, other_settings or settings, Table())
    assert_same(tensors(first), tensors(second))
    assert not differences(history.steps, again.steps)


def learned_by(learner, **options):
    return mx.recipes.leebert(learner=learner, **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("leebert-blo", learned_by(weights.CLO1(rho=0.0))),
        ("leebert-clo-v1", learned_by(weights.CLO2(cycle=1))),
        ("leebert-clo-v1", mx.recipes.leebert(cycle=1)),
        ("leebert-lle", mx.recipes.leebert(topology="lle")),
        ("fastbert-clo-v2", mx.recipes.leebert(topology="last")),
        ("joint", learned_by(weights.Uniform(), topology="none")),
        ("msdnet", "joint"),
        ("pcee", "pabee"),
    ],
    ids=["blo", "cycle", "option", "lle", "last", "joint", "msdnet", "pcee"],
)
def test_methods_that_are_one_train_the_same(one, other):
    made = mx.recipe(one)
    same_run(replace(made, finish=None), other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("branchynet", "joint"),
        ("right-tool", "joint"),
        ("shallow-deep-heads", "deebert"),
        ("leebert-uniform", learned_by(weights.Uniform())),
        ("leebert-slo", learned_by(weights.SLO())),
    ],
    ids=["branchynet", "right-tool", "heads", "uniform", "slo"],
)
def test_methods_that_only_stop_otherwise_have_the_same_phases(one, other):
    other = mx.recipe(other) if isinstance(other, str) else other
    assert mx.recipe(one).phases == other.phases


def test_fastbert_begins_as_deebert():
    assert mx.recipe("fastbert").phases[0] == mx.recipe("deebert").phases[0]


def test_without_what_teachers_count_the_loss_is_joints():
    def factors(name, **options):
        (phase,) = mx.recipe(name, **options).phases
        return phase.coefficients(topology.resolve(phase.topology, M), 1.0, ())

    assert torch.equal(factors("romebert", mix=0.0), factors("joint"))
    assert torch.equal(factors("dbt", mix=0.0), factors("joint") * 10 / M)


def test_until_its_cycle_ends_a_hypergradient_weighs_uniformly():
    still = learned_by(weights.CLO2(cycle=9, in_cycle=False))
    same_run(mx.recipe("leebert-hyper", cycle=9), still, config(max_steps=8))


def test_random_weights_that_happen_to_be_equal_are_uniform_ones_at_another_rate(monkeypatch):
    """Each exit's weights sum to 1: with M equal ones the loss is 1/M of the uniform one."""
    monkeypatch.setattr(torch, "randint", lambda low, high, size, **_: torch.full(tuple(size), 7))
    drawn, even = chain(), chain()
    fit(drawn, "leebert-rand", config(lr=0.1 * M), Table())
    fit(even, "leebert-uniform", config(lr=0.1), Table())
    for one, two in zip(drawn.parameters(), even.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


# What a method can't serve is refused before anything is trained


class Scores(Table):
    """The same rows with a number to tell."""

    def __init__(self, rows=ROWS):
        super().__init__(rows)
        self.labels = self.x.sum(1)


def regressor(head=None):
    return linear_chain(head, classes=1)


def one_exit():
    return linear_chain(stages=1)


ANOTHER = r"can't serve.*1 output.*another policy.*policy="
REFUSED = {
    "entropy of one output": ("joint", regressor, ANOTHER),
    "uncertainty of one output": ("fastbert", regressor, ANOTHER),
    "confidence of one output": ("dbt", regressor, ANOTHER),
    "confident exits of one output": ("pcee", regressor, ANOTHER),
    "agreement of one output": ("pabee", regressor, ANOTHER),
    "the surest of one output": ("shallow-deep", regressor, ANOTHER),
    "temperatures of one output": ("right-tool", lambda: regressor("+mix"), "regression.*berxit"),
    "a budget of one output": ("msdnet", regressor, "regression.*berxit"),
    "DeeBERT with one exit": ("deebert", one_exit, "1 exit.*give the model early exits"),
    "FastBERT with one exit": ("fastbert", one_exit, "1 exit.*give the model early exits"),
    "nobody to be certain": ("berxit", linear_chain, r"none: make it with head='pooler\+lte'"),
    "no cascade": ("ztw", linear_chain, r"make it with head='linear\+cascade'"),
    "no dev set for temperatures": ("right-tool", lambda: linear_chain("+mix"), "pass dev="),
    "no dev set for a budget": ("msdnet", linear_chain, "pass dev="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_cannot_serve_is_refused_before_it_trains(case):
    name, make, message = REFUSED[case]
    model = make()
    before = tensors(model)
    train = Scores() if model.num_classes == 1 else Table()
    with pytest.raises(ValueError, match=message):
        fit(model, name, config(), train)
    assert_same(before, tensors(model))
    assert all(p.requires_grad for p in model.parameters())


def test_a_budget_that_no_network_like_this_can_keep_is_refused_before_it_trains():
    model = linear_chain()
    before = tensors(model)
    with pytest.raises(ValueError, match="can't be spent"):
        fit(model, mx.recipe("msdnet", speedup=50.0), config(), Table(), Table(10))
    assert_same(before, tensors(model))


def test_a_cascade_votes_on_classes_alone():
    with pytest.raises(ValueError, match=r"cascade votes on classes.*regression"):
        regressor("linear+cascade")


@pytest.mark.parametrize(
    "options",
    [
        {"surgery": Conflictless(), "extra": certainty_loss},
        {"surgery": Conflictless(), "learner": MetaWeights()},
        {"surgery": Conflictless(), "learner": weights.Hyper()},
        {"branch": equilibrium, "learner": weights.Hyper()},
    ],
    ids=["surgery and extra", "surgery and rows", "surgery and hyper", "branch and hyper"],
)
def test_parts_that_would_leave_each_other_out_are_refused(options):
    with pytest.raises(ValueError, match=r"surgery|branches"):
        mx.Phase(**options)


@pytest.mark.parametrize(
    ("recipe", "head"),
    [
        (mx.recipe("berxit"), "own-pooler+lte"),
        (mx.recipe("pabee", patience=1, tolerance=0.5), None),
        (replace(mx.recipe("joint"), policy=mx.FixedExit(1)), None),
    ],
    ids=["berxit", "pabee", "joint"],
)
def test_regression_has_its_own_methods(recipe, head, tmp_path):
    """What the refusals point to trains, and is saved with its policy."""
    model = regressor(head)
    settings = config(epochs=6, lr=0.05, output=tmp_path)
    history = fit(model, recipe, settings, Scores(64), Scores(32))
    assert history.best["mean"] > 0.5
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model", backbone=linear_chain().backbone)
    assert again.policy == recipe.policy
    x = Scores(8).x
    said, wanted = again.eval().predict(again.policy, x), model.eval().predict(recipe.policy, x)
    assert torch.equal(said.logits_BC, wanted.logits_BC)
