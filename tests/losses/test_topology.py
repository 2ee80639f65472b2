"""Who teaches whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiexit import testing
from multiexit.losses import topology

RULES = {
    "none": lambda i, j, M: False,
    "last": lambda i, j, M: j == M - 1 and i != j,
    "lle": lambda i, j, M: j > i,
    "lae": lambda i, j, M: j != i,
}


@pytest.mark.parametrize("name", topology.NAMES)
def test_conforms(name):
    testing.check_topology(topology.NAMES[name])


@given(st.sampled_from(sorted(RULES)), st.integers(1, 30))
@settings(deadline=None)
def test_each_pair_is_as_its_rule_says(name, M):
    teaches_MM = topology.resolve(name, M)
    assert teaches_MM.shape == (M, M)
    assert teaches_MM.dtype == torch.bool
    wanted = [[RULES[name](i, j, M) for j in range(M)] for i in range(M)]
    assert teaches_MM.tolist() == wanted


def test_a_function_or_a_matrix_of_ones_own():
    def neighbour(M: int) -> torch.Tensor:
        return torch.eye(M).roll(1, dims=1).bool() if M > 1 else topology.none(M)

    testing.check_topology(neighbour)
    assert topology.resolve(neighbour, 3).tolist() == [
        [False, True, False],
        [False, False, True],
        [True, False, False],
    ]
    assert torch.equal(topology.resolve(topology.lle(4), 4), topology.lle(4))


BAD = [
    ("all", "no topology 'all'"),
    (topology.lae(3), r"\[4, 4\].*got torch.bool \(3, 3\)"),
    (topology.lae(4).float(), "torch.bool matrix.*got torch.float32"),
    (lambda M: topology.lae(M)[:-1], r"got torch.bool \(3, 4\)"),
    (lambda M: [[False] * M] * M, "got list"),
    (torch.eye(4).bool(), r"teach itself.*\[0, 1, 2, 3\]"),
    (torch.ones(4, 4, dtype=torch.bool).tril(), "teach itself"),
    ([[False] * 4] * 4, "topology"),
    (None, "topology"),
]


@pytest.mark.parametrize(("made", "message"), BAD)
def test_bad_ones_are_named(made, message):
    with pytest.raises(ValueError, match=message):
        topology.resolve(made, 4)


@pytest.mark.parametrize(
    "made", [lambda M: torch.ones(M, M), lambda M: torch.eye(M).bool(), lambda M: topology.lae(2)]
)
def test_the_check_catches_wrong_ones(made):
    with pytest.raises(AssertionError, match="at M ="):
        testing.check_topology(made)


def test_the_check_catches_a_random_one():
    def drawn(M: int) -> torch.Tensor:
        return (torch.rand(M, M) < 0.5) & topology.lae(M)

    with pytest.raises(AssertionError, match="two calls"):
        testing.check_topology(drawn)
