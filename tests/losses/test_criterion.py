"""What exits learn from labels of each problem: against plain loops, and against torch's losses.

Letters: M exits, B batch rows, C outputs, K classes that a decision is among.
"""

import math

import pytest
import torch
from torch.nn import functional as F

import multiexit as mx
from multiexit.losses import check_labels
from multiexit.losses.labels import as_answers
from multiexit.losses.matrix import row_losses
from multiexit.losses.weights.rows import allot
from multiexit.problems import PROBLEMS, answer, confidence, decisions, resolve, same


def soft_shares(B, C):
    return (2 * torch.randn(B, C)).softmax(-1)


LABELS = {
    "classes": ("classification", lambda B, C: torch.randint(C, (B,))),
    "shares": ("classification", soft_shares),
    "several": ("multi-label", lambda B, C: torch.randint(2, (B, C))),
    "several booleans": ("multi-label", lambda B, C: torch.rand(B, C) > 0.5),
    "shares of yes": ("multi-label", torch.rand),
    "numbers": ("regression", torch.randn),
}
"""Labels by name: the problem, and B rows of C outputs."""

COUNTS = {
    "plain": (0.0, False),
    "smooth": (0.1, False),
    "weighed": (0.0, True),
    "both": (0.3, True),
}
"""Label smoothing, and whether classes weigh otherwise."""


def criterion(problem, C, smoothing, weighed):
    weights = tuple(0.5 + c for c in range(C)) if weighed else None
    return mx.Criterion(problem, smoothing, weights)


CASES = [
    pytest.param(*LABELS[labels], *COUNTS[counts], id=f"{labels}, {counts}")
    for labels in LABELS
    for counts in COUNTS
    if labels != "numbers" or counts == "plain"
]


# Plain loops


def parts(problem: str, z_C: list[float]) -> list[list[float]]:
    """A row's decisions, each as logits of its classes, or as a number."""
    return {
        "classification": [z_C],
        "multi-label": [[0.0, z] for z in z_C],
        "regression": [[z] for z in z_C],
    }[problem]


def log_softmax(z: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in z))
    return [x - total for x in z]


def wanted_shares(problem: str, label, K: int) -> list[list[float]]:
    """q of each of a row's decisions."""
    if problem == "multi-label":
        return [[1 - float(yes), float(yes)] for yes in label]
    return [list(map(float, label))] if label.ndim else [[float(k == label) for k in range(K)]]


def naive_rows(problem, logits_BC, labels, epsilon, weights) -> tuple[list[float], float]:
    """Each row's loss, not divided yet, and what their sum is to be divided by."""
    sums, weight = [], 0.0
    for z_C, label in zip(logits_BC.tolist(), labels, strict=True):
        cells = parts(problem, z_C)
        if problem == "regression":
            pairs = zip(cells, label.flatten().tolist(), strict=True)
            sums.append(sum((y - wanted) ** 2 for (y,), wanted in pairs))
            weight += len(cells)
            continue
        total, K = 0.0, len(cells[0])
        for place, (z_K, q_K) in enumerate(
            zip(cells, wanted_shares(problem, label, K), strict=True)
        ):
            if weights is None:
                w_K = [1.0] * K
            else:
                w_K = [1.0, weights[place]] if problem == "multi-label" else weights
            for k, log_p in enumerate(log_softmax(z_K)):
                total -= w_K[k] * ((1 - epsilon) * q_K[k] + epsilon / K) * log_p
            normal = problem == "classification" and weights is not None
            weight += sum(w * q for w, q in zip(w_K, q_K, strict=True)) if normal else 1.0
        sums.append(total)
    return sums, weight


def naive_pair(problem, student_BC, teacher_BC, tau, kl) -> float:
    total, count = 0.0, 0
    for student_C, teacher_C in zip(student_BC.tolist(), teacher_BC.tolist(), strict=True):
        for s_K, t_K in zip(parts(problem, student_C), parts(problem, teacher_C), strict=True):
            count += 1
            if len(s_K) == 1:
                total += (s_K[0] - t_K[0]) ** 2
                continue
            log_s, log_t = (log_softmax([x / tau for x in z]) for z in (s_K, t_K))
            for a, b in zip(log_s, log_t, strict=True):
                total += tau**2 * math.exp(b) * (b * kl - a)
    return total / count


@pytest.mark.parametrize(("tau", "divergence"), [(1.0, "ce"), (4.0, "kl"), (0.5, "ce")])
@pytest.mark.parametrize(("problem", "draw", "smoothing", "weighed"), CASES)
def test_every_term_equals_plain_loops(problem, draw, smoothing, weighed, tau, divergence):
    M, B, C = 3, 4, 3
    logits_MBC, labels = 2 * torch.randn(M, B, C), draw(B, C)
    counts = criterion(problem, C, smoothing, weighed)
    L_MM = mx.loss_matrix(logits_MBC, labels, tau, divergence, counts)
    rows_MB = row_losses(logits_MBC, labels, counts)
    for i in range(M):
        sums, weight = naive_rows(problem, logits_MBC[i], labels, smoothing, counts.class_weights)
        assert float(L_MM[i, i]) == pytest.approx(sum(sums) / weight, rel=1e-5)
        assert rows_MB[i].tolist() == pytest.approx([B * s / weight for s in sums], rel=1e-5)
        for j in set(range(M)) - {i}:
            wanted = naive_pair(problem, logits_MBC[i], logits_MBC[j], tau, divergence == "kl")
            assert float(L_MM[i, j]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(rows_MB.mean(1), L_MM.diagonal())


def test_a_case_of_two_labels_done_by_hand():
    logits_MBC = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]])  # yes 3/4, 1/2; 1/2, 1/2
    L_MM = mx.loss_matrix(logits_MBC, torch.tensor([[1, 0]]), criterion=mx.Criterion("multi-label"))
    taught = (-(math.log(3 / 4) + math.log(1 / 4)) / 2 + math.log(2)) / 2
    wanted = [[(math.log(4 / 3) + math.log(2)) / 2, taught], [math.log(2), math.log(2)]]
    torch.testing.assert_close(L_MM, torch.tensor(wanted))


# The field's own losses


@pytest.mark.parametrize(("problem", "draw", "smoothing", "weighed"), CASES)
def test_the_diagonal_is_torchs_own_loss(problem, draw, smoothing, weighed):
    B, C = 16, 5
    logits_BC, labels = torch.randn(B, C, requires_grad=True), draw(B, C)
    counts = criterion(problem, C, smoothing, weighed)
    weights = None if counts.class_weights is None else torch.tensor(counts.class_weights)
    if problem == "regression":
        wanted = F.mse_loss(logits_BC, labels)
    elif problem == "multi-label":
        smooth = (1 - smoothing) * labels.float() + smoothing / 2
        # pos_weight weighs a yes, smoothed too; its no counts 1, as here.
        wanted = F.binary_cross_entropy_with_logits(logits_BC, smooth, pos_weight=weights)
    elif labels.ndim == 1 or weights is None:
        wanted = F.cross_entropy(logits_BC, labels, weights, label_smoothing=smoothing)
    else:  # of shares torch divides by B, and we by their weights, as of classes
        one_by_one = F.cross_entropy(
            logits_BC, labels, weights, label_smoothing=smoothing, reduction="none"
        )
        wanted = one_by_one.sum() / (labels @ weights).sum()
    mine = mx.loss_matrix(logits_BC[None], labels, criterion=counts)[0, 0]
    torch.testing.assert_close(mine, wanted)
    gradients = [torch.autograd.grad(loss, logits_BC)[0] for loss in (mine, wanted)]
    torch.testing.assert_close(*gradients)


def test_shares_that_are_one_class_are_that_class():
    logits_MBC, labels_B = torch.randn(3, 8, 4), torch.randint(4, (8,))
    for counts in (mx.Criterion(), mx.Criterion(None, 0.1, (1, 2, 3, 4))):
        soft = mx.loss_matrix(logits_MBC, F.one_hot(labels_B).float(), criterion=counts)
        torch.testing.assert_close(soft, mx.loss_matrix(logits_MBC, labels_B, criterion=counts))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_of_classes_that_do_not_count_has_no_loss(smoothing):
    counts = mx.Criterion(None, smoothing, (1.0, 0.0))
    logits_MBC = torch.randn(2, 3, 2, requires_grad=True)
    loss_MM = mx.loss_matrix(logits_MBC, torch.ones(3, dtype=torch.int64), criterion=counts)
    loss_MM.diagonal().sum().backward()
    assert not loss_MM.diagonal().any()
    assert logits_MBC.grad is not None
    assert not logits_MBC.grad.any()


def test_mixup_is_the_mix_of_two_losses():
    """A·y_a + (1 − A)·y_b costs A·CE(y_a) + (1 − A)·CE(y_b), without weights of the classes."""
    logits_BC, (a_B, b_B) = torch.randn(8, 4), torch.randint(4, (2, 8))
    mixed_BC = 0.3 * F.one_hot(a_B, 4) + 0.7 * F.one_hot(b_B, 4)
    L = mx.loss_matrix(logits_BC[None], mixed_BC)[0, 0]
    wanted = 0.3 * F.cross_entropy(logits_BC, a_B) + 0.7 * F.cross_entropy(logits_BC, b_B)
    torch.testing.assert_close(L, wanted)


def test_one_label_is_two_classes():
    """Multi-label of one output is classification between (0, z)."""
    z_MB1, labels_B1 = torch.randn(3, 8, 1), torch.randint(2, (8, 1))
    yes_or_no = mx.loss_matrix(z_MB1, labels_B1, 2.0, criterion=mx.Criterion("multi-label"))
    as_classes = torch.cat([torch.zeros_like(z_MB1), z_MB1], -1)
    torch.testing.assert_close(yes_or_no, mx.loss_matrix(as_classes, labels_B1[:, 0], 2.0))


# Numbers and devices


@pytest.mark.parametrize(("problem", "draw", "smoothing", "weighed"), CASES)
def test_gradients_types_and_compiling(problem, draw, smoothing, weighed):
    M, B, C = 2, 3, 2
    labels, counts = draw(B, C), criterion(problem, C, smoothing, weighed)
    labels = labels.double() if labels.is_floating_point() else labels
    z_MBC = torch.randn(M, B, C, dtype=torch.float64, requires_grad=True)

    def own(z):
        return mx.loss_matrix(z, labels, criterion=counts).diagonal()

    def of_student(z):
        both = torch.stack([z, z_MBC[1].detach()])
        return mx.loss_matrix(both, None, 2.0, "kl", counts)[0, 1]

    assert torch.autograd.gradcheck(own, z_MBC)
    assert torch.autograd.gradcheck(of_student, z_MBC[0].detach().requires_grad_())
    half = z_MBC.detach().bfloat16()
    narrow = mx.loss_matrix(half, labels, criterion=counts)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, mx.loss_matrix(half.float(), labels, criterion=counts))


@pytest.mark.parametrize("name", ["shares", "several", "numbers"])
def test_it_compiles_whole(name):
    problem, draw = LABELS[name]
    counts = criterion(problem, 3, 0.1 * (problem != "regression"), problem != "regression")

    def both(logits_MBC, labels):
        matrix = mx.loss_matrix(logits_MBC, labels, 2.0, "kl", counts)
        return matrix, row_losses(logits_MBC, labels, counts)

    logits_MBC, labels = torch.randn(3, 8, 3), draw(8, 3)
    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="eager")(logits_MBC, labels)
    for mine, wanted in zip(compiled, both(logits_MBC, labels), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_logits_far_apart_stay_finite():
    far = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]], requires_grad=True)
    counts = mx.Criterion("multi-label", 0.1, (2.0, 3.0))
    L_MM = mx.loss_matrix(far, torch.tensor([[0, 1]]), criterion=counts)
    (gradient,) = torch.autograd.grad(L_MM.sum(), far)
    assert L_MM.isfinite().all()
    assert gradient.isfinite().all()


# Refusals


BAD_SETTINGS = [
    ({"label_smoothing": 1.0}, r"label_smoothing.*\[0, 1\)"),
    ({"label_smoothing": -0.1}, "label_smoothing"),
    ({"class_weights": (1.0, -1.0)}, "a number from 0 for each class"),
    ({"class_weights": (1.0, math.inf)}, "a number from 0 for each class"),
    ({"class_weights": "balanced"}, "got 'balanced'"),
    ({"class_weights": ()}, "a number from 0"),
    ({"class_weights": (0.0, 0.0)}, "not all 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mx.Criterion(**settings)
    with pytest.raises(ValueError, match=message):
        mx.TrainConfig(**settings)


@pytest.mark.parametrize(
    ("counts", "C", "message"),
    [
        (mx.Criterion(None, 0.0, (1, 2)), 3, "2 numbers, for 3 classes"),
        (mx.Criterion("multi-label", 0.0, (1, 2)), 3, "2 numbers, for 3 classes"),
        (mx.Criterion("regression", 0.1), 3, "no classes to smooth"),
        (mx.Criterion(None, 0.0, (1.0,)), 1, "no classes to smooth or to weigh"),
        (mx.Criterion("classification"), 1, "at least 2 classes"),
        (mx.Criterion("multilabel"), 3, "no problem 'multilabel'.*multi-label"),
    ],
)
def test_what_does_not_fit_the_outputs_is_refused(counts, C, message):
    with pytest.raises(ValueError, match=message):
        mx.loss_matrix(torch.zeros(2, 4, C), None, criterion=counts)


BAD_LABELS = [
    ("classification", torch.tensor([[0.2, 0.8, 0], [0.5, 0.5, 0.5]]), r"row 1 .*sums to 1.5"),
    ("classification", torch.tensor([[0.2, 0.8, 0], [1.5, -0.5, 0]]), "row 1 .* from 0"),
    ("classification", torch.tensor([[0.2, 0.8, 0], [math.nan, 0, 1]]), "row 1"),
    ("classification", torch.tensor([[1, 0, 0], [0, 1, 1]]), "one number a row.*'multi-label'"),
    ("classification", torch.zeros(2, 4), r"or shares of the classes, \[N, 3\]"),
    ("multi-label", torch.tensor([0, 1]), r"each of the 3 outputs of a row, \[N, 3\]"),
    ("multi-label", torch.tensor([[0, 1, 2], [0, 0, 0]]), "label 2 in row 0, place 2.*0 or 1"),
    ("multi-label", torch.tensor([[0, 1, 0], [-1, 0, 0]]), "label -1 in row 1, place 0"),
    ("multi-label", torch.tensor([[0, 1, math.nan], [0, 0, 0]]), "label nan in row 0, place 2"),
    ("regression", torch.tensor([1.0, 2.0]), r"each of the 3 outputs of a row, \[N, 3\]"),
    ("regression", torch.tensor([[1, 2, 3], [4, 5, 6]]), "torch.int64; they must be float32"),
    ("regression", torch.tensor([[0, 1, math.inf], [0, 0, 0]]), "label inf in row 0, place 2"),
]


@pytest.mark.parametrize(("problem", "labels", "message"), BAD_LABELS)
def test_bad_labels_are_named(problem, labels, message):
    for refuse in (
        lambda: check_labels(labels, 3, "the set", problem),
        lambda: mx.loss_matrix(torch.zeros(2, 2, 3), labels, criterion=mx.Criterion(problem)),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()


def test_nothing_is_judged_by_shares():
    with pytest.raises(ValueError, match=r"the dev set: labels are shares .* plain classes, \[N\]"):
        check_labels(soft_shares(4, 3), 3, "the dev set", soft=False)


# Decisions


@pytest.mark.parametrize("problem", ["classification", "multi-label", "regression"])
def test_answers_and_confidences_equal_plain_loops(problem):
    M, B, C = 2, 5, 3
    outputs = torch.randn(M, B, C)
    answers, sure_MB = answer(outputs, problem), confidence(outputs, problem)
    for m in range(M):
        for b in range(B):
            cells = parts(problem, outputs[m, b].tolist())
            if problem == "regression":
                assert answers[m, b].tolist() == outputs[m, b].tolist()
            else:
                wanted = [max(range(len(z)), key=z.__getitem__) for z in cells]
                assert answers[m, b].flatten().tolist() == wanted
            least = min(math.exp(max(log_softmax(z))) for z in cells)
            assert float(sure_MB[m, b]) == pytest.approx(least, rel=1e-5)
    apart = decisions(outputs, problem)
    assert torch.equal(PROBLEMS[problem].join(PROBLEMS[problem].split(outputs)), outputs)
    assert apart.shape[1] == B * len(parts(problem, [0.0] * C))
    assert torch.equal(apart[0, 0], torch.tensor(parts(problem, outputs[0, 0].tolist())[0]))


def test_labels_as_answers_are_what_a_perfect_network_says():
    for name, (problem, draw) in LABELS.items():
        labels = draw(6, 4)
        wanted = as_answers(labels, problem)
        perfect = {
            "classes": lambda y: F.one_hot(y, 4).float(),
            "numbers": lambda y: y,
            "shares": torch.log,
        }.get(name, lambda y: 2 * y.float() - 1)(labels)
        assert torch.equal(answer(perfect, problem), wanted), name
        if problem != "regression":
            assert same(answer(perfect, problem), wanted, problem).tolist() == [True] * 6


def test_rows_of_several_labels_are_given_to_exits_by_their_least_sure_one():
    logits_MBC = torch.tensor([[[9.0, 9.0], [9.0, 0.1], [-3.0, 3.0]], [[0.0, 0.0]] * 3])
    assert allot(logits_MBC, q=0.5, problem="multi-label").tolist() == [0, 1, 0]
    outer = mx.weights.MetaWeights(q=0.5).outer(
        logits_MBC, torch.ones(3, 2), mx.Criterion("multi-label")
    )
    first = torch.tensor([[9.0, 9.0], [-3.0, 3.0]])
    wanted = F.binary_cross_entropy_with_logits(first, torch.ones(2, 2)) + math.log(2)
    torch.testing.assert_close(outer, wanted)


def test_no_problem_is_told_by_the_outputs():
    assert resolve(None, 1) == "regression"
    assert resolve(None, 2) == "classification"
    with pytest.raises(ValueError, match=r"at least 2 classes, got num_classes=1.*'multi-label'"):
        resolve("classification", 1)
