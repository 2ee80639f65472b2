"""Rows that are several labels or numbers, after the model has run: each part is right or refuses.

Letters: M exits, S settings, B rows, C outputs.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import multiexit as mx
from multiexit.evaluation import exit_losses, grids
from multiexit.policies import POLICIES, Known, sweep_settings

COST = mx.Cost((1, 2, 3), (10, 20, 30), (5, 10, 15), full_macs=28)


def outputs_of(problem, B=300, C=4, seed=0):
    """Exits that grow surer and better with depth."""
    generator = torch.Generator().manual_seed(seed)
    truth_BC = torch.randn(B, C, generator=generator)
    noise_MBC = torch.randn(3, B, C, generator=generator)
    sharpness_M11 = torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    logits_MBC = sharpness_M11 * truth_BC + noise_MBC
    if problem == "multi-label":
        return mx.Outputs(logits_MBC, (truth_BC > 0).long(), COST, "micro_f1", problem=problem)
    numbers_MBC = truth_BC + noise_MBC / sharpness_M11
    return mx.Outputs(numbers_MBC, truth_BC, COST, "pearson_spearman", problem=problem)


def model_of(problem, C=4):
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)))
    return mx.MultiExitModel(mx.wrap(layers), C, problem=problem).eval()


@pytest.mark.parametrize("kind", exit_losses.OF_CLASSES[:2])
def test_a_rows_loss_is_that_of_all_its_labels(kind):
    outputs = outputs_of("multi-label", B=60)
    answer_SBC = outputs.logits_MBC[:2]
    got_SB = exit_losses.losses(
        answer_SBC, outputs.logits_MBC[-1], outputs.labels_B, kind, "multi-label"
    )
    for s in range(2):
        for b in range(60):
            early, full, label = (
                [z > 0 for z in row.tolist()]
                for row in (answer_SBC[s, b], outputs.logits_MBC[-1, b], outputs.labels_B[b])
            )
            differs = early != full if kind == "disagreement" else full == label != early
            assert float(got_SB[s, b]) == differs
    assert 0 < got_SB.mean() < 1


ALONE = ("certainty", "fixed", "settled")  # go by other things than decisions


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ALONE])
def test_every_policy_is_calibrated_and_swept_by_its_decisions(name):
    outputs = outputs_of("multi-label", B=50)
    kind = POLICIES[name]
    policy = mx.PatientConfident(0.5, patience=1) if name == "patient-confident" else kind
    rows = mx.sweep(outputs, grids.family(name, outputs))
    assert min(row.speedup_layers for row in rows) == 1.0
    assert max(row.speedup_layers for row in rows) > 1.05
    fast = mx.calibrate(outputs, policy, speedup=1.05)
    assert mx.judge(outputs, fast).speedup_layers >= 1.05


def test_a_score_and_a_risk_are_kept():
    outputs = outputs_of("multi-label")
    good = mx.calibrate(outputs, mx.MaxProb, score=0.85)
    assert mx.judge(outputs, good).score >= 0.85
    safe = mx.calibrate(outputs, mx.MaxProb, risk=0.3, confidence=None)
    assert exit_losses.realised(outputs, safe, "disagreement") <= 0.3
    assert safe.certificate.observed == exit_losses.realised(outputs, safe, "disagreement")


def test_thresholds_range_over_the_two_classes_of_a_label():
    """Not over the C outputs: 1/C..1/2 and log 2..log C would do nothing."""
    outputs = outputs_of("multi-label", C=10)
    for kind in (mx.MaxProb, mx.Entropy):
        values = [policy.threshold for policy in grids.family(kind, outputs)]
        wanted = [policy.threshold for policy in sweep_settings(kind, Known(3, 2))]
        assert values == wanted


def test_a_budget_is_spent_by_the_least_sure_label():
    outputs = outputs_of("multi-label")
    policy = mx.budgeted(outputs, 1.5)
    wanted = mx.evaluation.budget.shares(COST.macs_M, COST.full_macs / 1.5)
    torch.testing.assert_close(outputs.shares(policy), wanted, atol=0.01, rtol=0)
    assert mx.judge(outputs, policy).speedup_macs == pytest.approx(1.5, abs=0.02)


def test_temperatures_make_labels_likeliest():
    outputs, model = outputs_of("multi-label"), model_of("multi-label")
    mx.fit_temperatures(model, outputs)
    labels = outputs.labels_B.double()
    for m, logits_BC in enumerate(outputs.logits_MBC.double()):
        fitted = float(model.temperature_M[m])
        losses = {
            factor: F.binary_cross_entropy_with_logits(logits_BC / (fitted * factor), labels)
            for factor in (0.98, 1.0, 1.02)
        }
        assert min(losses, key=losses.get) == 1.0
    assert len(set(model.temperature_M.tolist())) == 3


def test_exits_that_pay_and_the_tables_ask_whole_rows():
    outputs = outputs_of("multi-label")
    stages, check = ((9.0,),) * 3, ((0.1,), (50.0,), (0.1,))
    latency = mx.Latency("a CPU", (1,), (1.0,), stages, check, (0.1,), (29.0,))
    assert mx.exits_that_pay(outputs, mx.MaxProb(0.7), latency) == [0, 2]
    whole = ((outputs.logits_MBC[0] > 0) == (outputs.logits_MBC[-1] > 0)).all(1).double().mean()
    text = mx.report.exit_table(outputs)
    assert f"{100 * whole:.2f}" in text
    assert "micro_f1" in text
    assert "agreement" not in mx.report.exit_table(outputs_of("regression"))


def test_default_policies_serve_each_problem():
    for problem in ("multi-label", "regression"):
        outputs = outputs_of(problem)
        rows = mx.sweep(outputs, grids.default_policies(outputs))
        kinds = {type(row.policy).__name__ for row in rows}
        labels = {"Patience", "MaxProb", "Entropy", "FixedExit"}
        assert kinds == (labels if problem == "multi-label" else {"Patience", "FixedExit"})
        assert problem == "regression" or len({row.speedup_layers for row in rows}) > 1


def test_several_numbers_are_calibrated_by_a_tolerance_and_refused_elsewhere():
    outputs, model = outputs_of("regression"), model_of("regression")
    policy = mx.calibrate(outputs, mx.Patience(1, tolerance=1.0), score=0.5)
    assert isinstance(policy, mx.Patience)
    close_B = (outputs.logits_MBC[1] - outputs.logits_MBC[0]).abs().amax(1) < 1.5
    exit_B, _ = outputs.answers(mx.Patience(1, tolerance=1.5))
    assert exit_B.tolist() == [1 if close else 2 for close in close_B.tolist()]
    for refuse in (
        lambda: mx.calibrate(outputs, mx.Patience(1, tolerance=1.0), risk=0.2),
        lambda: mx.calibrate(outputs, mx.MaxProb, speedup=1.2),
        lambda: mx.budgeted(outputs, 1.5),
        lambda: mx.fit_temperatures(model, outputs),
        lambda: mx.sweep(outputs, [mx.Entropy(0.3)]),
    ):
        with pytest.raises(ValueError, match=r"at least 2 classes.*regression use"):
            refuse()


def test_one_answer_for_all_rows_is_warned_of():
    outputs = outputs_of("multi-label", B=80)
    same = mx.Outputs(outputs.logits_MBC.abs(), outputs.labels_B, COST, problem="multi-label")
    with pytest.warns(UserWarning, match=r"answers \[1, 1, 1, 1\] on all 80 rows"):
        mx.calibrate(same, mx.MaxProb, risk=0.3)
    alike = mx.Outputs(outputs.logits_MBC, torch.ones(80, 4), COST, problem="multi-label")
    with pytest.warns(UserWarning, match=r"have one label, \[1.0, 1.0, 1.0, 1.0\]"):
        mx.budgeted(alike, 1.2)


def test_soft_labels_judge_nothing():
    model = model_of("classification")
    batch = (torch.randn(5, 6), torch.full((5, 4), 0.25))
    with pytest.raises(ValueError, match=r"the data set: labels are shares .* plain classes"):
        mx.collect(model, [batch])


@pytest.mark.parametrize(("problem", "metric"), [("multi-label", None), ("regression", None)])
def test_collecting_scores_what_is_asked(problem, metric):
    model = model_of(problem)
    x, labels = torch.randn(9, 6), outputs_of(problem, B=9).labels_B
    outputs = mx.collect(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], metric)
    assert outputs.problem == problem
    torch.testing.assert_close(outputs.logits_MBC, model(x).detach())
    scores = mx.exit_scores(outputs)
    if problem == "multi-label":
        yes_BC = outputs.logits_MBC[-1] > 0
        hits = (yes_BC & (labels > 0)).sum()
        wanted = 2 * hits / (yes_BC.sum() + labels.sum())
        assert scores[-1]["micro_f1"] == pytest.approx(float(wanted))
    else:
        columns = [
            torch.corrcoef(torch.stack([outputs.logits_MBC[-1, :, c], labels[:, c]]))[0, 1]
            for c in range(4)
        ]
        assert scores[-1]["pearson"] == pytest.approx(float(torch.stack(columns).mean()))
    assert all(math.isfinite(row["score"]) for row in scores)
