"""A step over several batches is the step over all their rows at once, a short last one included.

In float64, for every recipe whose loss is a mean over rows.
"""

import inspect
from dataclasses import replace

import pytest
import torch
from helpers import OF_CLASSES, WIDTH, Table, chain, config, fit, tensors
from torch import Tensor, nn

import multiexit as mx
from multiexit.data.batches import num_rows, with_shares
from multiexit.recipes import RECIPES

BY_BATCH = {
    "dbt": "the temperature rises batch by batch",
    "cosee": "thresholds are drawn, and doubts compared, batch by batch",
    "l2w-den": "rows are given to exits, and their weights centred, batch by batch",
}


@pytest.fixture(autouse=True)
def _double(monkeypatch):
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def wide(rows: int) -> Table:
    data = Table(rows)
    data.x = data.x.double()
    return data


def made(name: str) -> mx.Recipe:
    """A recipe whose Ω, if it learns any, moves at every step."""
    options = inspect.signature(RECIPES[name]).parameters
    return replace(mx.recipe(name, **({"cycle": 1} if "cycle" in options else {})), finish=None)


@pytest.mark.parametrize("name", [name for name in OF_CLASSES if name not in BY_BATCH])
def test_batches_make_the_step_of_all_their_rows(name):
    recipe = made(name)
    splits = any(phase.learner.splits for phase in recipe.phases)
    rows = wide(22 if splits else 11)
    runs = []
    for changes in ({"batch_size": 11}, {"batch_size": 4, "accumulation": 3}):
        model = chain(3, head=None if recipe.head == "attention" else recipe.head)
        for part in model.modules():
            if isinstance(part, nn.Dropout):  # of some recipes' heads
                part.p = 0.0
        history = fit(model, recipe, config(max_steps=2, **changes), rows)
        runs.append((tensors(model), history))
    (whole, one), (parts, many) = runs
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-10, atol=1e-12, msg=key)
    assert len(one.steps) == len(many.steps) == 2 * len(recipe.phases)
    for mine, wanted in zip(many.steps, one.steps, strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-10)
        assert mine.get("own_M") == pytest.approx(wanted.get("own_M"), abs=2e-6)
        for row, wanted_row in zip(mine.get("W_MM", []), wanted.get("W_MM", []), strict=True):
            assert row == pytest.approx(wanted_row, abs=2e-5)


@pytest.mark.parametrize("cycle", [1, 2])
def test_b2_has_all_its_rows_where_b1_is_a_short_group(cycle):
    """D1 and D2 of 12 rows: B1 and B2 have 8 and 4, whichever B2 a short B1 is followed by."""
    runs = []
    for changes in ({"batch_size": 8}, {"batch_size": 4, "accumulation": 2}):
        recipe = mx.recipes.leebert(cycle=cycle)
        runs.append(fit(chain(3), recipe, config(max_steps=8, **changes), wide(24)).weights)
    for (step, W_MM), (other_step, other_MM) in zip(*runs, strict=True):
        assert step == other_step
        for row, wanted in zip(W_MM, other_MM, strict=True):
            assert row == pytest.approx(wanted, abs=2e-5)


def test_a_reading_over_steps_is_the_mean_over_their_rows():
    """Steps of 4, 4 and 3 rows at a rate of almost nothing: the loss of the whole set."""
    settings = config(batch_size=4, lr=1e-300, log_every=3, epochs=1)
    (read,) = fit(chain(3), "joint", settings, wide(11)).steps
    (whole,) = fit(chain(3), "joint", replace(settings, batch_size=11, log_every=1), wide(11)).steps
    assert read["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    assert read["own_M"] == pytest.approx(whole["own_M"], abs=1e-6)


def test_equal_batches_have_equal_shares():
    x = torch.zeros(4, WIDTH)
    assert [share for _, share in with_shares([(x, x[:, 0])] * 3)] == [1 / 3] * 3
    named = {"input_ids": x[:1], "labels": x[:, 0]}
    assert [share for _, share in with_shares([named, x])] == [0.5, 0.5]
    assert num_rows((x, {"positions": x[:1]})) == 4
    assert num_rows("nothing") == 1
