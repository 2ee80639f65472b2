"""MSDNet: a budget, spent by thresholds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit.evaluation import budget


def told(logits_MBC, macs_M, full=None):
    """Outputs of a network that costs this much."""
    exits = len(logits_MBC)
    cost = mx.Cost(tuple(range(1, exits + 1)), tuple(macs_M), (1,) * exits, full or macs_M[-1])
    number = logits_MBC.shape[-1] == 1
    labels_B = torch.zeros(logits_MBC.shape[1], dtype=torch.float if number else torch.long)
    return mx.Outputs(logits_MBC, labels_B, cost)


COSTS = st.lists(st.integers(1, 1000), min_size=2, max_size=6).map(
    lambda steps: tuple(int(total) for total in np.cumsum(steps))
)


@given(macs_M=COSTS, where=st.floats(0.02, 0.98), rows=st.integers(1, 60), seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_rows_spend_the_budget_and_no_more_than_whole_rows_need(macs_M, where, rows, seed):
    spend = macs_M[0] + where * (macs_M[-1] - macs_M[0])
    exits = len(macs_M)
    generator = torch.Generator().manual_seed(seed)
    logits_MBC = torch.randn(exits, rows, 3, generator=generator)
    sure_MB = logits_MBC.softmax(-1).amax(-1)
    assume(all(len(set(sure_B.tolist())) == rows for sure_B in sure_MB))
    policy = mx.budgeted(told(logits_MBC, macs_M), macs_M[-1] / spend)
    exit_B = mx.simulate(policy, logits_MBC)
    spent = sum(macs_M[m] for m in exit_B.tolist()) / rows
    # Shares are cut to whole rows, and who is cut goes on to the end: less than a row per exit.
    most = sum(macs_M[-1] - macs_M[m] for m in range(exits - 1)) / rows
    assert spend * (1 - 1e-6) <= spent <= spend * (1 + 1e-6) + most


@given(macs_M=COSTS, where=st.floats(0.02, 0.98))
@settings(max_examples=50, deadline=None)
def test_shares_are_geometric_and_meet_the_budget(macs_M, where):
    spend = macs_M[0] + where * (macs_M[-1] - macs_M[0])
    share_M = budget.shares(macs_M, spend).tolist()
    assert sum(share_M) == pytest.approx(1)
    assert sum(p * macs for p, macs in zip(share_M, macs_M, strict=True)) == pytest.approx(spend)
    for m in range(len(share_M) - 2):
        assert share_M[m] * share_M[m + 2] == pytest.approx(share_M[m + 1] ** 2, rel=1e-6)


def naive_thresholds(sure, share_M):
    """The rule of MSDNet's code, row by row; None where nobody leaves."""
    exits, rows = len(sure), len(sure[0])
    gone, thresholds = [False] * rows, []
    for m in range(exits - 1):
        wanted, counted, threshold = math.floor(rows * share_M[m] + 1e-9), 0, None
        for row in sorted(range(rows), key=lambda row: -sure[m][row]):
            if not gone[row]:
                counted += 1
                if counted == wanted:
                    threshold = sure[m][row]
                    break
        thresholds.append(threshold)
        for row in range(rows):
            gone[row] = gone[row] or (threshold is not None and sure[m][row] >= threshold)
    return thresholds


@given(
    levels=st.integers(1, 40),
    rows=st.integers(1, 40),
    where=st.floats(0.02, 0.98),
    seed=st.integers(0, 9999),
)
@settings(max_examples=120, deadline=None)
def test_thresholds_are_those_of_msdnets_code_ties_and_all(levels, rows, where, seed):
    macs_M = (10, 25, 70, 100)
    generator = torch.Generator().manual_seed(seed)
    first_MB = torch.randint(1, levels + 1, (4, rows), generator=generator) / 10
    logits_MBC = torch.stack([first_MB, torch.zeros(4, rows)], -1)
    spend = 10 + where * 90
    policy = mx.budgeted(told(logits_MBC, macs_M), 100 / spend)
    sure = logits_MBC.softmax(-1).amax(-1).tolist()
    wanted = naive_thresholds(sure, budget.shares(macs_M, spend).tolist())
    assert len(policy.threshold) == 3
    for got, threshold in zip(policy.threshold, wanted, strict=True):
        assert got > 1 if threshold is None else got == threshold


def test_a_budget_by_hand():
    """Even shares of 8 rows over 4 exits: two leave at each."""
    order = [[8, 7, 6, 5, 4, 3, 2, 1], [9, 9, 1, 2, 3, 4, 5, 6], [9, 9, 1, 7, 3, 4, 9, 9]]
    z = torch.tensor([*order, [0] * 8]).float().unsqueeze(-1)
    logits_MBC = torch.cat([z / 10, torch.zeros_like(z)], -1)
    policy = mx.budgeted(told(logits_MBC, (1, 2, 3, 4)), 4 / 2.5)
    assert mx.simulate(policy, logits_MBC).tolist() == [0, 0, 3, 2, 3, 2, 1, 1]


def test_too_few_rows_for_a_budget_are_told():
    with pytest.warns(UserWarning, match="2 rows are too few.*spend 1.60 times as much"):
        policy = mx.budgeted(told(torch.randn(4, 2, 3), (1, 2, 3, 4)), 4 / 2.5)
    assert min(policy.threshold) > 1


def test_one_exit_spends_what_it_costs():
    outputs = told(torch.randn(1, 20, 3), (7,))
    assert mx.judge(outputs, mx.budgeted(outputs, 1.0)).speedup_macs == 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: mx.budgeted(told(torch.zeros(2, 3, 2), (50, 100)), 2.5), "first exit costs 50"),
        (lambda: mx.budgeted(told(torch.zeros(2, 3, 2), (50, 100), 400), 2.0), "the last 100"),
        (
            lambda: mx.budgeted(told(torch.zeros(2, 3, 1), (50, 100)), 1.5),
            "a budget needs at least 2 c",
        ),
        (lambda: mx.recipe("msdnet", speedup=0.0), "speedup must be above 0"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()
