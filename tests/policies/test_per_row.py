"""Rows with policies of their own: each leaves where it would alone, whoever is beside it."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit import policies
from multiexit.policies import POLICIES, PerRow, for_problem, kinds_of, numbers_of
from multiexit.policies.base import ROW

M, C = 4, 3
SETTINGS = [
    "entropy=0.4", "entropy=0.9", "normalized-entropy=0.7", "max-prob=0.5", "max-prob=0.8",
    "max-prob=0.9/0.6/0.5", "most-confident=0.7", "margin=0.3", "margin=0.6", "patience=1",
    "patience=2", "patient-confident=0.8,1", "patient-confident=0.9,2", "certainty=0.4",
    "certainty=0.7", "product=0.7", "product=0.9", "beem=0.2", "beem=0.5,0.3", "fixed=0", "fixed=2",
]  # fmt: skip
PARSED = [policies.parse(text) for text in SETTINGS]


def leave(policy, state, logits_MBC, certainty_MB):
    """Exit and answer of each row, by the plain loop."""
    B = logits_MBC.shape[1]
    exit_B = torch.full((B,), M - 1)
    answer_BC = torch.empty(logits_MBC.shape[1:])
    running_B = torch.ones(B, dtype=torch.bool)
    state = {**state, **policy.init(logits_MBC[0])}
    for exit, logits_BC in enumerate(logits_MBC):
        stop_B = torch.ones(B, dtype=torch.bool)
        if exit < M - 1:
            state, stop_B = policies.step(policy, state, logits_BC, certainty_MB[exit])
        leave_B = running_B & stop_B
        exit_B[leave_B] = exit
        answer_BC[leave_B] = policy.answer(state, logits_BC)[leave_B]
        running_B &= ~stop_B
    return exit_B, answer_BC


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PARSED), min_size=1, max_size=9), st.integers(0, 99))
@pytest.mark.parametrize("problem", ["classification", "multi-label"])
def test_each_row_leaves_as_it_would_alone(problem, own, seed):
    generator = torch.Generator().manual_seed(seed)
    B = len(own)
    logits_MBC = torch.randn(M, B, C, generator=generator) * 2
    certainty_MB = torch.rand(M, B, generator=generator)
    rows = PerRow(kinds_of(own))
    together = leave(
        for_problem(rows, problem), rows.row_state(own, "cpu"), logits_MBC, certainty_MB
    )
    for row, policy in enumerate(own):
        one = slice(row, row + 1)
        alone = leave(for_problem(policy, problem), {}, logits_MBC[:, one], certainty_MB[:, one])
        assert together[0][row] == alone[0][0], policy
        torch.testing.assert_close(together[1][row], alone[1][0], msg=f"{policy}")


def test_all_policies_of_decisions_are_tried():
    tried = {type(policy) for policy in PARSED}
    assert {kind for kind in POLICIES.values() if "decisions" in kind.reads} <= tried


def test_policies_that_differ_in_numbers_are_one_kind():
    assert len(kinds_of([policies.parse("max-prob=0.8"), policies.parse("max-prob=0.9")])) == 1
    assert len(kinds_of([policies.parse("max-prob=0.8"), policies.parse("max-prob=0.9/0.8")])) == 2
    assert numbers_of(policies.parse("max-prob=0.9/0.8")) == {}


def test_what_is_of_rows_stays_as_it_is():
    own = [policies.parse("patience=1"), policies.parse("patience=3")]
    rows = PerRow(kinds_of(own))
    state = {**rows.row_state(own, "cpu"), **rows.init(torch.zeros(2, C))}
    after, _ = rows.step(state, torch.zeros(2, C))
    for name in state:
        if name.startswith(ROW):
            assert after[name] is state[name]


@pytest.mark.parametrize("typed", ["patience=3,0.5", "max-prob=0.9/0.8", "fixed=1"])
def test_a_policy_of_another_kind_is_refused_as_it_is_typed(typed):
    own = [*map(policies.parse, ("max-prob=0.495", "patience=2", "margin=0.9/0.5"))]
    with pytest.raises(ValueError, match="none of the kinds") as refused:
        PerRow(kinds_of(own)).row_state([policies.parse(typed)], "cpu")
    assert str(refused.value) == (
        f"the policy {typed} is of none of the kinds max-prob=THRESHOLD, patience=PATIENCE, "
        "margin=0.9/0.5"
    )


@dataclass(frozen=True)
class Temperate(mx.ExitPolicy):
    """Its numbers meet [B, C] and plain Python: with one for each row they'd mean another thing."""

    threshold: float
    temperature: float = 1.0
    first: int = 0

    def init(self, logits_BC):
        return {"seen": torch.zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state, logits_BC):
        least = math.exp(math.log(self.threshold)) if self.threshold > 0.5 else self.threshold
        sure_B = (logits_BC / self.temperature).softmax(-1).amax(-1)
        return {"seen": state["seen"] + 1}, (sure_B >= least) & (state["seen"] >= self.first)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99))
def test_a_policy_of_ones_own_stops_each_row_as_it_would_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    own = [Temperate(0.6, 3.0), Temperate(0.6), Temperate(0.6, 0.3, 1)]
    assert len(own) == C
    logits_MBC = torch.randn(M, C, C, generator=generator) * 2
    rows = PerRow(kinds_of(own))
    exit_B, _ = leave(rows, rows.row_state(own, "cpu"), logits_MBC, torch.zeros(M, C))
    alone = [mx.simulate(policy, logits_MBC[:, [row]]) for row, policy in enumerate(own)]
    assert exit_B.tolist() == torch.cat(alone).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["max-prob", "certainty", "margin", "entropy", "product", "beem"])
def test_a_threshold_is_as_fine_as_the_logits(kind, dtype):
    """One for each exit, and one for each row, stop as the number alone, on either side of it."""
    certainty_MB = torch.full((M, 1), 0.7)
    logits_MBC = torch.tensor([0.4, -0.9, 0.1], dtype=dtype).expand(M, 1, C)
    figure = {
        "max-prob": lambda z: z.softmax(-1).amax(-1),
        "certainty": lambda z: certainty_MB[0],
        "margin": lambda z: -z.softmax(-1).topk(2).values.diff(dim=-1),
        "entropy": policies.confidence.entropy,
        "product": lambda z: z.log_softmax(-1).softmax(-1).amax(-1),
        "beem": lambda z: 0.2 * z.softmax(-1).amax(-1),
    }[kind](logits_MBC[0]).item()
    for off in (0.0, -1e-9, 1e-9, -1e-17, 1e-17):
        number = policies.POLICIES[kind](figure + off)
        wanted = mx.simulate(number, logits_MBC, certainty_MB)
        if kind != "product":
            each = policies.POLICIES[kind]((figure + off,) * M)
            assert mx.simulate(each, logits_MBC, certainty_MB).equal(wanted)
        rows = PerRow(kinds_of([number]))
        state = {**rows.row_state([number], "cpu"), **rows.init(logits_MBC[0])}
        stops = []
        for logits_BC, sure_B in zip(logits_MBC[:-1], certainty_MB[:-1], strict=True):
            state, stop_B = policies.step(rows, state, logits_BC, sure_B)
            stops.append(stop_B.item())
        assert stops.index(True) == wanted if True in stops else wanted == len(stops)
