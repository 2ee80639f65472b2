"""Bounds on losses of any kind, several at once: by plain loops, coverage by simulation, refusals.

Letters: S settings, T trials, B rows.
"""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_guarantee import outputs_of

import multiexit as mx
from multiexit.evaluation import card, exit_losses, guarantee, p_values
from multiexit.evaluation.targets import losses_of_settings

TRIALS = 4000


def most(delta, trials):
    return delta + 3 * math.sqrt(delta * (1 - delta) / trials)


@pytest.mark.parametrize("delta", [0.05, 0.2])
@pytest.mark.parametrize("kind", ["beta", "uniform", "two points", "mostly none"])
def test_a_betting_p_value_is_small_as_seldom_as_promised(kind, delta):
    """Losses whose mean is the risk to the last bit, where the bound is the hardest to keep."""
    draw = torch.Generator().manual_seed(0)
    u_TB = torch.rand(TRIALS, 150, generator=draw, dtype=torch.float64)
    loss_TB, risk = {
        "beta": (u_TB**9, 0.1),
        "uniform": (0.2 * u_TB, 0.1),
        "two points": ((u_TB < 0.1).double(), 0.1),
        "mostly none": ((u_TB < 0.2) * torch.rand(u_TB.shape, generator=draw).double(), 0.1),
    }[kind]
    small_T = p_values.log_capital(loss_TB, risk, delta) >= math.log(1 / delta)
    assert small_T.double().mean() <= most(delta, TRIALS)
    lower_T = p_values.log_capital(loss_TB / 2, risk, delta) >= math.log(1 / delta)
    assert lower_T.double().mean() > 0.5, "a bound that certifies next to nothing is no use"


def test_a_betting_p_value_by_plain_loops():
    loss_B = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    capital = best = 1.0
    total, spread = 0.5, 0.25
    for place, row in enumerate(order, 1):
        x = float(loss_B[row])
        bet = min(1, math.sqrt(2 * math.log(1 / 0.1) / (40 * spread / place)))
        capital *= 1 - bet * (x - 0.4)
        best = max(best, capital)
        total += x
        spread += (x - total / (1 + place)) ** 2
    assert p_values.betting(loss_B, 0.4, 0.1) == pytest.approx(1 / best)
    for bound in ("binomial", "betting"):
        low = p_values.rows_needed(0.05, 0.1, bound)
        p_value = p_values.P_VALUES[bound]
        fits, fails = (p_value(torch.zeros(n), 0.05, 0.1) for n in (low, low - 1))
        assert fits <= 0.1 < fails


def test_bounds_are_tighter_where_they_hold():
    rare_B = (torch.arange(300) % 20 == 0).double()
    small_B = 0.2 * torch.rand(300, dtype=torch.float64)
    widest = [p_values.upper_bound(loss_B, 0.1) for loss_B in (rare_B, small_B)]
    assert p_values.upper_bound(rare_B, 0.1, "binomial") < widest[0]
    assert p_values.upper_bound(small_B, 0.1, "betting") < 0.85 * widest[1]


def test_losses_are_what_plain_loops_say():
    outputs = outputs_of(50)
    early, last = (z.softmax(-1).tolist() for z in (outputs.logits_MBC[1], outputs.logits_MBC[-1]))
    far, rise = [], []
    for p, q, label in zip(early, last, outputs.labels_B.tolist(), strict=True):
        far.append(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / 2)
        score = [sum((a - (c == label)) ** 2 for c, a in enumerate(r)) / 2 for r in (p, q)]
        rise.append(max(0.0, score[0] - score[1]))
    for kind, wanted in (("consistency", far), ("brier", rise)):
        (loss_B,) = exit_losses.losses_of(outputs, outputs.logits_MBC[1:2], kind)
        assert loss_B.tolist() == pytest.approx(wanted, abs=1e-6)
        assert 0 < sum(wanted) < 50


def test_losses_of_several_decisions_are_means_over_them():
    z_MBC = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    labels_BC = (torch.arange(120).reshape(30, 4) % 3 == 0).long()
    cost = mx.Cost((1, 2), (1, 2), (1, 2), 2)
    labels = mx.Outputs(z_MBC, labels_BC, cost, problem="multi-label")
    p_BC, q_BC = z_MBC.double().sigmoid()
    for kind, wanted_B in (
        ("consistency", (p_BC - q_BC).square().mean(1)),
        ("brier", ((p_BC - labels_BC).square() - (q_BC - labels_BC).square()).mean(1).clamp(min=0)),
    ):
        (loss_B,) = exit_losses.losses_of(labels, z_MBC[:1], kind)
        torch.testing.assert_close(loss_B, wanted_B)

    tokens_MBTC = torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(1))
    labels_BT = torch.arange(30).reshape(6, 5) % 3
    labels_BT[:, 3:] = -100
    labels_BT[5] = -100
    asked_BT = torch.ones(6, 5, dtype=torch.bool)
    asked_BT[0, 0] = False
    p_BTC, q_BTC = tokens_MBTC.double().softmax(-1)
    right_BTC = torch.nn.functional.one_hot(labels_BT.clamp(min=0), 3)
    for kind, wanted_BT in (
        ("consistency", (p_BTC - q_BTC).square().sum(-1) / 2),
        ("brier", ((p_BTC - right_BTC).square() - (q_BTC - right_BTC).square()).sum(-1) / 2),
    ):
        got_SB = exit_losses.losses(
            tokens_MBTC[:1], tokens_MBTC[1], labels_BT, kind, "token-classification", asked_BT
        )
        counted_BT = asked_BT & (labels_BT != -100) if kind == "brier" else asked_BT
        for row in range(6):
            some = wanted_BT[row][counted_BT[row]]
            wanted = max(0.0, float(some.mean())) if len(some) else 0.0
            assert float(got_SB[0, row]) == pytest.approx(wanted)


def margin_lost(early_BC, last_BC, labels_B):
    """A loss of one's own: how much of the probability of the label is lost."""
    before_B, after_B = (
        z.softmax(-1).gather(1, labels_B[:, None])[:, 0] for z in (last_BC, early_BC)
    )
    return (before_B - after_B).clamp(min=0)


RISKS = {"brier": 0.05, "consistency": 0.04, margin_lost: 0.08}


@pytest.fixture(scope="module")
def everyone():
    """Outputs, policies from the safest on, and for each loss what they lose, [S, P]."""
    outputs = outputs_of(20_000)
    tried = [mx.MaxProb(1.01 - t / 100) for t in range(0, 70, 2)]
    return outputs, tried, {loss: losses_of_settings(outputs, tried, loss)[1] for loss in RISKS}


def broken(loss_SP, risk_S, risks, delta, rows=200, trials=500):
    """How often a setting is chosen that breaks one of the risks."""
    count = 0
    for seed in range(trials):
        draw = torch.randint(
            loss_SP[0].shape[1], (rows,), generator=torch.Generator().manual_seed(seed)
        )
        chosen = [
            guarantee.learn_then_test(loss[:, draw], risk, delta, "betting")
            for loss, risk in zip(loss_SP, risks, strict=True)
        ]
        if None not in chosen:
            index = min(chosen)
            count += any(mean_S[index] > risk for mean_S, risk in zip(risk_S, risks, strict=True))
    return count / trials


@pytest.mark.parametrize("delta", [0.1, 0.2])
@pytest.mark.parametrize("together", [["brier"], ["consistency"], [margin_lost], [*RISKS]])
def test_risks_are_kept_as_often_as_promised(together, delta, everyone):
    loss_SP = [everyone[2][loss] for loss in together]
    risks = [RISKS[loss] for loss in together]
    risk_S = [loss.mean(1) for loss in loss_SP]
    safe_S = torch.stack([m <= r for m, r in zip(risk_S, risks, strict=True)]).all(0)
    hard = [0, int(safe_S.sum()), len(safe_S) - 1]  # safe, just not, and not at all
    assert 0 < hard[1] < hard[2]
    hardest = broken([x[hard] for x in loss_SP], [m[hard] for m in risk_S], risks, delta)
    assert hardest <= most(delta, 500)


def test_a_policy_keeps_several_risks_at_once(everyone):
    outputs = outputs_of(600, seed=5)
    policy = mx.calibrate(outputs, mx.MaxProb, risk=RISKS)
    alone = [mx.calibrate(outputs, mx.MaxProb, risk=r, loss=loss) for loss, r in RISKS.items()]
    assert policy.threshold == max(each.threshold for each in alone)
    certificate = policy.certificate
    assert (certificate.loss, certificate.risk) == ("brier", 0.05)
    assert [(b.loss, b.risk) for b in certificate.also] == [
        ("consistency", 0.04),
        ("own:margin_lost", 0.08),
    ]
    again = mx.policies.from_json(json.loads(json.dumps(mx.policies.to_json(policy))))
    assert again.certificate == certificate
    for loss, bound in zip(RISKS, (certificate, *certificate.also), strict=True):
        assert bound.observed == pytest.approx(exit_losses.realised(outputs, policy, loss))
        assert exit_losses.realised(everyone[0], policy, loss) <= bound.risk
    words = card._certificate(mx.policies.to_json(policy))
    assert words.startswith(
        "a mean loss of at most 0.05 (brier), 0.04 (consistency), 0.08 (own:margin"
    )
    for confidence in (0.9, None):
        chosen = mx.calibrate(outputs, mx.MaxProb, risk=RISKS, confidence=confidence)
        assert mx.judge(everyone[0], mx.MaxProb(chosen.threshold)).speedup_layers > 1.1


def test_a_tensor_of_losses_is_as_good_as_their_function():
    outputs = outputs_of(300)
    loss_MB = torch.stack(
        [margin_lost(z, outputs.logits_MBC[-1], outputs.labels_B) for z in outputs.logits_MBC]
    )
    one, other = (
        mx.calibrate(outputs, mx.MaxProb, risk=0.1, loss=loss) for loss in (margin_lost, loss_MB)
    )
    assert one == other
    assert one.certificate.observed == pytest.approx(other.certificate.observed)
    assert (one.certificate.loss, other.certificate.loss) == ("own:margin_lost", "own:losses")
    assert exit_losses.realised(outputs, mx.MaxProb(one.threshold), loss_MB) == pytest.approx(
        one.certificate.observed
    )


def test_a_loss_that_works_in_place_or_rounds_changes_nothing():
    outputs = outputs_of(300)
    kept = outputs.logits_MBC.clone(), outputs.labels_B.clone()

    def rough(early_BC, last_BC, labels_B):
        wrong_B = early_BC.sub_(early_BC.mean(-1, keepdim=True)).argmax(-1) != labels_B
        for given in (last_BC, labels_B):
            given.zero_()
        return wrong_B.float() * 1.0000001

    def plain(early_BC, last_BC, labels_B):
        return (early_BC.argmax(-1) != labels_B).float()

    one, other = (mx.calibrate(outputs, mx.MaxProb, risk=0.6, loss=loss) for loss in (rough, plain))
    assert one.threshold == other.threshold
    assert one.certificate.observed == other.certificate.observed
    assert torch.equal(kept[0], outputs.logits_MBC)
    assert torch.equal(kept[1], outputs.labels_B)


def test_numbers_have_losses_of_ones_own():
    """A loss that isn't 0 at the last exit, of regression."""
    values_MBC = torch.linspace(0.5, 0.1, 4)[:, None, None] * torch.ones(4, 100, 1)
    cost = mx.Cost((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), 4)
    numbers = mx.Outputs(values_MBC, torch.zeros(100), cost, "pearson_spearman")

    def error(early_BC, last_BC, labels_B):
        return (early_BC[:, 0] - labels_B).abs()

    policy = mx.calibrate(numbers, mx.FixedExit, risk=0.5, loss=error)
    assert policy.certificate.observed == pytest.approx(float(values_MBC[policy.exit].mean()))
    with pytest.raises(ValueError, match=r"whose loss \(own:error\) on them is 0.1000"):
        mx.calibrate(numbers, mx.FixedExit, risk=0.08, loss=error)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"risk": {}}, "risks by loss are like"),
        ({"risk": {"brier": 0.1}, "loss": "accuracy"}, "without loss=; got"),
        ({"risk": {"brier": 0.1, "accuracy": 2}}, r"risk must be a number in \(0, 1\), got 2"),
        ({"risk": {"bier": 0.1}}, "no loss 'bier': did you mean 'brier'"),
        ({"risk": {"brier": 0.1, "cosine": 0.1}}, "loss 'cosine' isn't one of classes"),
        ({"risk": 0.005, "loss": "brier"}, "300 rows can't certify a risk of 0.005.*takes 4"),
        (
            {"risk": 0.1, "loss": lambda e, f, y: y},
            "must be in 0..1, and own:<lambda> gives",
        ),
        ({"risk": 0.1, "loss": lambda e, f, y: e[:, 0] * math.nan}, "gives nan"),
        ({"risk": 0.1, "loss": lambda e, f, y: e[:, 0] * 0 + 1.00001}, "gives 1.0000"),
        ({"risk": 0.1, "loss": lambda e, f, y: e}, r"must be a tensor \[300\], got \(300, 3\)"),
        ({"risk": 0.1, "loss": lambda e, f, y: 0.0}, r"must be a tensor \[300\], got float"),
        ({"risk": 0.1, "loss": torch.zeros(4, 3)}, r"own:losses must be a tensor \[4, 300\]"),
        ({"risk": 0.1, "loss": torch.full((4, 300), -1.0)}, "own:losses gives -1"),
        ({"risk": 0.1, "loss": "own:error"}, "no loss 'own:error'"),
    ],
)
def test_what_can_t_be_bounded_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        mx.calibrate(replace(outputs_of(300), keys_B=None), mx.MaxProb, **options)
