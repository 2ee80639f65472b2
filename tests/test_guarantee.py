"""Bounds on what early exits cost: the p-value by hand, coverage by simulation, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit import guarantee
from multiexit.cost import Cost
from multiexit.evaluate import Outputs

RISKS = torch.linspace(0, 1, 101, dtype=torch.float64)


def drawn(rows: int, seed: int) -> torch.Tensor:
    """Losses [S, rows] of settings whose true risks are known: 1 with probability RISKS[s]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, generator=generator, dtype=torch.float64) < RISKS[:, None]).double()


@pytest.mark.parametrize(("risk", "delta", "rows"), [(0.05, 0.1, 300), (0.2, 0.05, 80)])
def test_the_certified_setting_keeps_its_risk_as_often_as_promised(risk, delta, rows):
    trials = 1500
    chosen = [guarantee.learn_then_test(drawn(rows, seed), risk, delta) for seed in range(trials)]
    risks = [0.0 if index is None else float(RISKS[index]) for index in chosen]
    broken = sum(found > risk + 1e-9 for found in risks) / trials
    assert broken <= delta + 3 * math.sqrt(delta * (1 - delta) / trials)
    assert sum(risks) / trials > risk / 3, "a bound that certifies next to nothing is no use"


@pytest.mark.parametrize(("risk", "rows"), [(0.05, 300), (0.2, 80)])
def test_the_conformal_setting_keeps_its_risk_on_average(risk, rows):
    chosen = [guarantee.conformal(drawn(rows, seed), risk) for seed in range(1500)]
    mean = sum(0.0 if index is None else float(RISKS[index]) for index in chosen) / 1500
    assert 0.7 * risk < mean <= risk


def test_the_first_setting_that_was_not_certified_breaks_the_promise():
    """What a published implementation returns: one setting too far."""
    risk, delta = 0.05, 0.1
    chosen = [guarantee.learn_then_test(drawn(300, seed), risk, delta) for seed in range(1500)]
    far = [float(RISKS[0 if index is None else index + 1]) for index in chosen]
    near = [float(RISKS[index or 0]) for index in chosen]
    broken = [sum(found > risk + 1e-9 for found in some) / 1500 for some in (near, far)]
    assert broken[0] <= delta < broken[1] + delta
    assert broken[1] > broken[0]


def test_the_p_value_by_hand():
    assert guarantee.p_value(0.0, 10, 0.2) == pytest.approx(0.8**10)
    # Hoeffding: exp(−20·(0.1 log 0.5 + 0.9 log(0.9 / 0.8))); Bentkus: e·P(Bin(20, 0.2) ≤ 2).
    hoeffding = math.exp(-20 * (0.1 * math.log(0.5) + 0.9 * math.log(0.9 / 0.8)))
    bentkus = math.e * sum(math.comb(20, k) * 0.2**k * 0.8 ** (20 - k) for k in range(3))
    assert guarantee.p_value(0.1, 20, 0.2) == pytest.approx(min(hoeffding, bentkus))
    assert guarantee.p_value(0.5, 20, 0.2) == 1.0
    assert guarantee.rows_needed(0.05, 0.1) == 45
    assert 0.95**45 <= 0.1 < 0.95**44


@given(st.integers(0, 10_000), st.floats(0.02, 0.6), st.integers(2, 60))
@settings(max_examples=60, deadline=None)
def test_more_risk_never_slows_down(seed, risk, rows):
    losses = drawn(rows, seed)
    for choose in (guarantee.conformal, lambda some, r: guarantee.learn_then_test(some, r, 0.1)):
        less, more = (choose(losses, r) for r in (risk, min(0.99, risk * 1.5)))
        assert (-1 if less is None else less) <= (-1 if more is None else more)


def outputs_of(rows=400, seed=0) -> Outputs:
    """Four exits that are ever surer and righter."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(3, (rows,), generator=generator)
    right_BC = torch.nn.functional.one_hot(labels_B, 3).float()
    noise_MBC = torch.randn(4, rows, 3, generator=generator)
    logits_MBC = torch.stack([(1 + m) * right_BC + noise_MBC[m] for m in range(4)])
    return Outputs(logits_MBC, labels_B, Cost((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), 4))


@pytest.mark.parametrize("policy", [mx.MaxProb, mx.Entropy, mx.Margin, mx.Patience])
@pytest.mark.parametrize("loss", ["disagreement", "accuracy"])
@pytest.mark.parametrize("confidence", [0.9, None])
def test_a_policy_for_a_risk(policy, loss, confidence):
    outputs, fresh = outputs_of(), outputs_of(20_000, seed=1)
    speeds = []
    for risk in (0.05, 0.1, 0.3):
        chosen = mx.calibrate(outputs, policy, risk=risk, confidence=confidence, loss=loss)
        exit_B = mx.simulate(chosen, fresh.logits_MBC)
        rows = torch.arange(len(exit_B))
        early_B = fresh.logits_MBC[exit_B, rows].argmax(-1)
        full_B = fresh.logits_MBC[-1].argmax(-1)
        lost_B = early_B != full_B
        if loss == "accuracy":
            lost_B = (full_B == fresh.labels_B) & (early_B != fresh.labels_B)
        assert float(lost_B.double().mean()) <= risk * 1.15
        speeds.append(mx.judge(fresh, chosen).speedup_layers)
    assert speeds == sorted(speeds)
    assert speeds[-1] > 1


def test_what_cannot_be_certified_is_refused():
    with pytest.raises(ValueError, match=r"30 rows can't certify a risk of 0.01.*takes 230 rows"):
        mx.calibrate(outputs_of(30), mx.MaxProb, risk=0.01)
    with pytest.raises(ValueError, match="one target"):
        mx.calibrate(outputs_of(), mx.MaxProb)
    with pytest.raises(ValueError, match="one target"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=0.1, speedup=2.0)
    with pytest.raises(ValueError, match=r"risk must be in \(0, 1\), got 1.5"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=1.5)
    with pytest.raises(ValueError, match="confidence must be"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=0.1, confidence=1.0)
    with pytest.raises(ValueError, match="no loss 'f1'"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=0.1, loss="f1")
