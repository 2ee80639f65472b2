"""Exits' gradients put together by TorchJD, which is optional."""

import pytest
import torch
from helpers import Table, chain, config, fit, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit.losses import gradients
from multiexit.losses.gradients import AGGREGATORS, NEEDED, Aggregation

pytest.importorskip("torchjd")
HERE = [name for name in AGGREGATORS if gradients.find_spec(NEEDED[name])]
SHAPES = ((3, 2), (4,), (2, 2))
SHARED = (True, False, True)


def drawn(M, seed):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(M)]


def flat(tensors_):
    return torch.cat([t.flatten() for t, common in zip(tensors_, SHARED, strict=True) if common])


@given(M=st.integers(1, 5), seed=st.integers(0, 9999), name=st.sampled_from(HERE))
@settings(max_examples=40, deadline=None)
def test_what_is_not_shared_is_summed(M, seed, name):
    parts = drawn(M, seed)
    merged = Aggregation(name).merge(parts, SHARED)
    assert [t.shape for t in merged] == [t.shape for t in parts[0]]
    torch.testing.assert_close(merged[1], sum(part[1] for part in parts))


@given(M=st.integers(2, 5), seed=st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_upgrad_goes_against_no_exit(M, seed):
    parts = drawn(M, seed)
    merged = flat(Aggregation("upgrad").merge(parts, SHARED))
    for part in parts:
        g = flat(part)
        assert float(g @ merged) > -1e-3 * float(g.norm() * merged.norm())


def test_pcgrad_by_hand():
    """(1, 0) and (−1, 1): each loses what it has against the other: (½, ½) and (0, 1)."""
    one, two = [torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]
    (merged,) = Aggregation("pcgrad").merge([one, two], [True])
    torch.testing.assert_close(merged, torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("name", [name for name in HERE if name != "cagrad"])
def test_exits_that_pull_one_way_are_summed(name):
    parts = [[t.abs() for t in part] for part in drawn(4, 3)]
    merged = Aggregation(name).merge(parts, SHARED)
    for got, same in zip(merged, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(got, sum(same), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", HERE)
def test_an_overflow_is_passed_on_for_the_scaler_to_see(name):
    parts = drawn(3, 0)
    parts[1][0][0, 0] = float("inf")
    merged = Aggregation(name).merge(parts, SHARED)
    assert merged[0][0, 0] == float("inf")


def test_the_draw_is_the_same_wherever_the_gradients_are():
    parts = drawn(5, 7)
    first = Aggregation("pcgrad").merge(parts, SHARED)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = Aggregation("pcgrad").merge(parts, SHARED)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_parts_are_the_exits_terms_and_sum_to_the_whole():
    factors_MM = torch.arange(9.0).reshape(3, 3)
    parts = Aggregation("pcgrad").split(factors_MM)
    assert torch.equal(sum(parts), factors_MM)
    for m, part_MM in enumerate(parts):
        assert torch.equal(part_MM[m], factors_MM[m])
        assert part_MM.count_nonzero() == factors_MM[m].count_nonzero()


@pytest.mark.parametrize("name", HERE)
def test_halves_of_a_batch_make_one_step(name, monkeypatch):
    seed = torch.manual_seed  # PCGrad's order hangs on the last bits of the gradients
    monkeypatch.setattr(torch, "manual_seed", lambda _: seed(0))
    recipe = mx.recipe("joint", aggregation=name)
    whole, halves, plain = chain(), chain(), chain()
    before = tensors(whole)
    fit(whole, recipe, config(batch_size=32, max_steps=1), Table(64))
    fit(halves, recipe, config(batch_size=16, accumulation=2, max_steps=1), Table(64))
    fit(plain, "joint", config(batch_size=32, max_steps=1), Table(64))
    others = {key for key, value in tensors(plain).items() if not torch.equal(value, before[key])}
    for key in others:
        torch.testing.assert_close(tensors(halves)[key], tensors(whole)[key], atol=1e-5, rtol=1e-4)
    heads = {key for key in others if key.startswith("heads.")}
    assert heads
    for key in heads:
        torch.testing.assert_close(tensors(whole)[key], tensors(plain)[key])
