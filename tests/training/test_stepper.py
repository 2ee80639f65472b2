"""Steps of Θ and Ω: the paper's algorithms in plain loops, own learners, parts of a batch."""

import copy
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from helpers import PLAIN, Table, Watched, assert_same, chain, config, convnet, fit, images, tensors
from torch import nn
from torch.nn import functional as F

import multiexit as mx
from multiexit.data.order import group, split_epoch
from multiexit.losses import topology, weights
from multiexit.losses.weights.learners import BLO, CLO1, CLO2, SLO, Uniform

# Algorithms 1 and 2, SLO, BLO and uniform weights, transcribed


class PlainOmega:
    """Ω as numbers that autograd follows, one weight at a time."""

    def __init__(self, kind, teaches, lr):
        M = len(teaches)
        self.kind, self.teaches, self.M = kind, teaches, M
        start = 1.0 if kind == "raw" else 0.0
        self.own = torch.full((M,), start, requires_grad=True)
        self.pairs = torch.full((M, M), start, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.own, self.pairs], lr)

    def weight(self, i, j):
        if self.kind == "raw":
            return self.own[i] if i == j else self.pairs[i, j]
        if self.kind == "uncertainty":
            return torch.exp(-(self.own[i] if i == j else self.pairs[i, j]))
        if i == j:
            rivals = self.own
            share = torch.exp(self.own[i]) / sum(torch.exp(a) for a in rivals)
            return 0.1 + 0.9 * self.M * share
        teachers = [k for k in range(self.M) if self.teaches[i][k]]
        share = torch.exp(self.pairs[i, j]) / sum(torch.exp(self.pairs[i, k]) for k in teachers)
        return 0.1 + 0.9 * len(teachers) * share

    def price(self, i, j):
        """What a term's weight costs Ω by itself."""
        if self.kind != "uncertainty":
            return 0.0
        return self.own[i] if i == j else self.pairs[i, j]

    def step(self, gradients):
        self.own.grad, self.pairs.grad = gradients
        self.optimizer.step()

    def values(self):
        return torch.tensor(
            [
                [
                    self.weight(i, j).item() if i == j or self.teaches[i][j] else math.nan
                    for j in range(self.M)
                ]
                for i in range(self.M)
            ]
        )


def plain_loss(model, omega, batch, tau):
    """Eq. 5 with its teachers detached, term by term, as a function of Θ and of Ω."""
    x, y = batch
    logits = list(model(x))
    M, total = len(logits), 0.0
    for i in range(M):
        term = -F.log_softmax(logits[i], -1)[torch.arange(len(y)), y].mean()
        total = total + omega.weight(i, i) * term + omega.price(i, i)
        teachers = [j for j in range(M) if omega.teaches[i][j]]
        for j in teachers:
            soft = F.softmax(logits[j].detach() / tau, -1)
            term = -(soft * F.log_softmax(logits[i] / tau, -1)).sum(-1).mean() * tau**2
            share = 1 / (M * len(teachers))
            total = total + share * (omega.weight(i, j) * term + omega.price(i, j))
    return total


def plain_run(model, method, kind, made, tau, train, settings, cycle):
    """The algorithms as the paper prints them; returns Ω after each step."""
    model.train()
    theta = list(model.parameters())
    theta_step = torch.optim.SGD(theta, settings.lr, momentum=settings.momentum)
    omega = PlainOmega(kind, topology.resolve(made, model.num_exits).tolist(), settings.omega_lr)
    numbers = [omega.own, omega.pairs]
    rho = settings.lr / settings.omega_lr
    trajectory, t = [], 0

    def batch(rows):
        return train.x[rows], train.labels[rows]

    def slope(rows):
        """∇_Ω L_B at the present Θ, by a forward pass with gradients."""
        loss = plain_loss(model, omega, batch(rows), tau)
        found = torch.autograd.grad(loss, numbers, allow_unused=True)
        return [
            torch.zeros_like(n) if g is None else g for n, g in zip(numbers, found, strict=True)
        ]

    def update_theta(rows):
        loss = plain_loss(model, omega, batch(rows), tau)
        for p, g in zip(theta, torch.autograd.grad(loss, theta), strict=True):
            p.grad = g
        theta_step.step()

    for epoch in range(settings.epochs):
        halves = method not in ("uniform", "slo")
        D1, D2 = split_epoch(len(train), settings.seed, epoch, halves)
        second = iter(group(D2, settings.batch_size, None, settings.seed, epoch))
        for B1 in group(D1, settings.batch_size, None, settings.seed, epoch):
            before = slope(B1)
            update_theta(B1)
            last = (t + 1) % cycle == 0
            if method == "slo":  # eq. 7: both on the same loss
                omega.step(before)
            elif method == "blo":  # eq. 8
                omega.step(slope(next(second)))
            elif method == "clo-v1" or (method.startswith("clo-v2") and last):  # eqs. 11, 14
                first = [rho * g for g in slope(B1)]
                omega.step([a + b for a, b in zip(first, slope(next(second)), strict=True)])
            elif method == "clo-v2":  # eq. 12
                omega.step([rho * g for g in before])
            trajectory.append(omega.values())
            t += 1
    return trajectory


METHODS = {
    "uniform": Uniform,
    "slo": SLO,
    "blo": BLO,
    "clo-v1": CLO1,
    "clo-v2": lambda kind: CLO2(kind, cycle=3),
    "clo-v2-as-section-3.4": lambda kind: CLO2(kind, cycle=3, in_cycle=False),
}
CASES = [(method, "softmax", "lae", 1.0) for method in METHODS] + [
    ("slo", "raw", "lle", 2.0),
    ("clo-v1", "uncertainty", "last", 4.0),
    ("clo-v2", "raw", "lae", 4.0),
    ("clo-v2", "softmax", "lle", 2.0),
    ("clo-v1", "softmax", "none", 1.0),
]


@pytest.mark.parametrize(("method", "kind", "made", "tau"), CASES)
def test_the_loop_is_the_papers_algorithm(method, kind, made, tau):
    settings, train = config(epochs=3), Table(41)
    ours = chain()
    theirs = copy.deepcopy(ours)
    recipe = mx.recipes.leebert(tau, topology=made, learner=METHODS[method](kind))
    history = fit(ours, recipe, settings, train)
    trajectory = plain_run(theirs, method, kind, made, tau, train, settings, cycle=3)
    assert len(history.steps) == len(trajectory)
    for (name, mine), (_, wanted) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5, msg=name)
    if method == "uniform":
        assert history.weights == []
        return
    for (step, W_MM), wanted in zip(history.weights, trajectory, strict=True):
        mine = torch.tensor([[math.nan if w is None else w for w in row] for row in W_MM])
        torch.testing.assert_close(
            mine, wanted, atol=2e-5, rtol=1e-5, equal_nan=True, msg=str(step)
        )
    moved = (wanted.nan_to_num(1.0) - 1).abs().max()
    assert moved > 0.01, "these settings would not tell a weight that stays from one that moves"


# Learners


@dataclass(frozen=True)
class Still(Uniform):
    """Uniform weights on D1 alone: what CLO trains when Ω does not move."""

    @property
    def splits(self):
        return True


def test_passes_for_omega_leave_batch_statistics_alone():
    settings = config(lr=0.05, omega_lr=1e-30)  # Ω looks, but can't move
    looked, alone = convnet(dropout=0.0), convnet(dropout=0.0)
    for model, learner in ((looked, CLO1(rho=1.0)), (alone, Still())):
        fit(model, mx.recipes.leebert(learner=learner), settings, images(augment=False))
    assert_same(tensors(looked), tensors(alone))
    norms = [m for m in looked.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(m.num_batches_tracked) for m in norms} == {6}  # 20 rows by 8, 2 epochs
    assert all(m.track_running_stats for m in norms)


def test_an_own_learner_is_asked_at_every_step():
    asked = []

    @dataclass(frozen=True)
    class EveryOther(weights.Learner):
        def plan(self, step, rho):
            asked.append((step, rho))
            return weights.Plan(second=float(step % 2))

    watched = Watched(Table())
    trainer = mx.Trainer(chain(), mx.recipes.leebert(learner=EveryOther()), config(epochs=2))
    asked.clear()  # it was tried
    history = trainer.fit(watched)
    assert asked == [(step, PLAIN.lr / PLAIN.omega_lr) for step in range(6)]
    assert watched.reads == 6 + 3  # a batch of D2 at steps 1, 3 and 5 only
    moved = [W_MM for _, W_MM in history.weights]
    same = [a == b for a, b in pairwise(moved)]
    assert same == [False, True, False, True, False]


def test_clo_v2_without_in_cycle_updates_moves_omega_at_every_cth_step_alone():
    learner = mx.weights.CLO2(cycle=3, in_cycle=False)
    history = fit(chain(), mx.recipes.leebert(learner=learner), config(epochs=4), Table())
    values = [W_MM for _, W_MM in history.weights]
    moved = [step for step in range(1, 12) if values[step] != values[step - 1]]
    assert moved == [2, 5, 8, 11]
    assert all(w == 1 for row in values[0] for w in row)


# Θ's gradient


@pytest.mark.parametrize("recipe", ["leebert-uniform", "pabee"])
def test_two_halves_of_a_batch_make_one_step(recipe):
    whole, halves = chain(), chain()
    one = fit(whole, recipe, config(batch_size=32), Table(64))
    two = fit(halves, recipe, config(batch_size=16, accumulation=2), Table(64))
    assert len(one.steps) == len(two.steps) == 4
    for mine, wanted in zip(halves.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-5)
    assert [row["loss"] for row in two.steps] == pytest.approx([row["loss"] for row in one.steps])


@pytest.mark.parametrize("limit", [1e-3, 0.05, 1e3])
def test_a_long_gradient_is_cut_to_the_limit(limit):
    model, free = chain(), chain()
    before = [p.detach().clone() for p in model.parameters()]
    one_step = config(max_steps=1, lr=1.0, momentum=0.0, batch_size=40)
    fit(model, "joint", replace(one_step, clip=limit), Table())
    fit(free, "joint", one_step, Table())

    def moved(network):
        return torch.cat(
            [(b - p).flatten() for b, p in zip(before, network.parameters(), strict=True)]
        )

    length = moved(free).norm().item()
    wanted = moved(free) * min(1.0, limit / length)
    torch.testing.assert_close(moved(model), wanted, atol=2e-7, rtol=1e-4)
    assert (limit > length) == (limit == 1e3)
