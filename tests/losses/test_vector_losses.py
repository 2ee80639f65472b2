"""The loss matrix of vectors: against plain loops, by hand, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx

VECTORS = mx.Criterion("embedding")


def cos(v, u) -> float:
    dot = sum(a * b for a, b in zip(v, u, strict=True))
    return dot / math.sqrt(sum(a * a for a in v) * sum(b * b for b in u))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 4), st.integers(0, 99_999))
@settings(max_examples=60, deadline=None)
def test_the_matrix_is_what_plain_loops_say(M, B, D, seed):
    generator = torch.Generator().manual_seed(seed)
    x_MBD = torch.randn(M, B, D, generator=generator, dtype=torch.float64)
    y_BD = torch.randn(B, D, generator=generator, dtype=torch.float64)
    x, y = x_MBD.tolist(), y_BD.tolist()
    for divergence in ("ce", "kl", "similarity"):
        for labels in (None, y_BD):
            L_MM = mx.loss_matrix(x_MBD, labels, divergence=divergence, criterion=VECTORS)
            for i in range(M):
                for j in range(M):
                    if i == j:
                        pairs = zip(x[i], y, strict=True)
                        wanted = 0 if labels is None else sum(1 - cos(v, u) for v, u in pairs) / B
                    else:
                        pairs = zip(x[i], x[j], strict=True)
                        wanted = sum(1 - cos(v, u) for v, u in pairs) / B
                        if divergence == "similarity":
                            wanted += (
                                sum(
                                    (cos(x[i][a], x[j][b]) - cos(x[j][a], x[j][b])) ** 2
                                    for a in range(B)
                                    for b in range(B)
                                )
                                / B
                            )
                    assert float(L_MM[i, j]) == pytest.approx(wanted, abs=1e-9)


def test_the_matrix_by_hand():
    # At 0° and 90° the first exit, at 60° both rows the second: cosines 1/2 and √3/2.
    angle_MB = torch.deg2rad(torch.tensor([[0.0, 90.0], [60.0, 60.0]]))
    x_MBD = torch.stack([angle_MB.cos(), angle_MB.sin()], -1)
    apart = 1 - (0.5 + math.sqrt(3) / 2) / 2
    L_MM = mx.loss_matrix(5 * x_MBD, None, criterion=VECTORS)  # lengths don't matter
    torch.testing.assert_close(L_MM, torch.tensor([[0, apart], [apart, 0]]))
    # To the second exit's rows, which are alike: 1/2 and √3/2 where it has 1, twice each. To the
    # first's, which are at right angles: 1/2 and √3/2 where it has 1 and 0, or 0 and 1.
    small = (1 - math.sqrt(3) / 2) ** 2
    first, second = (2 / 4 + 2 * small) / 2, (1 / 4 + 3 / 4 + 1 / 4 + small) / 2
    L_MM = mx.loss_matrix(x_MBD, None, divergence="similarity", criterion=VECTORS)
    torch.testing.assert_close(L_MM, torch.tensor([[0, apart + first], [apart + second, 0]]))
    own_M = mx.loss_matrix(x_MBD, x_MBD[0], criterion=VECTORS).diagonal()
    torch.testing.assert_close(own_M, torch.tensor([0, apart]))


@pytest.mark.parametrize("divergence", ["ce", "similarity"])
def test_the_gradient_is_the_student_s_alone(divergence):
    x_MBD = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    L_MM = mx.loss_matrix(x_MBD, None, divergence=divergence, criterion=VECTORS)
    (gradient_MBD,) = torch.autograd.grad(L_MM[0, 2], x_MBD)
    assert gradient_MBD[0].any()
    assert not gradient_MBD[1:].any()


@pytest.mark.parametrize(
    ("labels", "options", "match"),
    [
        (None, {"temperature": 2.0}, "no temperature: it must be 1, got 2.0"),
        (torch.zeros(4), {}, r"labels have shape \(4,\) .* a vector a row, \[N, 3\]"),
        (torch.zeros(4, dtype=torch.long), {}, r"a vector a row"),
        (torch.ones(4, 3, dtype=torch.long), {}, "must be float32 for vectors"),
        (torch.zeros(4, 3), {}, "finite vectors that aren't 0"),
        (torch.full((4, 3), math.nan), {}, "finite vectors"),
        (None, {"criterion": mx.Criterion(), "divergence": "similarity"}, "vectors of an embedd"),
        (None, {"criterion": mx.Criterion("embedding", 0.1)}, "no classes to smooth"),
        (None, {"divergence": "cosine"}, "must be 'ce', 'kl' or 'similarity'"),
    ],
)
def test_what_vectors_can_t_have_is_refused(labels, options, match):
    with pytest.raises(ValueError, match=match):
        mx.loss_matrix(torch.ones(2, 4, 3), labels, **{"criterion": VECTORS, **options})
