"""The best epoch, and what the next phase starts from."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import Table, assert_same, chain, config, convnet, fit, images, phased, tensors

import multiexit as mx
from multiexit.evaluation import metrics


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


def one_exit_after_another(teaches, progress, shares):
    """Of three epochs, each trains one exit."""
    return torch.eye(3)[round(3 * progress) - 1].diag()


def test_an_exit_that_an_epoch_leaves_out_is_judged_if_the_phase_trains_it(crafted):
    crafted(*(0.9, 0.9, 0.9), *(0.6, 0.6, 0.6), *(0.1, 0.1, 1.0))
    phase = replace(mx.recipe("joint").phases[0], coefficients=one_exit_after_another)
    recipe = replace(mx.recipe("joint"), phases=(phase,))
    history = fit(chain(3), recipe, config(epochs=3, metric="crafted"), Table(), Table(9))
    assert [row["mean"] for row in history.epochs] == pytest.approx([0.9, 0.6, 0.4])


def test_a_phase_may_keep_its_last_epoch(crafted):
    """And never stops early."""
    crafted(*[0.9] * 3, *[0.5] * 3, *[0.2] * 3)
    model, by_hand = chain(3), chain(3)
    joint = mx.recipe("joint")
    last = replace(joint, phases=(replace(joint.phases[0], keep="last"),))
    settings = config(epochs=3, metric="crafted", early_stopping=1)
    history = fit(model, last, settings, Table(), Table(9))
    assert history.best == history.epochs[2]
    fit(by_hand, "joint", config(epochs=3), Table())
    assert_same(tensors(model), tensors(by_hand))


SCORES = [(0.5, 0.5, 0.5), (1.0, 0.2, 0.2), (0.7, 0.7, 0.4), (0.0, 0.6, 0.9), (0.6, 0.6, 0.6)]
"""Exits' scores by epoch. By the mean: 0.5, 0.467, 0.6, 0.5, 0.6; the last exit's best is 3."""


@pytest.mark.parametrize(("patience", "epochs"), [(None, 5), (2, 5), (1, 2)])
def test_the_best_mean_over_exits_is_kept(crafted, patience, epochs):
    crafted(*itertools.chain(*SCORES))
    model = chain(exits=3)
    settings = config(epochs=5, metric="crafted", early_stopping=patience)
    history = fit(model, "leebert", settings, Table(), Table(10, seed=1))
    assert [row["epoch"] for row in history.epochs] == list(range(epochs))
    best = 2 if epochs == 5 else 0
    assert history.best == history.epochs[best]
    assert history.best["mean"] == pytest.approx(sum(SCORES[best]) / 3)
    until_then = chain(exits=3)
    fit(until_then, "leebert", config(epochs=best + 1), Table())
    assert_same(tensors(model), tensors(until_then))


def test_the_best_epoch_is_of_the_last_phase(crafted):
    crafted(0.9, 0.8, 0.3, 0.4, 0.2)
    model = convnet(0.0, exits=[3])
    two = phased({"train": "all", "epochs": 2}, {"train": "last", "epochs": 3})
    train, dev = images(augment=False), images(8, augment=False)
    history = fit(model, two, config(metric="crafted"), train, dev)
    assert (history.best["phase"], history.best["epoch"]) == (1, 1)
    # The second phase starts from the best epoch of the first, its first one.
    until_then = convnet(0.0, exits=[3])
    two = phased({"train": "all", "epochs": 1}, {"train": "last", "epochs": 2})
    fit(until_then, two, config(), train)
    assert_same(tensors(model), tensors(until_then))


def test_the_saved_model_is_the_best_one(crafted, tmp_path):
    crafted(*itertools.chain(*SCORES))
    model = convnet(exits=[0, 1, 3])
    settings = config(epochs=5, metric="crafted", output=tmp_path)
    history = fit(model, "joint", settings, images(), images(10, augment=False))
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model", backbone=convnet().backbone)
    assert_same(tensors(model), tensors(again))
    assert again.policy == mx.recipe("joint").policy
    assert mx.History.load(tmp_path / "history.json") == history


def test_without_a_dev_set_the_last_epoch_stays(crafted):
    crafted(*[0.1] * 4, *[0.2] * 4, *[0.3] * 4)
    model = chain()
    history = fit(model, "joint", config(epochs=3, early_stopping=1), Table())
    assert history.best is None
    assert len(history.epochs) == 3
    watched = chain()
    settings = config(epochs=3, metric="crafted")
    history = fit(watched, "joint", settings, Table(), Table(10, seed=1))
    assert history.best["epoch"] == 2
    assert_same(tensors(model), tensors(watched))


def test_looking_at_the_dev_set_does_not_change_training():
    def steps(dev):
        return fit(convnet(dropout=0.3), "leebert", config(), images(), dev).steps

    assert steps(None) == steps(images(12, augment=False))
