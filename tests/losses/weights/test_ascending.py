"""Weights that ascend: group DRO by its paper, softmaxes upside down, terms by running means."""

import copy
import math

import pytest
import torch
from helpers import Table, chain, config, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import multiexit as mx
from multiexit.data.order import group, split_epoch
from multiexit.losses import coefficients, topology, weights
from multiexit.losses.weights.ascending import MEMORY
from multiexit.losses.weights.learners import SLO, Plan
from multiexit.losses.weights.state import Omega


def stepped(name, teaches_MM, terms, lr):
    """Ω after it has followed these loss matrices, one a step."""
    A_MM = coefficients.summed(teaches_MM, 0.0, ())
    omega = Omega(SLO(name), teaches_MM, lr, rho=1.0, seed=0)
    for L_MM in terms:
        omega.update(Plan(stepping=1.0), A_MM, {"stepping": L_MM})
    return omega.value()


def losses(steps, M, seed):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(steps, M, M, generator=generator) + 0.1


@given(
    made=st.sampled_from(["none", "last", "lle", "lae"]),
    M=st.integers(1, 6),
    steps=st.integers(1, 12),
    lr=st.floats(1e-3, 1.0),
    normalized=st.booleans(),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_group_dro_multiplies_as_its_algorithm_does(made, M, steps, lr, normalized, seed):
    teaches_MM, terms = topology.resolve(made, M), losses(steps, M, seed)
    q, means = [1 / M] * M, [[None] * M for _ in range(M)]
    for L_MM in terms.tolist():
        group_losses = []
        for i in range(M):
            teachers = [j for j in range(M) if teaches_MM[i, j]]
            total = 0.0
            for j in [i, *teachers]:
                term = L_MM[i][j]
                if normalized:
                    mean = term if means[i][j] is None else means[i][j]
                    means[i][j] = MEMORY * mean + (1 - MEMORY) * term
                    term = term / mean
                total += term if j == i else term / (M * len(teachers))
            group_losses.append(total)
        q = [share * math.exp(lr * loss) for share, loss in zip(q, group_losses, strict=True)]
        q = [share / sum(q) for share in q]
    name = "group-dro-normalized" if normalized else "group-dro"
    W_MM = stepped(name, teaches_MM, terms, lr)
    wanted_M = 0.1 + 0.9 * M * torch.tensor(q)
    torch.testing.assert_close(W_MM, wanted_M[:, None].expand(M, M), atol=1e-4, rtol=1e-4)


def test_group_dro_traced_by_hand():
    """Losses 2 and 1 at λ2 = log 2: q is 2/3 and 1/3, then 4/5 and 1/5."""
    L_MM = torch.tensor([[2.0, 0], [0, 1]])
    W_M = stepped("group-dro", topology.none(2), [L_MM], math.log(2)).diagonal()
    torch.testing.assert_close(W_M, 0.1 + 0.9 * torch.tensor([4 / 3, 2 / 3]))
    W_M = stepped("group-dro", topology.none(2), [L_MM, L_MM], math.log(2)).diagonal()
    torch.testing.assert_close(W_M, 0.1 + 0.9 * torch.tensor([8 / 5, 2 / 5]))


@pytest.mark.parametrize("made", ["none", "lle", "lae"])
def test_a_softmax_that_ascends_is_one_that_descends_the_negative_loss(made):
    teaches_MM, terms = topology.resolve(made, 4), losses(9, 4, seed=1)
    up = stepped("softmax-ascent", teaches_MM, terms, 0.05)
    down = stepped("softmax", teaches_MM, -terms, 0.05)
    assert torch.equal(up, down)
    assert not torch.equal(up, stepped("softmax", teaches_MM, terms, 0.05))


def test_normalized_terms_weigh_by_how_far_each_has_fallen():
    """λ2 / (1 − β) is the exponent of each mean over its first value; sizes don't matter."""
    steps, size_M = 900, torch.tensor([5.0, 1.0, 0.01])
    fall_M = torch.tensor([0.1, 1.0, 2.0])  # as e^(−fall·t/steps)
    t_S = torch.arange(steps)[:, None] / steps
    own_SM = size_M * torch.exp(-fall_M * t_S)
    lr = 2 * (1 - MEMORY)
    W_M = stepped("group-dro-normalized", topology.none(3), own_SM.diag_embed(), lr).diagonal()
    mean_M = own_SM[0]
    for own_M in own_SM:
        mean_M = MEMORY * mean_M + (1 - MEMORY) * own_M
    wanted_M = ((mean_M / own_SM[0]) ** 2 / ((mean_M / own_SM[0]) ** 2).sum()) * 3 * 0.9 + 0.1
    torch.testing.assert_close(W_M, wanted_M, rtol=0.02, atol=0)
    raw_M = stepped("group-dro", topology.none(3), own_SM.diag_embed(), lr).diagonal()
    assert raw_M[0] > 2.75, "without, the large one takes all"


def test_terms_that_are_nothing_are_no_nan():
    W_MM = stepped("group-dro-normalized", topology.none(3), torch.zeros(4, 3, 3), 0.1)
    assert torch.equal(W_MM, torch.ones(3, 3))


def test_a_run_is_the_minimax_game_written_out():
    """Θ descends the loss of its batch with the weights before, then q goes up by that loss."""
    train, run, M = Table(41), config(epochs=3), 4
    model = chain(M)
    still = copy.deepcopy(model)
    history = fit(model, "leebert-group-dro", run, train)
    optimizer = torch.optim.SGD(still.parameters(), run.lr, momentum=run.momentum)
    q, trajectory = [1 / M] * M, []
    for epoch in range(run.epochs):
        rows, _ = split_epoch(len(train), run.seed, epoch, False)
        for batch in group(rows, run.batch_size, None, run.seed, epoch):
            x, y = train.x[batch], train.labels[batch]
            z = list(still(x))
            own = []
            for i in range(M):
                teachers = [
                    -(z[j].detach().softmax(-1) * z[i].log_softmax(-1)).sum(-1).mean()
                    for j in range(M)
                    if j != i
                ]
                own.append(F.cross_entropy(z[i], y) + sum(teachers) / (M * (M - 1)))
            loss = sum((0.1 + 0.9 * M * q[i]) * own[i] for i in range(M))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            q = [q[i] * math.exp(run.omega_lr * own[i].item()) for i in range(M)]
            q = [share / sum(q) for share in q]
            trajectory.append([0.1 + 0.9 * M * share for share in q])
    for mine, wanted in zip(model.parameters(), still.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
    assert len(history.weights) == len(trajectory)
    for (_, W_MM), wanted in zip(history.weights, trajectory, strict=True):
        assert [row[i] for i, row in enumerate(W_MM)] == pytest.approx(wanted, abs=3e-5)
    assert max(abs(w - 1) for w in trajectory[-1]) > 0.01


def test_a_floor_leaves_room():
    with pytest.raises(ValueError, match=r"floor must be a number in \[0, 1\)"):
        weights.GroupDRO(topology.none(3), floor=1.0)


@pytest.mark.parametrize("normalized", [False, True])
def test_its_recipe_says_which(normalized):
    learner = mx.recipe("leebert-group-dro", normalized=normalized).phases[0].learner
    assert learner.parametrization == "group-dro" + "-normalized" * normalized
    assert not learner.splits
