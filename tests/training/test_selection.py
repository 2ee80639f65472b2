"""The best epoch, and what the next phase starts from."""

from dataclasses import replace

import pytest
from helpers import Table, assert_same, chain, config, fit, tensors

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
