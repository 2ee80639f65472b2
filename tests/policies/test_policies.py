"""Exit policies: against plain loops, and predict == simulate == one row at a time, for all."""

import math
import warnings
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import multiexit as mx
from multiexit import policies, testing

CLASSIFY = [
    *(mx.Entropy(t) for t in (0.0, 0.5, 0.9, 2.0)),
    *(mx.NormalizedEntropy(t) for t in (0.0, 0.5, 0.9, 1.0)),
    *(mx.MaxProb(t) for t in (0.0, 0.5, 0.8, 1.1, (0.9, 0.5, 1.1, 0.4), (0.7, 0.9, 0.5, 0.8, 0.6))),
    *(mx.MostConfident(t) for t in (0.0, 0.5, 0.8, 1.1)),
    *(mx.Margin(t) for t in (0.0, 0.3, 0.7, 1.1)),
    *(mx.ProductOfExperts(t) for t in (0.0, 0.6, 0.9, 1.1)),
    *(mx.Beem(t) for t in (0.0, 0.15, 0.4, 9.0)),
    mx.Beem((0.1, 0.5, 0.3, 0.9), (0.9, 0.4, 0.5, 0.7, 0.8)),
    mx.Beem(0.5, (0.3, 0.6, 0.2, 0.7)),
    *(mx.Patience(p) for p in (1, 2, 3, 9)),
    *(mx.PatientConfident(t, p) for t, p in ((0.9, 1), (0.9, 2), (0.6, 2), (1.1, 3))),
    *(mx.Certainty(t) for t in (0.0, 0.5, 0.8, 1.1, (0.9, 0.2, 0.5, 0.7))),
    *(mx.FixedExit(m) for m in (0, 2, 4)),
]
REGRESS = [
    *(mx.Patience(p, tolerance=t) for p, t in ((1, 0.5), (1, 2.0), (2, 1.0), (3, 9.0))),
    mx.Certainty(0.5),
    mx.FixedExit(0),
    mx.FixedExit(3),
]

VECTORS = [*(mx.Settled(t) for t in (0.0, 0.1, 0.5, 1.0, 2.5)), mx.FixedExit(0), mx.FixedExit(3)]


def naive_exit(policy, z: list[list[float]], u: list[float]) -> tuple[int, list[float]]:
    """One row's exit from its logits [M][C] and certainties [M], and what it answers."""
    M, stops = len(z), naive_stops(policy, z, u)
    exit = next((m for m in range(M - 1) if stops[m]), M - 1)
    if isinstance(policy, mx.ProductOfExperts):
        return exit, naive_products(z)[exit]
    tops = [max(probabilities(z_C)) for z_C in z[: exit + 1]]
    return exit, z[tops.index(max(tops)) if isinstance(policy, mx.MostConfident) else exit]


def naive_products(z: list[list[float]]) -> list[list[float]]:
    """The logarithms of what the exits so far multiply to; a repeated answer is left out."""
    products, total = [], [0.0] * len(z[0])
    for m, z_C in enumerate(z):
        if m == 0 or z_C != z[m - 1]:
            top = max(z_C)
            log_sum = top + math.log(sum(math.exp(x - top) for x in z_C))
            total = [t + x - log_sum for t, x in zip(total, z_C, strict=True)]
        products.append(total)
    return products


def probabilities(z_C: list[float]) -> list[float]:
    e = [math.exp(x - max(z_C)) for x in z_C]
    return [x / sum(e) for x in e]


def naive_stops(policy, z: list[list[float]], u: list[float]) -> list[bool]:
    """At which exits it would stop a row that is there."""
    count, before, score, stops = 0, None, 0.0, []
    for m, z_C in enumerate(z):
        C, p = len(z_C), probabilities(z_C)
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        top = sorted(p, reverse=True)
        answer = max(range(C), key=lambda c: z[m][c])
        threshold = getattr(policy, "threshold", None)
        if isinstance(threshold, tuple):
            threshold = threshold[m] if m < len(threshold) else None
        match policy:
            case mx.FixedExit(exit):
                stop = m >= exit
            case mx.Patience(patience, None):
                count = count + 1 if before is not None and answer == before else 0
                before, stop = answer, count >= patience
            case mx.Patience(patience, tolerance):
                near = before is not None and abs(z[m][0] - before) < tolerance
                count = count + 1 if near else 0
                before, stop = z[m][0], count >= patience
            case mx.PatientConfident(_, patience):
                count = count + 1 if entropy / math.log(C) < threshold else 0
                stop = count >= patience
            case mx.Beem(_, weight):
                if not isinstance(weight, tuple):
                    weight = [weight * (k + 1) for k in range(len(z))]
                agrees = before is not None and answer == before
                score = score + weight[min(m, len(weight) - 1)] * top[0] if agrees else 0.0
                before, stop = answer, threshold is not None and score >= threshold
            case mx.ProductOfExperts():
                stop = max(probabilities(naive_products(z)[m])) >= threshold
            case _ if threshold is None:
                stop = False
            case mx.Entropy():
                stop = entropy < threshold
            case mx.NormalizedEntropy():
                stop = not entropy / math.log(C) > threshold
            case mx.MaxProb() | mx.MostConfident():
                stop = top[0] >= threshold
            case mx.Margin():
                stop = top[0] - top[1] >= threshold
            case mx.Certainty():
                stop = u[m] >= threshold
        stops.append(stop)
    return stops


def test_every_policy_is_in_the_battery():
    assert {type(policy) for policy in CLASSIFY + VECTORS} == set(policies.POLICIES.values())


# Logits


@pytest.mark.parametrize("C", [2, 3, 10])
@pytest.mark.parametrize("policy", CLASSIFY, ids=repr)
def test_conforms(policy, C):
    testing.check_policy(policy, num_classes=C, exits=5)


@pytest.mark.parametrize("policy", REGRESS, ids=repr)
def test_conforms_for_regression(policy):
    testing.check_policy(policy, num_classes=1)


SEVERAL = [(policy, "multi-label") for policy in CLASSIFY]
SEVERAL += [(policy, "regression") for policy in REGRESS]
"""Policies of rows that are several decisions, with the problem."""


@pytest.mark.parametrize("C", [1, 4])
@pytest.mark.parametrize(("policy", "problem"), SEVERAL, ids=repr)
def test_conforms_for_rows_of_several_decisions(policy, problem, C):
    testing.check_policy(policy, num_classes=C, exits=5, problem=problem)


@given(st.sampled_from(SEVERAL), st.integers(1, 7), st.integers(1, 4), st.integers(0, 99_999))
@settings(max_examples=200, deadline=None)
def test_a_row_leaves_where_all_its_decisions_would(case, M, C, seed):
    """By plain loops, which never stop asking: it leaves where they all say so at once."""
    policy, problem = fitted(case[0], M), case[1]
    generator = torch.Generator().manual_seed(seed)
    logits_MBC = 4 * torch.randn(M, 6, C, generator=generator)
    logits_MBC[:, ::2] = logits_MBC[:1, ::2] + 0.1 * logits_MBC[:, ::2]  # answers that last
    certainty_MB = torch.rand(M, 6, generator=generator)
    exit_B, answer_BC = policies.answers(policy, logits_MBC, certainty_MB, problem)
    for b in range(6):
        stops_MC, logits_MC = [], logits_MBC[:, b]
        for c in range(C):
            z = logits_MC[:, c].tolist()
            cells = [[0.0, x] for x in z] if problem == "multi-label" else [[x] for x in z]
            stops_MC.append(naive_stops(policy, cells, certainty_MB[:, b].tolist()))
        together = [m for m in range(M - 1) if all(stops[m] for stops in stops_MC)]
        assert int(exit_B[b]) == (together[0] if together else M - 1)
        if isinstance(policy, mx.MostConfident):  # each label has a most confident exit of its own
            sure_MC = logits_MC[: int(exit_B[b]) + 1].abs()
            wanted_C = logits_MC.gather(0, sure_MC.argmax(0)[None])[0]
        elif isinstance(policy, mx.ProductOfExperts):  # log odds add up
            wanted_C = logits_MC[: int(exit_B[b]) + 1].sum(0)
        else:
            wanted_C = logits_MC[exit_B[b]]
        torch.testing.assert_close(answer_BC[b], wanted_C)


@pytest.mark.parametrize("D", [2, 3, 10])
@pytest.mark.parametrize("policy", VECTORS, ids=repr)
def test_conforms_for_vectors(policy, D):
    testing.check_policy(policy, num_classes=D, exits=5, problem="embedding")


@given(st.floats(0, 2.2), st.integers(1, 6), st.integers(2, 5), st.integers(0, 99_999))
@settings(max_examples=80, deadline=None)
def test_rows_settle_where_plain_loops_say(threshold, M, D, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors_MBD = torch.randn(M, 6, D, generator=generator, dtype=torch.float64)
    vectors_MBD[:, ::2] = 0.2 * vectors_MBD[:, ::2] + torch.randn(6, D, generator=generator)[::2]
    vectors_MBD = vectors_MBD / vectors_MBD.norm(dim=-1, keepdim=True)
    wanted = []
    for row in range(6):
        exit = 0
        for exit in range(M):
            if exit and exit < M - 1:
                pair = zip(vectors_MBD[exit, row], vectors_MBD[exit - 1, row], strict=True)
                if 1 - sum(float(a * b) for a, b in pair) < threshold:
                    break
        wanted.append(exit)
    exit_B, answer_BD = policies.answers(mx.Settled(threshold), vectors_MBD, problem="embedding")
    assert exit_B.tolist() == wanted
    assert torch.equal(answer_BD, vectors_MBD[exit_B, torch.arange(6)])


def test_no_policy_of_classes_reads_vectors_and_the_other_way_round():
    @dataclass(frozen=True)
    class Mine(mx.ExitPolicy):
        def init(self, logits_BC):
            return {}

        def step(self, state, logits_BC):
            return state, logits_BC.amax(1) > 0

    of_classes = [p for p in (*CLASSIFY, *REGRESS, Mine()) if not isinstance(p, mx.FixedExit)]
    for policy in of_classes:
        with pytest.raises(ValueError, match=r"outputs of an embedding are vectors: use Settled"):
            policies.check(policy, 5, 4, "embedding")
    for problem in (None, "multi-label", "regression", "token-classification"):
        with pytest.raises(ValueError, match=r"Settled goes by the vectors of an embedding"):
            policies.check(mx.Settled(0.1), 5, 4, problem)


@given(st.sampled_from(CLASSIFY), st.integers(1, 7), st.integers(2, 5), st.integers(0, 99_999))
@settings(max_examples=250, deadline=None)
def test_each_row_leaves_where_plain_loops_say(policy, M, C, seed):
    policy = fitted(policy, M)
    generator = torch.Generator().manual_seed(seed)
    logits_MBC = 2 * torch.randn(M, 6, C, generator=generator)
    assert_plain_loops(policy, logits_MBC, torch.rand(M, 6, generator=generator))


@given(st.sampled_from(REGRESS), st.integers(1, 7), st.integers(0, 99_999))
@settings(max_examples=60, deadline=None)
def test_each_row_of_regression_leaves_where_plain_loops_say(policy, M, seed):
    policy = fitted(policy, M)
    generator = torch.Generator().manual_seed(seed)
    logits_MB1 = torch.randn(M, 6, 1, generator=generator)
    assert_plain_loops(policy, logits_MB1, torch.rand(M, 6, generator=generator))


def fitted(policy, M):
    """The policy with as many numbers as a model of M exits takes, and an exit that it has."""
    for name in ("threshold", "weight"):
        numbers = getattr(policy, name, None)
        if isinstance(numbers, tuple) and len(numbers) not in (M, max(1, M - 1)):
            policy = replace(policy, **{name: (numbers * M)[: max(1, M - 1)]})
    if isinstance(policy, mx.FixedExit):
        return replace(policy, exit=min(policy.exit, M - 1))
    return policy


def assert_plain_loops(policy, logits_MBC, certainty_MB):
    z, u = logits_MBC.transpose(0, 1).tolist(), certainty_MB.T.tolist()
    wanted = [naive_exit(policy, *row) for row in zip(z, u, strict=True)]
    exit_B, answer_BC = policies.answers(policy, logits_MBC, certainty_MB)
    assert exit_B.tolist() == [exit for exit, _ in wanted]
    assert torch.equal(mx.simulate(policy, logits_MBC, certainty_MB), exit_B)
    wanted_BC = torch.tensor([answer for _, answer in wanted])
    close = 1e-5 if isinstance(policy, mx.ProductOfExperts) else 0.0  # the others pass logits on
    torch.testing.assert_close(answer_BC, wanted_BC, atol=close, rtol=close)


def test_patience_traced_by_hand():
    answers = [0, 1, 1, 1, 0, 0, 0, 0, 0]  # counters 0 0 1 2 0 1 2 3 4
    logits_MBC = torch.eye(2)[answers].unsqueeze(1)
    leaves = {p: int(mx.simulate(mx.Patience(p), logits_MBC)[0]) for p in (1, 2, 3, 4, 5)}
    assert leaves == {1: 2, 2: 3, 3: 7, 4: 8, 5: 8}


def test_patience_4_leaves_at_the_fifth_exit_at_the_earliest():
    logits_MBC = torch.tensor([1.0, 0.0]).expand(12, 3, 2)
    assert mx.simulate(mx.Patience(4), logits_MBC).tolist() == [4, 4, 4]


def test_patience_of_regression_traced_by_hand():
    values = [0.0, 1.0, 1.2, 1.3, 2.3, 2.35, 2.35, 2.35]  # counters 0 0 1 2 0 1 2 3 at 0.5
    logits_MB1 = torch.tensor(values).view(-1, 1, 1)
    leaves = [int(mx.simulate(mx.Patience(p, tolerance=0.5), logits_MB1)[0]) for p in (1, 2, 3)]
    assert leaves == [2, 3, 7]


def test_odds_multiply_by_hand():
    """Odds of 3, 3, 2 and 1/18 for class 0: products of 3, 9, 18 and 1."""
    odds = [3.0, 3.0 + 1e-5, 2.0, 1 / 18]  # the second is another expert, if by little
    logits_MBC = torch.tensor([[[math.log(x), 0.0]] for x in odds])
    leaves = {t: int(mx.simulate(mx.ProductOfExperts(t), logits_MBC)[0]) for t in (0.7, 0.8, 0.92)}
    assert leaves == {0.7: 0, 0.8: 1, 0.92: 2}
    _, answer_BC = policies.answers(mx.ProductOfExperts(0.99), logits_MBC)
    torch.testing.assert_close(answer_BC.softmax(-1), torch.tensor([[0.5, 0.5]]), atol=1e-5, rtol=0)


def test_an_expert_that_is_asked_again_says_nothing_new():
    z_BC = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    policy = mx.ProductOfExperts(0.9)
    state, _ = policy.step(policy.init(z_BC), z_BC)
    assert torch.equal(policy.answer(state, z_BC), z_BC.log_softmax(-1))
    torch.testing.assert_close(policy.answer(state, z_BC + 1e-3), 2 * z_BC.log_softmax(-1))


def test_votes_add_up_by_hand():
    """Answers 0 1 1 1 0 0 at max p 0.9: S is 0, 0, 0.27, 0.63, 0, 0.54 with weights 0.1·(m + 1)."""
    logits_MBC = math.log(9) * torch.eye(2)[[0, 1, 1, 1, 0, 0, 1]].unsqueeze(1)
    leaves = {t: int(mx.simulate(mx.Beem(t), logits_MBC)[0]) for t in (0.0, 0.2, 0.3, 0.6, 0.7)}
    assert leaves == {0.0: 0, 0.2: 2, 0.3: 3, 0.6: 3, 0.7: 6}
    one = mx.Beem(0.8, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert mx.simulate(one, logits_MBC).tolist() == [2]


def test_agreement_is_less_than_the_tolerance_not_equal():
    logits_MB1 = torch.tensor([0.0, 0.5, 1.0, 1.25, 9.0]).view(-1, 1, 1)
    assert mx.simulate(mx.Patience(1, tolerance=0.5), logits_MB1).tolist() == [3]


def test_entropy_is_in_nats_and_takes_large_logits():
    logits_BC = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0], [math.log(3), 0, -1e9, -1e9]]
    )
    H_B = policies.entropy(logits_BC)
    torch.testing.assert_close(H_B, torch.tensor([math.log(4), 0.0, 0.5623351446]))
    torch.testing.assert_close(policies.normalized_entropy(logits_BC), H_B / math.log(4))


@pytest.mark.parametrize(
    ("policy", "stops"),
    [
        (mx.Entropy(0.0), False),  # H < threshold
        (mx.NormalizedEntropy(0.0), True),  # unless H / log C > threshold
        (mx.MaxProb(1.0), True),  # max p >= threshold
        (mx.Margin(1.0), True),
        (mx.ProductOfExperts(1.0), True),
        (mx.Beem(0.0), True),  # S >= threshold
        (mx.PatientConfident(0.0, 1), False),  # H / log C < threshold
    ],
    ids=repr,
)
def test_just_at_the_threshold(policy, stops):
    logits_MBC = torch.tensor([1e4, 0.0, 0.0]).expand(2, 1, 3)  # p = (1, 0, 0), H = 0
    assert mx.simulate(policy, logits_MBC).tolist() == [0 if stops else 1]


@pytest.mark.parametrize("policy", CLASSIFY, ids=repr)
def test_no_rows_no_exits(policy):
    exit_B = mx.simulate(policy, torch.zeros(5, 0, 3), torch.zeros(5, 0))
    assert exit_B.shape == (0,)
    assert exit_B.dtype == torch.int64


@pytest.mark.parametrize("shape", [(3, 2), (0, 4, 2), (2, 3, 4, 5)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[M, B, C\]"):
        mx.simulate(mx.Entropy(0.1), torch.zeros(shape))


# The model


def spread(exit_B: torch.Tensor) -> int:
    return len(exit_B.unique())


def assert_same_everywhere(policy, model, inputs) -> torch.Tensor:
    """predict == simulate == row by row == shuffled == split, as answers and as exits."""
    with torch.no_grad():
        logits_MBC, certainty_MB = model.run((), inputs)[:2]
    B = logits_MBC.shape[1]
    exit_B, answer_BC = policies.answers(policy, logits_MBC, certainty_MB, model.problem)
    assert torch.equal(mx.simulate(policy, logits_MBC, certainty_MB, model.problem), exit_B)
    order = torch.randperm(B)
    cuts = {
        "whole": [torch.arange(B)],
        "alone": list(torch.arange(B).split(1)),
        "shuffled": [order],
        "split": list(order.split([1, 5, B - 6])),
        "with the same row twice": [torch.cat([order, order[:3]])],
    }
    for how, parts in cuts.items():
        for rows in parts:
            got = model.predict(policy, **{key: value[rows] for key, value in inputs.items()})
            assert got.exit_B.tolist() == exit_B[rows].tolist(), how
            torch.testing.assert_close(got.logits_BC, answer_BC[rows], atol=1e-4, rtol=1e-4)
    return exit_B


def unlearned(some):
    """The policies that need nothing but logits."""
    return [policy for policy in some if not isinstance(policy, mx.Certainty)]


@pytest.mark.parametrize("policy", unlearned(CLASSIFY), ids=repr)
def test_predict_agrees_with_simulate_in_any_batch(policy, network):
    model, inputs = network
    assert_same_everywhere(fitted(policy, model.num_exits), model, inputs)


@pytest.mark.parametrize("policy", unlearned(REGRESS), ids=repr)
def test_predict_agrees_with_simulate_for_regression(policy, regressor):
    assert_same_everywhere(policy, *regressor)


@pytest.mark.parametrize(("policy", "problem"), SEVERAL, ids=repr)
def test_predict_agrees_with_simulate_for_several_decisions(policy, problem, make_backbone):
    learns = isinstance(policy, mx.Certainty)
    head = "linear+lte" if learns else "linear"
    model = mx.MultiExitModel(make_backbone("mlp"), 4, head=head, problem=problem).eval()
    assert_same_everywhere(policy, model, {"x": 9 * torch.randn(24, 6)})
    assert_engine_agrees(policy, model)


def assert_engine_agrees(policy, model):
    x = 9 * torch.randn(24, 6)
    wanted = model.predict(policy, x)
    got = mx.Engine(model, policy).predict(x)
    streamed = list(mx.Engine(model, policy).stream([x[:7], x[7:]], batch_size=4))
    for logits_BC, exits in (got, map(torch.cat, zip(*streamed, strict=True))):
        assert torch.equal(exits, wanted.exit_B)
        torch.testing.assert_close(logits_BC, wanted.logits_BC)


CHAINED = [
    ("bert", "pooler+mix"),
    ("bert", "linear+cascade"),
    ("mlp", "linear+lte"),
    ("mlp", "linear+gates"),
]


@pytest.mark.parametrize(("kind", "head"), CHAINED)
def test_rows_take_what_earlier_heads_left_along(kind, head, make_backbone, text):
    torch.manual_seed(2)
    model = mx.MultiExitModel(make_backbone(kind), 3, head=head).eval()
    for part in model.modules():
        if isinstance(part, mx.heads.Vote):
            part.on.fill_(True)
    inputs = text(24) if kind == "bert" else {"x": 3 * torch.randn(24, 6)}
    some = CLASSIFY if head in ("linear+lte", "linear+gates") else unlearned(CLASSIFY)
    exits = [assert_same_everywhere(policy, model, inputs) for policy in some]
    assert sum(spread(exit_B) > 1 for exit_B in exits) >= 5


def test_learned_exits_need_a_head_that_learns_to(mlp):
    model, inputs = mlp
    with pytest.raises(ValueError, match=r"Certainty goes by a head.*\+lte"):
        model.predict(mx.Certainty(0.5), **inputs)
    recipe = replace(mx.recipe("joint"), policy=mx.Certainty(0.5))
    with pytest.raises(ValueError, match=r"'joint' stops by Certainty.*\+lte"):
        mx.Trainer(model, recipe)
    with pytest.raises(ValueError, match="Certainty"):
        mx.simulate(mx.Certainty(0.5), model(**inputs))


def test_the_battery_sees_rows_leave_at_different_exits(network, regressor):
    both = ((unlearned(CLASSIFY), network), (unlearned(REGRESS), regressor))
    for policies_, (model, inputs) in both:
        with torch.no_grad():
            logits_MBC = model(**inputs)
        fitting = [fitted(policy, model.num_exits) for policy in policies_]
        spreads = [spread(mx.simulate(policy, logits_MBC)) for policy in fitting]
        assert sum(count > 1 for count in spreads) >= len(policies_) // 3, spreads


def test_exits_at_some_stages_only(make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 3, exits=[1, 3]).eval()
    for policy in unlearned(CLASSIFY):
        assert_same_everywhere(fitted(policy, 2), model, {"x": 9 * torch.randn(8, 6)})


def test_one_exit_needs_no_policy(make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 3, exits=[2]).eval()
    for policy in unlearned(CLASSIFY):
        inputs = {"x": torch.randn(8, 6)}
        assert assert_same_everywhere(fitted(policy, 1), model, inputs).tolist() == [0] * 8


# One's own


@dataclass(frozen=True)
class Gap(mx.ExitPolicy):
    """A user's margin on raw logits, with a state of two tensors, one of them wide."""

    threshold: float

    def init(self, logits_BC):
        return {"best_BC": torch.zeros_like(logits_BC), "seen_B": torch.zeros(len(logits_BC))}

    def step(self, state, logits_BC):
        best_BC = torch.maximum(state["best_BC"], logits_BC)
        top_B2 = best_BC.topk(2).values
        stop_B = (top_B2[:, 0] - top_B2[:, 1] >= self.threshold) & (state["seen_B"] > 0)
        return {"best_BC": best_BC, "seen_B": state["seen_B"] + 1}, stop_B


def test_a_policy_of_ones_own(network):
    testing.check_policy(Gap(0.5))
    exit_B = assert_same_everywhere(Gap(0.5), *network)
    assert spread(exit_B) > 1
    assert exit_B.min() == 1


@dataclass(frozen=True)
class Returns(mx.ExitPolicy):
    """Whatever it is given, made to fit the batch."""

    what: str

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        B = len(logits_BC)
        return state, {
            "floats": torch.zeros(B),
            "too few": torch.zeros(B - 1, dtype=torch.bool),
            "a column": torch.zeros(B, 1, dtype=torch.bool),
            "a scalar": torch.tensor(False),
            "a list": [False] * B,
            "None": None,
        }[self.what]


@pytest.mark.parametrize("what", ["floats", "too few", "a column", "a scalar", "a list", "None"])
def test_a_malformed_step_is_named(what, mlp):
    model, inputs = mlp
    with pytest.raises(ValueError, match=r"Returns.step must return .* torch.bool .* \(24,\)"):
        model.predict(Returns(what), **inputs)
    with pytest.raises(ValueError, match=r"Returns.step must return .* torch.bool .* \(24,\)"):
        mx.simulate(Returns(what), model(**inputs))


@dataclass(frozen=True)
class Answers(mx.ExitPolicy):
    """What it answers, or keeps, isn't the batch's."""

    what: str

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        kept = {"a column": logits_BC.T, "a number": 3}.get(self.what, logits_BC)
        return {"kept": kept}, torch.ones(len(logits_BC), dtype=torch.bool)

    def answer(self, state, logits_BC):
        return {"wider": logits_BC.repeat(1, 2), "finer": logits_BC.double()}.get(
            self.what, logits_BC
        )


@pytest.mark.parametrize("problem", [None, "multi-label"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("wider", r"Answers.answer must return logits like .*, torch.float32 .*; got .*, [46]\)"),
        ("finer", r"Answers.answer must return logits .* got torch.float64"),
        ("a column", r"Answers.step: state\['kept'\] must be a tensor with \d+ rows, .* got"),
        ("a number", r"Answers.step: state\['kept'\] must be a tensor with \d+ rows, .* got int"),
    ],
)
def test_a_malformed_answer_or_state_is_named(what, message, problem, make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 3, problem=problem).eval()
    x = torch.randn(5, 6)
    for run in (
        lambda: model.predict(Answers(what), x),
        lambda: mx.simulate(Answers(what), model(x), problem=problem),
        lambda: mx.Engine(model, Answers(what)).predict(x, policy=[Answers(what)] * 5),
    ):
        with pytest.raises(ValueError, match=message):
            run()


@dataclass(frozen=True)
class Herd(mx.ExitPolicy):
    """Stops all rows when their mean is sure: a row's exit depends on its neighbours."""

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        sure = logits_BC.softmax(-1).amax(-1).mean() > 0.6
        return state, sure.expand(len(logits_BC)).clone()


@dataclass(frozen=True)
class Stubborn(mx.ExitPolicy):
    """A state that isn't batch-first."""

    def init(self, logits_BC):
        return {"seen": torch.zeros(2, len(logits_BC))}

    def step(self, state, logits_BC):
        return state, torch.zeros(len(logits_BC), dtype=torch.bool)


@dataclass(frozen=True)
class Listed(Stubborn):
    """A field that JSON changes."""

    levels: dict[int, float] = field(default_factory=lambda: {0: 0.5})

    def init(self, logits_BC):
        return {}


class Undecorated(mx.Entropy):
    """A field that isn't one, for want of the decorator."""

    margin: float = 0.0


@dataclass(frozen=True)
class Late(mx.ExitPolicy):
    """Answers by the sum over the exits that `step` saw, which the last isn't among."""

    threshold: float

    def init(self, logits_BC):
        return {"sum": torch.zeros_like(logits_BC)}

    def step(self, state, logits_BC):
        sum_BC = state["sum"] + logits_BC
        return {"sum": sum_BC}, sum_BC.softmax(-1).amax(-1) >= self.threshold

    def answer(self, state, logits_BC):
        return state["sum"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Herd(), "no row may sway another"),
        (Late(0.9), "answer at the last exit doesn't depend on that exit's logits"),
        (Undecorated(0.5), "Undecorated must be a frozen dataclass"),
        (Stubborn(), r"'seen'\] must have 1 rows"),
        (Listed(), "comes back from JSON"),
        (Returns("floats"), "torch.bool"),
    ],
)
def test_the_check_catches_wrong_ones(policy, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        testing.check_policy(policy)


# What doesn't fit


class NoFields(mx.ExitPolicy):
    """A number that is no field."""

    def __init__(self, threshold):
        object.__setattr__(self, "threshold", threshold)

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        return state, logits_BC.softmax(-1).amax(-1) >= self.threshold


MISFITS = [
    (NoFields(0.5), "NoFields must be a frozen dataclass"),
    (mx.FixedExit(5), r"FixedExit's exit must be within 0\.\.4, as the model has 5 exits; got 5"),
    (mx.FixedExit(99), "got 99"),
    (mx.MaxProb((0.9, 0.8)), r"MaxProb's threshold has 2 numbers, and the model has 5 exits: .* 4"),
    (mx.Certainty((0.9,) * 6), "has 6 numbers"),
    (mx.Beem(1.0, (0.9, 0.8)), r"Beem's weight has 2 numbers, and the model has 5 exits"),
    (mx.Patience(1, tolerance=0.5), "tolerance=0.5 is for regression"),
    (3, "policy.*got int"),
]


@pytest.mark.parametrize(("policy", "message"), MISFITS, ids=lambda value: repr(value)[:30])
def test_what_does_not_fit_a_model_is_refused_wherever_they_meet(policy, message, mlp):
    """Before the model is run: none of these looks at the inputs, which are none."""
    model, inputs = mlp
    outputs = mx.collect(model, TensorDataset(inputs["x"], torch.arange(24) % 3))
    recipe = replace(mx.recipe("joint"), policy=policy)
    ways = [
        lambda: policies.check(policy, 5, 3),
        lambda: model.predict(policy, None),
        lambda: mx.Engine(model, policy),
        lambda: mx.simulate(policy, outputs.logits_MBC),
        lambda: mx.judge(outputs, policy),
        lambda: mx.sweep(outputs, [mx.FixedExit(0), policy]),
        lambda: mx.Trainer(model, recipe),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=message):
            way()


def test_a_threshold_off_its_scale_is_warned_of():
    """It may stand a little beyond, where nobody or everybody leaves."""
    for policy in (mx.MaxProb(30), mx.MaxProb((0.9, 0.8, 30, 0.7)), mx.Entropy(2), mx.Margin(-1)):
        with pytest.warns(UserWarning, match=r"'s threshold is .*: it should be from -0\.1"):
            policies.check(policy, 5, 3)
    known = policies.Known(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, kind in policies.POLICIES.items():
            if name != "settled":
                for policy in policies.sweep_settings(kind, known):
                    policies.check(policy, 5, 3)
        policies.check(mx.Settled(1.9), 5, 3, "embedding")
        policies.check(mx.Beem(30.0), 5, 3)


@pytest.mark.parametrize(
    "policy",
    [
        mx.Entropy(1),
        mx.NormalizedEntropy(1),
        mx.MaxProb(1),
        mx.Margin(1),
        mx.ProductOfExperts(1),
        mx.Beem(1),
        mx.Patience(1),
        mx.PatientConfident(1, 1),
    ],
    ids=repr,
)
def test_what_needs_classes_refuses_regression(policy, regressor):
    model, inputs = regressor
    with pytest.raises(ValueError, match=r"at least 2 classes.*regression use Patience"):
        mx.simulate(policy, torch.zeros(3, 4, 1))
    with pytest.raises(ValueError, match=r"at least 2 classes.*regression use Patience"):
        model.predict(policy, **inputs)


@pytest.mark.parametrize("tokens", [(), (4,)])
def test_logits_that_are_nan_are_not_simulated(tokens):
    logits_MBC = torch.zeros(3, 5, *tokens, 2)
    logits_MBC[1, 2, ..., 0] = logits_MBC[2, 2:4, ..., 1] = math.nan
    problem = "token-classification" if tokens else None
    with pytest.raises(ValueError, match=r"NaN in 2 of 5 rows, at the exits \[1, 2\]"):
        mx.simulate(mx.MaxProb(0.9), logits_MBC, problem=problem)
    policies.answers(mx.MaxProb(0.9), logits_MBC, problem=problem)  # by which a run ends


@pytest.mark.parametrize(
    "policy", [mx.Entropy(0.3), mx.NormalizedEntropy(0.3), mx.PatientConfident(0.3, 1)], ids=repr
)
def test_a_class_that_is_ruled_out_adds_no_entropy(policy):
    logits_MBC = torch.tensor([[[4.0, 0, -math.inf], [1, 0, -math.inf]]]).expand(3, -1, -1)
    assert mx.simulate(policy, logits_MBC).tolist() == [0, 2]


def test_a_tolerance_refuses_classes():
    with pytest.raises(ValueError, match=r"tolerance=0.5 is for regression.*3 classes"):
        mx.simulate(mx.Patience(1, tolerance=0.5), torch.zeros(3, 4, 3))
