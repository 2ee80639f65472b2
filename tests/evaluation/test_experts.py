"""Exits that vote: weights and thresholds from their errors, by plain loops."""

import pytest
import torch
from helpers import Scores, Table, chain, config, linear_chain
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit.evaluation.experts import LEAST


def outputs_of(logits_MBC, labels_B, **more):
    M = len(logits_MBC)
    layers = tuple(range(1, M + 1))
    macs = tuple(10 * layer for layer in layers)
    return mx.Outputs(
        logits_MBC, labels_B, mx.Cost(layers, macs, layers, full_macs=macs[-1]), **more
    )


def drawn(M, B, C, seed):
    """Exits that are right more often the deeper they are, and answers that last."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(C, (B,), generator=generator)
    logits_MBC = torch.randn(M, B, C, generator=generator).cumsum(0)
    logits_MBC += torch.arange(1, M + 1)[:, None, None] * 0.4 * torch.eye(C)[labels_B]
    return logits_MBC, labels_B


def naive_scores(logits_MC, weights):
    """S of one row at each exit."""
    scores, before, score = [], None, 0.0
    for weight, z_C in zip(weights, logits_MC, strict=True):
        answer = int(z_C.argmax())
        score = score + weight * float(z_C.softmax(0).max()) if answer == before else 0.0
        before = answer
        scores.append(score)
    return scores


@given(M=st.integers(2, 6), B=st.integers(2, 40), C=st.integers(2, 4), seed=st.integers(0, 9999))
@settings(max_examples=50, deadline=None)
@pytest.mark.filterwarnings("ignore:the last exit answers", "ignore:all")
def test_rows_leave_where_they_err_no_more_than_at_the_end(M, B, C, seed):
    logits_MBC, labels_B = drawn(M, B, C, seed)
    policy = mx.fit_experts(outputs_of(logits_MBC, labels_B))
    wrong = [[int(z.argmax()) != int(y) for z, y in zip(z_BC, labels_B, strict=True)]
             for z_BC in logits_MBC]  # fmt: skip
    accuracies = [1 - sum(each) / B for each in wrong]
    assert policy.weight == pytest.approx([max(LEAST, a) for a in accuracies])
    S = [naive_scores(logits_MBC[:, b], policy.weight) for b in range(B)]
    here = list(range(B))
    for m in range(M - 1):
        fitting = [
            least
            for least in {S[b][m] for b in here}
            if sum(wrong[m][b] for b in here if S[b][m] >= least) * B
            <= sum(wrong[-1]) * sum(S[b][m] >= least for b in here)
        ]
        if fitting:
            assert policy.threshold[m] == pytest.approx(min(fitting), abs=1e-5)
        else:
            assert policy.threshold[m] > sum(policy.weight)
        here = [b for b in here if S[b][m] < policy.threshold[m] - 1e-6]


def test_thresholds_by_hand():
    """Six rows, two exits. Right where they agree, but for row 3; the last exit errs on row 5."""
    first = torch.tensor([[4.0, 0], [3, 0], [0, 2], [1, 0], [9, 0], [0, 9]])
    second = torch.tensor([[4.0, 0], [3, 0], [0, 2], [1, 0], [0, 1], [1, 0]])
    third = torch.tensor([[4.0, 0], [4, 0], [0, 4], [0, 4], [0, 4], [4, 0]])
    labels_B = torch.tensor([0, 0, 1, 1, 1, 1])
    policy = mx.fit_experts(outputs_of(torch.stack([first, second, third]), labels_B))
    assert policy.weight == pytest.approx((4 / 6, 4 / 6, 5 / 6))
    # At the first exit all scores are 0, and 2 of 6 rows are wrong: more than the last one's 1.
    assert policy.threshold[0] > sum(policy.weight)
    # At the second, rows 0, 1, 2 agree at p of 0.98, 0.95, 0.88, all right, and row 3 at 0.73,
    # wrong: 1 of 4 is too many, so is 2 of 6.
    p = torch.tensor(2.0).sigmoid().item()
    assert policy.threshold[1] == pytest.approx(4 / 6 * p)


def test_it_needs_one_class_a_row():
    for problem, labels in (("multi-label", torch.ones(4, 3)), ("regression", torch.ones(4, 3))):
        with pytest.raises(ValueError, match=f"one class a row, and the problem is '{problem}'"):
            mx.fit_experts(outputs_of(torch.randn(2, 4, 3), labels, problem=problem))
    with pytest.raises(ValueError, match="no rows"):
        mx.fit_experts(outputs_of(torch.randn(2, 0, 3), torch.zeros(0, dtype=torch.long)))


def test_the_recipe_refuses_other_problems_before_it_trains():
    with pytest.raises(ValueError, match=r"Beem|classes|one class a row"):
        mx.Trainer(linear_chain(classes=1), mx.recipe("beem"), config()).fit(Scores(8), Scores(8))
    model = mx.MultiExitModel(chain().backbone, 3, problem="multi-label")
    with pytest.raises(ValueError, match="one class a row, and the problem is 'multi-label'"):
        mx.Trainer(model, mx.recipe("beem"), config())
    with pytest.raises(ValueError, match="calibrates the trained model on a dev set"):
        mx.Trainer(chain(), mx.recipe("beem"), config()).fit(Table(8))
