"""What a phase trains and freezes."""

import pytest
import torch
from helpers import (
    CLASSES,
    Table,
    assert_same,
    chain,
    changed,
    config,
    convnet,
    fit,
    images,
    phased,
    tensors,
)
from torch import nn


def parts(model):
    """The model's tensors: trunk, early heads, last head."""
    here = tensors(model)
    last = f"heads.{model.num_exits - 1}."
    return (
        {k: v for k, v in here.items() if k.startswith("backbone.")},
        {k: v for k, v in here.items() if k.startswith("heads.") and not k.startswith(last)},
        {k: v for k, v in here.items() if k.startswith(last)},
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_phase_of_the_last_exit_leaves_early_heads_as_they_were(optimizer):
    model = convnet()
    trunk, early, last = parts(model)
    settings = config(optimizer=optimizer, weight_decay=0.1, lr=0.01)
    fit(model, phased({"train": "last"}), settings, images())
    now_trunk, now_early, now_last = parts(model)
    assert_same(early, now_early)
    assert changed(trunk, now_trunk) == set(trunk)
    assert changed(last, now_last) == set(last)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_phase_of_the_heads_leaves_the_trunk_and_its_statistics_as_they_were(optimizer):
    model = convnet(dropout=0.5)
    trunk, early, last = parts(model)
    settings = config(optimizer=optimizer, weight_decay=0.1, lr=0.01)
    fit(model, phased({"train": "heads", "topology": "last"}), settings, images())
    now_trunk, now_early, now_last = parts(model)
    assert_same(trunk, now_trunk)
    assert_same(last, now_last)
    assert changed(early, now_early) == set(early)


def normed_head(shape, num_classes):
    """A head with statistics of its own."""
    channels = shape[0]
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(channels),
        nn.Linear(channels, num_classes),
    )


def test_the_last_head_is_frozen_with_its_statistics_too():
    model = convnet(head=normed_head)
    _, early, last = parts(model)
    fit(model, phased({"train": "heads", "topology": "last"}), config(), images())
    _, now_early, now_last = parts(model)
    assert_same(last, now_last)
    assert changed(early, now_early) == set(early)


def test_what_a_phase_froze_can_be_trained_again():
    model = convnet()
    fit(model, phased({"train": "heads"}), config(max_steps=1), images())
    assert all(p.requires_grad for p in model.parameters())
    before = tensors(model)
    fit(model, "joint", config(max_steps=1), images())
    assert changed(before, tensors(model)) == set(before) - {"temperature_M"}


def test_a_frozen_trunk_has_no_dropout():
    def losses(dropout):
        settings = config(lr=1e-9, batch_size=40, epochs=1)
        history = fit(chain(dropout=dropout), phased({"train": "heads"}), settings, Table())
        return history.steps[0]["own_M"]

    assert losses(0.9) == losses(0.0)


def test_two_phases_follow_one_another():
    model = convnet()
    _, early, _ = parts(model)
    two = phased({"train": "last", "epochs": 1}, {"train": "heads", "topology": "last"})
    history = fit(model, two, config(epochs=3), images())
    assert [(row["phase"], row["epoch"]) for row in history.epochs] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    once = convnet()
    fit(once, phased({"train": "last", "epochs": 1}), config(), images())
    assert_same(parts(once)[0], parts(model)[0])
    assert_same(parts(once)[2], parts(model)[2])
    assert changed(early, parts(model)[1]) == set(early)


def test_stages_behind_the_last_exit_are_not_trained():
    model = convnet(exits=[0, 2])
    before = tensors(model)
    fit(model, "joint", config(weight_decay=0.1), images())
    behind = {name for name in before if name.startswith("backbone.stages.3.")}
    assert behind
    assert changed(before, tensors(model)) == set(before) - behind - {"temperature_M"}


def from_labels_to_teachers(teaches, progress, shares):
    """Exits learn from the labels in the beginning alone."""
    return (1 - progress) * torch.eye(len(teaches)) + progress * teaches


def by_what_is_left(teaches, progress, shares):
    """An exit counts as much as the network behind it."""
    return (1 - torch.tensor(shares)).diag()


@pytest.mark.parametrize("topology", ["none", "lae"])
@pytest.mark.parametrize("rule", [from_labels_to_teachers, by_what_is_left])
def test_labels_count_where_their_factors_depend_on_time_and_compute(rule, topology):
    """They do in the first epoch, though not in the last, and before the last exit."""

    def losses(classes):
        rows = Table()
        rows.labels = classes[rows.labels]
        recipe = phased({"coefficients": rule, "topology": topology})
        return fit(chain(3), recipe, config(epochs=2), rows).steps[0]["own_M"]

    assert losses(torch.arange(CLASSES)) != losses(torch.arange(CLASSES).roll(1))


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (lambda teaches, progress, shares: torch.ones(3), r"\[3, 3\]"),
        (lambda teaches, progress, shares: torch.full((3, 3), torch.nan), "finite"),
    ],
)
def test_malformed_coefficients_are_refused(factors, words):
    recipe = phased({"coefficients": factors})
    with pytest.raises(ValueError, match=words):
        fit(chain(3), recipe, config(epochs=1), Table())
