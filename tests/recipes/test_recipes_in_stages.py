"""What methods in stages freeze, hand on and never read."""

from dataclasses import replace

import pytest
import torch
from helpers import (
    Table,
    assert_same,
    chain,
    changed,
    config,
    convnet,
    fit,
    images,
    linear_chain,
    tensors,
)
from torch.nn import functional as F
from torch.utils.data import Dataset

import multiexit as mx
from multiexit.model.heads import CascadedHead

M, ROWS = 4, 40


def one_phase(recipe, index):
    """The recipe with a single one of its phases."""
    return replace(recipe, phases=(recipe.phases[index],), finish=None)


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


# Zero Time Waste: a cascade, then votes


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
