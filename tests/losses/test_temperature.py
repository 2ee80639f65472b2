"""A temperature that stays, and one that rises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit.losses.temperature import Constant, Rising


def logits_with(p, rows=2):
    """Two classes, the larger with probability p, at a single exit."""
    return torch.tensor([[[p / (1 - p), 1.0]] * rows]).log()


def test_temperature_rises_by_hand():
    rule, device = Rising(factor=2.0, above=0.7), torch.device("cpu")
    tau = rule.start(device)
    assert float(tau) == 1.0
    # p = 0.9 has odds 9; at τ = 2 odds 3, p = 0.75; at τ = 4 odds √3, p = 0.634.
    seen = []
    for p in (0.6, 0.9, 0.9, 0.9, 0.6, 0.999):
        tau = rule.after(tau, logits_with(p))
        seen.append(float(tau))
    assert seen == [1.0, 2.0, 4.0, 4.0, 4.0, 8.0]  # 0.999: odds 999, at τ = 4 5.6, p = 0.85


def test_the_temperature_looks_at_the_last_exit_and_the_mean():
    rule, sure, unsure = Rising(), logits_with(0.9), logits_with(0.501)
    one = torch.tensor(1.0)
    assert float(rule.after(one, torch.cat([sure, unsure.new_zeros(1, 2, 2)]))) == 1.0  # p = 0.5
    assert float(rule.after(one, torch.cat([unsure.new_zeros(1, 2, 2), sure]))) == pytest.approx(
        1.05
    )
    mixed = torch.cat([logits_with(0.9, 1), logits_with(0.5, 1)], 1)
    assert float(Rising(above=0.69).after(one, mixed)) == pytest.approx(1.05)
    assert float(Rising(above=0.71).after(one, mixed)) == 1.0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 30))
def test_a_rising_temperature_never_falls(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    rule, tau = Rising(), torch.tensor(1.0)
    for _ in range(steps):
        after = rule.after(tau, 5 * torch.randn(2, 3, 4, generator=generator))
        assert float(after) == pytest.approx(float(tau) * (1.05 if after > tau else 1.0))
        tau = after


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_must_be_above_zero(value):
    with pytest.raises(ValueError, match="temperature"):
        Constant(value)
    with pytest.raises(ValueError, match="temperature"):
        mx.recipe("leebert", temperature=value)
