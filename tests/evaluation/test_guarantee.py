"""Bounds on what early exits cost: the p-value by hand, coverage by simulation, refusals."""

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit import policies
from multiexit.evaluation import exit_losses, guarantee, p_values
from multiexit.evaluation.outputs import Outputs
from multiexit.model.cost import Cost

RISKS = torch.linspace(0, 1, 101, dtype=torch.float64)


def drawn(rows: int, seed: int) -> torch.Tensor:
    """Losses [S, rows] of settings whose true risks are known: 1 with probability RISKS[s]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, generator=generator, dtype=torch.float64) < RISKS[:, None]).double()


class Population(NamedTuple):
    """Losses of settings, safest first, on all rows there are: their true risks are the means."""

    loss_SP: torch.Tensor

    @property
    def risk_S(self) -> torch.Tensor:
        return self.loss_SP.mean(1)

    def hard(self, risk: float) -> "Population":
        """Four of the settings: two that are safe, the first that is not, and the worst."""
        safe = int((self.risk_S <= risk / 2).sum()) - 1
        first = int((self.risk_S <= risk).sum())
        return Population(self.loss_SP[[0, safe, first, -1]])

    def risks(self, choose, rows: int) -> torch.Tensor:
        """The true risk of what is chosen on each of many draws of calibration rows."""
        found = []
        for seed in range(TRIALS):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(self.loss_SP.shape[1], (rows,), generator=generator)
            index = choose(self.loss_SP[:, drawn])
            found.append(0.0 if index is None else float(self.risk_S[index]))
        return torch.tensor(found, dtype=torch.float64)


TRIALS = 3000
CHOICES = [
    (0.05, 0.1, "binomial"),
    (0.1, 0.05, "hoeffding-bentkus"),
    (0.15, 0.1, "hoeffding-bentkus"),
    (0.2, 0.2, "binomial"),
]


@pytest.fixture(scope="module", params=["disagreement", "accuracy"])
def population(request) -> Population:
    outputs = outputs_of(20_000)
    tried = [mx.MaxProb(1.01 - t / 100) for t in range(0, 70, 2)]
    answer_SPC = torch.stack([policies.answers(p, outputs.logits_MBC)[1] for p in tried])
    full_PC = outputs.logits_MBC[-1]
    return Population(exit_losses.losses(answer_SPC, full_PC, outputs.labels_B, request.param))


def too_far(choose):
    """One setting further than what is right: the first that was not certified."""

    def wrong(loss_SB):
        index = choose(loss_SB)
        return min(0 if index is None else index + 1, len(loss_SB) - 1)

    return wrong


@pytest.mark.parametrize(("risk", "delta", "bound"), CHOICES)
def test_the_certified_setting_keeps_its_risk_as_often_as_promised(risk, delta, bound, population):
    def choose(loss_SB):
        return guarantee.learn_then_test(loss_SB, risk, delta, bound)

    most = delta + 3 * math.sqrt(delta * (1 - delta) / TRIALS)
    found = population.risks(choose, 200)
    assert (found > risk).double().mean() <= most
    assert found.mean() > risk / 4, "a bound that certifies next to nothing is no use"
    hard = population.hard(risk)
    assert (hard.risks(choose, 200) > risk).double().mean() <= most
    assert (hard.risks(too_far(choose), 200) > risk).double().mean() > most


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.2])
def test_the_conformal_setting_keeps_its_risk_on_average(risk, population):
    def choose(loss_SB):
        return guarantee.conformal(loss_SB, risk)

    def most(found):
        return risk + 3 * float(found.std()) / math.sqrt(TRIALS)

    hard = population.hard(risk)
    found, further, wrong = (
        population.risks(choose, 60),
        hard.risks(choose, 60),
        hard.risks(too_far(choose), 60),
    )
    assert risk / 2 < found.mean() <= most(found)
    assert further.mean() <= most(further)
    assert wrong.mean() > most(wrong)


def test_the_p_value_by_hand():
    assert p_values.hoeffding_bentkus(torch.zeros(10), 0.2) == pytest.approx(0.8**10)
    # Hoeffding: exp(−20·(0.1 log 0.5 + 0.9 log(0.9 / 0.8))); Bentkus: e·P(Bin(20, 0.2) ≤ 2).
    hoeffding = math.exp(-20 * (0.1 * math.log(0.5) + 0.9 * math.log(0.9 / 0.8)))
    bentkus = math.e * sum(math.comb(20, k) * 0.2**k * 0.8 ** (20 - k) for k in range(3))
    two_B = torch.tensor([0.0, 0, 1, 1] + [0] * 16)
    assert p_values.hoeffding_bentkus(two_B, 0.2) == pytest.approx(min(hoeffding, bentkus))
    assert p_values.binomial(two_B, 0.2) == pytest.approx(bentkus / math.e)
    assert p_values.hoeffding_bentkus(torch.full((20,), 0.5), 0.2) == 1.0
    assert p_values.rows_needed(0.05, 0.1) == 45
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
    with pytest.raises(
        ValueError, match=r"30 rows can't certify a risk of 0.01.*230 rows .* risk of 0.08"
    ):
        mx.calibrate(outputs_of(30), mx.MaxProb, risk=0.01)
    with pytest.raises(ValueError, match="one target"):
        mx.calibrate(outputs_of(), mx.MaxProb)
    with pytest.raises(ValueError, match="one target"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=0.1, speedup=2.0)
    with pytest.raises(ValueError, match=r"risk must be a number in \(0, 1\), got 1.5"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=1.5)
    with pytest.raises(ValueError, match="confidence must be"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=0.1, confidence=1.0)
    with pytest.raises(ValueError, match="no loss 'f1'"):
        mx.calibrate(outputs_of(), mx.MaxProb, risk=0.1, loss="f1")
    values = torch.zeros(2, 3, 1)
    with pytest.raises(ValueError, match=r"bounded risk needs at least 2 classes.*a speedup"):
        exit_losses.losses(values, values[0], torch.zeros(3), "disagreement")


def test_a_model_that_answers_one_class_is_warned_about():
    outputs = outputs_of()
    constant = replace(outputs, logits_MBC=outputs.logits_MBC + torch.tensor([99.0, 0, 0]))
    one_label = replace(outputs, labels_B=torch.zeros_like(outputs.labels_B))
    with pytest.warns(UserWarning, match="answers class 0 on all 400 rows"):
        mx.budgeted(constant, 1.2)
    for target in ({"risk": 0.1}, {"speedup": 1.5}, {"score": 0.1}):
        with pytest.warns(UserWarning, match="answers class 0 on all 400 rows.*3 different labels"):
            mx.calibrate(constant, mx.MaxProb, **target)
        with pytest.warns(UserWarning, match="calibrate on have one label, class 0"):
            mx.calibrate(one_label, mx.MaxProb, **target)
