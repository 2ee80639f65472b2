"""Methods that are one where their settings make them so."""

from dataclasses import replace

import pytest
import torch
from helpers import Table, assert_same, chain, config, differences, fit, tensors

import multiexit as mx
from multiexit.losses import topology, weights

M = 4


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
        ("beem", "pabee"),
    ],
    ids=["blo", "cycle", "option", "lle", "last", "joint", "msdnet", "pcee", "beem"],
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


def test_the_mixed_regime_is_two_others_one_after_another():
    (network,), rest = mx.recipe("deebert").phases[:1], mx.recipe("joint").phases
    assert mx.recipe("mixed").phases == (network, *rest)


def test_consistentee_begins_as_pabee():
    assert mx.recipe("consistentee").phases[:1] == mx.recipe("pabee").phases


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
