"""The loss matrix and its fixed factors against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit.losses import coefficients, topology
from multiexit.losses.matrix import row_losses
from multiexit.losses.temperature import Constant, Rising


def softmax(z: list[float]) -> list[float]:
    top = max(z)
    e = [math.exp(x - top) for x in z]
    return [x / sum(e) for x in e]


def naive(logits_MBC, labels_B, tau: float, kl: bool) -> torch.Tensor:
    """Eqs. 1 and 2, one number at a time, in Python's floats."""
    M, B, C = logits_MBC.shape
    z, L_MM = logits_MBC.tolist(), torch.zeros(M, M, dtype=torch.float64)
    for i in range(M):
        for j in range(M):
            for b in range(B):
                if i == j:
                    L_MM[i, j] -= math.log(softmax(z[i][b])[int(labels_B[b])]) / B
                    continue
                student = softmax([x / tau for x in z[i][b]])
                teacher = softmax([x / tau for x in z[j][b]])
                for c in range(C):
                    term = -teacher[c] * math.log(student[c])
                    if kl:
                        term += teacher[c] * math.log(teacher[c])
                    L_MM[i, j] += tau**2 * term / B
    return L_MM


@pytest.mark.parametrize("divergence", ["ce", "kl"])
@pytest.mark.parametrize("tau", [1, 1.0, 0.5, 4.0])
@pytest.mark.parametrize(("M", "B", "C"), [(1, 1, 2), (4, 3, 5), (7, 2, 2)])
def test_every_term_equals_plain_loops(M, B, C, tau, divergence):
    logits_MBC = 2 * torch.randn(M, B, C)
    labels_B = torch.randint(C, (B,))
    L_MM = mx.loss_matrix(logits_MBC, labels_B, tau, divergence)
    wanted = naive(logits_MBC, labels_B, tau, divergence == "kl")
    torch.testing.assert_close(L_MM.double(), wanted, rtol=1e-5, atol=1e-6)
    as_tensor = mx.loss_matrix(logits_MBC, labels_B, torch.tensor(float(tau)), divergence)
    torch.testing.assert_close(as_tensor, L_MM)


def test_a_case_done_by_hand():
    # p_0 = (3/4, 1/4), p_1 = (1/2, 1/2), label 0
    logits_MBC = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]])
    L_MM = mx.loss_matrix(logits_MBC, torch.tensor([0]))
    student_0 = -(math.log(3 / 4) + math.log(1 / 4)) / 2  # taught (1/2, 1/2)
    wanted = torch.tensor([[math.log(4 / 3), student_0], [math.log(2), math.log(2)]])
    torch.testing.assert_close(L_MM, wanted)
    assert student_0 == pytest.approx(0.83698822)


def test_regression_equals_plain_loops():
    y_MB1, labels_B = torch.randn(4, 5, 1), torch.randn(5)
    L_MM = mx.loss_matrix(y_MB1, labels_B, temperature=3.0)
    for i in range(4):
        for j in range(4):
            targets = labels_B if i == j else y_MB1[j, :, 0]
            wanted = sum(float(y_MB1[i, b, 0] - targets[b]) ** 2 for b in range(5)) / 5
            assert float(L_MM[i, j]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("divergence", ["ce", "kl"])
def test_teachers_get_no_gradient(C, divergence):
    logits_MBC = torch.randn(3, 4, C, requires_grad=True)
    labels_B = torch.randn(4) if C == 1 else torch.randint(C, (4,))
    L_MM = mx.loss_matrix(logits_MBC, labels_B, 2.0, divergence)
    for i in range(3):
        for j in range(3):
            (gradient,) = torch.autograd.grad(L_MM[i, j], logits_MBC, retain_graph=True)
            assert gradient[i].abs().sum() > 0
            others = [m for m in range(3) if m != i]
            assert gradient[others].abs().max() == 0, f"L[{i}, {j}] moves another exit"


def test_kl_teaches_the_same_and_is_zero_where_exits_agree():
    logits_MBC = torch.randn(3, 4, 5, requires_grad=True)
    logits_MBC.data[2] = logits_MBC.data[0]
    labels_B = torch.randint(5, (4,))
    gradients = []
    for divergence in ("ce", "kl"):
        L_MM = mx.loss_matrix(logits_MBC, labels_B, 2.0, divergence)
        gradients += torch.autograd.grad((L_MM * topology.lae(3)).sum(), logits_MBC)
    torch.testing.assert_close(*gradients)
    assert float(L_MM[0, 2].detach()) == pytest.approx(0, abs=1e-5)
    assert float(L_MM[0, 1].detach()) > 0.01


def test_the_gradient_of_the_whole_loss_equals_that_of_plain_sums():
    logits_MBC = torch.randn(4, 6, 3, requires_grad=True)
    labels_B, W_MM = torch.randint(3, (6,)), torch.rand(4, 4)
    (W_MM * mx.loss_matrix(logits_MBC, labels_B, 2.0)).sum().backward()
    mine, logits_MBC.grad = logits_MBC.grad, None
    total = torch.zeros(())
    for i in range(4):
        own = torch.nn.functional.cross_entropy(logits_MBC[i], labels_B)
        total = total + W_MM[i, i] * own
        for j in set(range(4)) - {i}:
            teacher = (logits_MBC[j].detach() / 2).softmax(-1)
            pair = torch.nn.functional.cross_entropy(logits_MBC[i] / 2, teacher)
            total = total + 4 * W_MM[i, j] * pair
    total.backward()
    torch.testing.assert_close(mine, logits_MBC.grad)


def test_half_precision_is_taken_to_float32():
    logits_MBC, labels_B = torch.randn(3, 64, 4).bfloat16(), torch.randint(4, (64,))
    L_MM = mx.loss_matrix(logits_MBC, labels_B)
    assert L_MM.dtype == torch.float32
    assert torch.equal(L_MM, mx.loss_matrix(logits_MBC.float(), labels_B))


def test_autocast_does_not_make_it_coarse():
    logits_MBC, labels_B = torch.randn(3, 8, 4), torch.randint(4, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mx.loss_matrix(logits_MBC, labels_B)
    torch.testing.assert_close(inside, mx.loss_matrix(logits_MBC, labels_B))


def test_logits_far_apart_stay_finite():
    logits_MBC = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]], requires_grad=True)
    for divergence in ("ce", "kl"):
        L_MM = mx.loss_matrix(logits_MBC, torch.tensor([0]), 1.0, divergence)
        assert torch.isfinite(L_MM).all()
        assert L_MM[0, 0].item() == 0
        assert L_MM[1, 0].item() == 2e4
        (gradient,) = torch.autograd.grad(L_MM.sum(), logits_MBC)
        assert torch.isfinite(gradient).all()


BAD = [
    (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 1.0, r"\[M, B, C\]"),
    (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.long), 1.0, "one number a row"),
    (torch.zeros(2, 3, 4), torch.zeros(3, 1, dtype=torch.long), 1.0, "one number a row"),
    (torch.zeros(2, 3, 4), [0, 1, 2], 1.0, "labels are a tensor, got list"),
    (torch.zeros(2, 3, 4), np.zeros(3, int), 1.0, "labels are a tensor, got ndarray"),
    (torch.zeros(2, 0, 4), torch.zeros(0, dtype=torch.long), 1.0, "empty batch"),
    (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long), 0.0, "temperature"),
    (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long), -1, "temperature"),
    (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long), math.nan, "temperature"),
    (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long), math.inf, "temperature"),
    (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.bool), 1.0, "torch.bool"),
    (torch.zeros(2, 3, 4), torch.tensor([0, 4, 1]), 1.0, "label 4 in row 1.*0 to 3"),
    (torch.zeros(2, 3, 4), torch.tensor([0, 1, -1]), 1.0, "label -1 in row 2"),
    (torch.zeros(2, 3, 4), torch.zeros(3), 1.0, "torch.float32; they must be int64"),
    (torch.zeros(2, 3, 1), torch.tensor([0, math.nan, 1]), 1.0, "label nan in row 1"),
]


@pytest.mark.parametrize(("logits", "labels", "tau", "message"), BAD)
def test_bad_input_is_named(logits, labels, tau, message):
    with pytest.raises(ValueError, match=message):
        mx.loss_matrix(logits, labels, tau)


def test_tokens_of_whole_rows_are_refused():
    logits_MBC, labels_B = torch.zeros(2, 3, 4), torch.tensor([0, 1, 2])
    for loss in (mx.loss_matrix, row_losses):
        with pytest.raises(ValueError, match=r"valid_BT says which tokens count.*leave it out"):
            loss(logits_MBC, labels_B, valid_BT=torch.ones(3, 5, dtype=torch.bool))


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="js"):
        mx.loss_matrix(torch.zeros(2, 3, 4), torch.tensor([0, 1, 2]), divergence="js")


# Fixed factors


@given(st.integers(1, 9), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_eq_4_for_any_topology(M, random):
    teaches_MM = torch.tensor(
        [[i != j and random.random() < 0.5 for j in range(M)] for i in range(M)]
    )
    A_MM = coefficients.summed(teaches_MM, 0.0, ())
    for i in range(M):
        teachers = [j for j in range(M) if teaches_MM[i, j]]
        for j in range(M):
            wanted = 1.0 if i == j else 1 / (M * len(teachers)) if j in teachers else 0.0
            assert float(A_MM[i, j]) == pytest.approx(wanted)


def test_the_summed_loss_is_eqs_1_and_4():
    logits_MBC, labels_B = torch.randn(4, 5, 3), torch.randint(3, (5,))
    L = naive(logits_MBC, labels_B, 1.0, kl=False)
    wanted = sum(float(L[m, m]) for m in range(4))
    for m in range(3):  # later exits teach; the last has no teacher
        wanted += sum(float(L[m, t]) for t in range(m + 1, 4)) / (4 * (3 - m))
    A_MM = coefficients.summed(topology.lle(4), 0.0, [0.25, 0.5, 0.75, 1.0])
    assert float((A_MM * mx.loss_matrix(logits_MBC, labels_B)).sum()) == pytest.approx(wanted)


def test_pabee_weighs_by_depth_and_sums_to_one():
    for M in (1, 2, 6, 12):
        A_MM = coefficients.depth_weighted(topology.none(M), 0.0, [1.0] * M)
        wanted = [(m + 1) / (M * (M + 1) / 2) for m in range(M)]
        torch.testing.assert_close(A_MM, torch.tensor(wanted).diag())
        assert float(A_MM.sum()) == pytest.approx(1)


def test_shallow_deep_weights_grow_to_the_share_of_compute():
    shares = [0.15, 0.3, 0.9, 1.0]
    begin = coefficients.scheduled(topology.none(4), 0.0, shares)
    torch.testing.assert_close(begin, torch.tensor([0.01, 0.01, 0.01, 1.0]).diag())
    middle = coefficients.scheduled(topology.none(4), 0.5, shares)
    torch.testing.assert_close(middle, torch.tensor([0.085, 0.16, 0.46, 1.0]).diag())
    end = coefficients.scheduled(topology.none(4), 1.0, shares)
    torch.testing.assert_close(end, torch.tensor([0.15, 0.3, 0.9, 1.0]).diag())


def test_dbt_mixes_labels_and_the_last_exit():
    A_MM = coefficients.distilled(mix=0.3, scale=10.0)(topology.last(5), 0.0, [1.0] * 5)
    for i in range(5):
        for j in range(5):
            wanted = 2 * 0.7 if i == j else 2 * 0.3 if j == 4 else 0.0
            assert float(A_MM[i, j]) == pytest.approx(wanted)
    with pytest.raises(ValueError, match=r"mix must be a number in \[0, 1\]"):
        coefficients.distilled(mix=1.5)


def test_a_phase_of_the_recipes_uses_its_own_factors():
    by_name = {"pabee": 1.0, "joint": 4.0, "leebert": 5.0}  # A.sum() at M = 4
    for name, total in by_name.items():
        (phase,) = mx.recipe(name).phases
        teaches_MM = topology.resolve(phase.topology, 4)
        assert float(phase.coefficients(teaches_MM, 0.0, [1.0] * 4).sum()) == pytest.approx(total)


# Temperatures


def test_a_rising_temperature_grows_while_the_teacher_is_sure():
    rule = Rising()
    tau = rule.start(torch.device("cpu"))
    sure = torch.tensor([[[0.0, 0.0]], [[0.5, 0.0]]])  # the last exit's max p is above 1/2
    torn = torch.tensor([[[9.0, 0.0]], [[0.0, 0.0]]])  # only the first exit is sure
    path = []
    for logits_MBC in (sure, torn, sure, sure):
        tau = rule.after(tau, logits_MBC)
        path.append(float(tau))
    assert path == pytest.approx([1.05, 1.05, 1.05**2, 1.05**3])


def test_a_rising_temperature_looks_at_softened_answers():
    rule = Rising(value=8.0, above=0.6)
    tau = rule.start(torch.device("cpu"))
    logits_MBC = torch.tensor([[[2.0, 0.0]]])  # max p is 0.88, at τ = 8 it is 0.56
    assert float(rule.after(tau, logits_MBC)) == 8.0
    assert float(rule.after(torch.tensor(1.0), logits_MBC)) == pytest.approx(1.05)


def test_a_constant_temperature_stays():
    assert Constant(4.0).after(4.0, torch.zeros(2, 1, 2)) == 4.0
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a number above 0"):
            Constant(bad)


# Types


@pytest.mark.parametrize("divergence", ["ce", "kl"])
@pytest.mark.parametrize("temperature", [1, 2.0, np.float32(0.5), torch.tensor(3.0)])
def test_float64_stays_float64(divergence, temperature):
    """So that gradients can be checked against differences, students' and their own losses'."""
    z_MBC = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    fixed_MBC = torch.randn(3, 4, 5, dtype=torch.float64)
    labels_B = torch.tensor([0, 4, 2, 2])

    def own(z):
        return mx.loss_matrix(z, labels_B, temperature, divergence).diagonal()

    def of_student(z):  # teachers don't move
        return mx.loss_matrix(torch.stack([z, *fixed_MBC]), None, temperature, divergence)[0, 1:]

    assert own(z_MBC).dtype == torch.float64
    assert row_losses(z_MBC, labels_B).dtype == torch.float64
    assert torch.autograd.gradcheck(own, z_MBC)
    assert torch.autograd.gradcheck(of_student, z_MBC[0].detach().requires_grad_())
    regression = mx.loss_matrix(z_MBC[:, :, :1], fixed_MBC[0, :, 0])
    assert regression.dtype == torch.float64
    for half in (torch.bfloat16, torch.float16):
        assert mx.loss_matrix(z_MBC.to(half), labels_B).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_labels_of_any_whole_type(dtype):
    logits_MBC, labels_B = torch.randn(2, 4, 2), torch.tensor([0, 1, 1, 0])
    wanted_MM = mx.loss_matrix(logits_MBC, labels_B)
    assert torch.equal(mx.loss_matrix(logits_MBC, labels_B.to(dtype)), wanted_MM)
    assert torch.equal(row_losses(logits_MBC, labels_B.to(dtype)), row_losses(logits_MBC, labels_B))


@pytest.mark.parametrize("temperature", [torch.tensor(0.0), torch.ones(2), "2", math.nan, None])
def test_a_temperature_is_one_number_above_0(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        mx.loss_matrix(torch.zeros(2, 3, 4), None, temperature)
