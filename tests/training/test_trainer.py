"""The training loop: the paper's algorithms in plain loops, phases, settings and bad input."""

import copy
import json
import math
import os
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    CLASSES,
    PLAIN,
    WIDTH,
    Table,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    fit,
    images,
    saved_state,
    tensors,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import multiexit as mx
from multiexit.data.order import group, split_epoch
from multiexit.evaluation import metrics
from multiexit.losses import topology, weights
from multiexit.losses.weights.learners import BLO, CLO1, CLO2, SLO, Uniform
from multiexit.training.optimizer import learning_rate
from multiexit.training.records import checkpoint

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


def test_reading_losses_rarely_changes_nothing():
    def run(log_every):
        model = chain()
        recipe = mx.recipes.leebert(learner=SLO("raw"))
        return model, fit(model, recipe, config(log_every=log_every, omega_lr=0.1), Table())

    (often, each), (rarely, fives) = run(1), run(5)
    assert_same(tensors(often), tensors(rarely))
    losses = torch.tensor([row["loss"] for row in each.steps])
    assert [row["step"] for row in fives.steps] == [5, 10]
    torch.testing.assert_close(
        torch.tensor([row["loss"] for row in fives.steps]), losses.view(2, 5).mean(1)
    )
    assert fives.weights == [each.weights[4], each.weights[9]]


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
    class EveryOther(SLO):
        def plan(self, step, rho):
            asked.append((step, rho))
            return weights.Plan(second=float(step % 2))

    watched = Watched(Table())
    history = fit(chain(), mx.recipes.leebert(learner=EveryOther()), config(epochs=1), watched)
    assert asked == [(step, PLAIN.lr / PLAIN.omega_lr) for step in range(5)]
    assert watched.reads == 5 + 2  # a batch of D2 at steps 1 and 3 only
    moved = [W_MM for _, W_MM in history.weights]
    same = [a == b for a, b in pairwise(moved)]
    assert same == [False, True, False, True]


# Phases


def phased(*phases):
    recipe = mx.recipe("joint")
    return replace(recipe, name="phased", phases=tuple(mx.Phase(**phase) for phase in phases))


def parts(model):
    """The model's tensors: trunk, early heads, last head."""
    here = tensors(model)
    last = f"heads.{model.num_exits - 1}."
    return (
        {k: v for k, v in here.items() if k.startswith("backbone.")},
        {k: v for k, v in here.items() if k.startswith("heads.") and not k.startswith(last)},
        {k: v for k, v in here.items() if k.startswith(last)},
    )


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_phase_of_the_last_exit_leaves_early_heads_as_they_were(optimizer):
    model = convnet()
    trunk, early, last = parts(model)
    settings = config(optimizer=optimizer, weight_decay=0.1, lr=0.01)
    fit(model, phased({"train": "last"}), settings, images())
    now_trunk, now_early, now_last = parts(model)
    assert_same(early, now_early)
    assert changed(trunk, now_trunk) == set(trunk)
    assert changed(last, now_last) == set(last)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_phase_of_the_heads_leaves_the_trunk_and_its_statistics_as_they_were(optimizer):
    model = convnet(dropout=0.5)
    trunk, early, last = parts(model)
    settings = config(optimizer=optimizer, weight_decay=0.1, lr=0.01)
    fit(model, phased({"train": "heads", "topology": "last"}), settings, images())
    now_trunk, now_early, now_last = parts(model)
    assert_same(trunk, now_trunk)
    assert_same(last, now_last)
    assert changed(early, now_early) == set(early)


def normed_head(shape, num_classes):
    """A head with statistics of its own."""
    channels = shape[0]
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(channels),
        nn.Linear(channels, num_classes),
    )


def test_the_last_head_is_frozen_with_its_statistics_too():
    model = convnet(head=normed_head)
    _, early, last = parts(model)
    fit(model, phased({"train": "heads", "topology": "last"}), config(), images())
    _, now_early, now_last = parts(model)
    assert_same(last, now_last)
    assert changed(early, now_early) == set(early)


def test_what_a_phase_froze_can_be_trained_again():
    model = convnet()
    fit(model, phased({"train": "heads"}), config(max_steps=1), images())
    assert all(p.requires_grad for p in model.parameters())
    before = tensors(model)
    fit(model, "joint", config(max_steps=1), images())
    assert changed(before, tensors(model)) == set(before) - {"temperature_M"}


def test_a_frozen_trunk_has_no_dropout():
    def losses(dropout):
        settings = config(lr=1e-9, batch_size=40, epochs=1)
        history = fit(chain(dropout=dropout), phased({"train": "heads"}), settings, Table())
        return history.steps[0]["own_M"]

    assert losses(0.9) == losses(0.0)


def test_two_phases_follow_one_another():
    model = convnet()
    _, early, _ = parts(model)
    two = phased({"train": "last", "epochs": 1}, {"train": "heads", "topology": "last"})
    history = fit(model, two, config(epochs=3), images())
    assert [(row["phase"], row["epoch"]) for row in history.epochs] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    once = convnet()
    fit(once, phased({"train": "last", "epochs": 1}), config(), images())
    assert_same(parts(once)[0], parts(model)[0])
    assert_same(parts(once)[2], parts(model)[2])
    assert changed(early, parts(model)[1]) == set(early)


def test_stages_behind_the_last_exit_are_not_trained():
    model = convnet(exits=[0, 2])
    before = tensors(model)
    fit(model, "joint", config(weight_decay=0.1), images())
    behind = {name for name in before if name.startswith("backbone.stages.3.")}
    assert behind
    assert changed(before, tensors(model)) == set(before) - behind - {"temperature_M"}


def test_a_phase_with_nothing_to_train_is_refused():
    model = chain(exits=1)
    before = tensors(model)
    with pytest.raises(ValueError, match=r"phase 1 of 'phased' trains 'heads'.*1 exit"):
        fit(model, phased({}, {"train": "heads"}), config(), Table())
    assert_same(tensors(model), before)


# Settings


@pytest.mark.parametrize("recipe", ["leebert-uniform", "pabee"])
def test_two_halves_of_a_batch_make_one_step(recipe):
    whole, halves = chain(), chain()
    one = fit(whole, recipe, config(batch_size=32), Table(64))
    two = fit(halves, recipe, config(batch_size=16, accumulation=2), Table(64))
    assert len(one.steps) == len(two.steps) == 4
    for mine, wanted in zip(halves.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-5)
    assert [row["loss"] for row in two.steps] == pytest.approx([row["loss"] for row in one.steps])


def test_accumulation_ends_with_the_epoch():
    watched = Watched(Table(40))
    history = fit(chain(), "joint", config(batch_size=8, accumulation=3), watched)
    assert [row["step"] for row in history.steps] == [1, 2, 3, 4]  # 3 + 2 batches, twice
    assert watched.reads == 10


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


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"schedule": "constant"}, [2.0] * 10),
        ({"schedule": "linear"}, [2 - 0.2 * i for i in range(10)]),
        (
            {"schedule": "linear", "warmup": 0.2},
            [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25],
        ),
        ({"schedule": "cosine"}, [1 + math.cos(math.pi * i / 10) for i in range(10)]),
        ({"schedule": "step"}, [2.0] * 5 + [0.2] * 3 + [0.02] * 2),
        ({"schedule": "step", "milestones": (0.3,)}, [2.0] * 3 + [0.2] * 7),
        ({"schedule": "constant", "warmup": 0.5}, [0.4, 0.8, 1.2, 1.6, 2.0] + [2.0] * 5),
    ],
)
def test_the_learning_rate_at_every_step(changes, wanted):
    settings = config(lr=2.0, **changes)
    assert [learning_rate(settings, step, 10) for step in range(10)] == pytest.approx(wanted)
    settings = config(lr=2e-9, batch_size=8, **changes)
    history = fit(chain(), "joint", settings, Table())
    assert [row["lr"] for row in history.steps] == pytest.approx([1e-9 * rate for rate in wanted])


def test_decay_spares_biases_and_norms():
    model = convnet()
    before = tensors(model)
    # A gradient of next to nothing moves Adam by lr at most; decay by lr·decay·p.
    settings = config(optimizer="adamw", lr=1e-4, weight_decay=5000.0, max_steps=1)
    fit(model, "joint", settings, images())
    for name, now in model.named_parameters():
        decayed = now.detach() - before[name] * (0.5 if now.ndim > 1 else 1.0)
        assert decayed.abs().max() <= 1.01e-4, name


def test_max_steps_count_for_every_method():
    reads = {}
    for name in ("joint", "leebert"):
        watched = Watched(Table())
        history = fit(chain(), name, config(max_steps=7), watched)
        assert history.steps[-1]["step"] == 7
        reads[name] = watched.reads
    assert reads == {"joint": 7, "leebert": 7 + 1}


@pytest.mark.parametrize("precision", ["bf16", "no"])  # one after the other in one process
def test_mixed_precision_trains(precision):
    model = chain()
    settings = config(mixed_precision=precision, epochs=6, lr=0.2)
    history = fit(model, "leebert", settings, Table(80))
    first, last = (sum(history.steps[i]["own_M"]) for i in (0, -1))
    assert last < 0.85 * first
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(Table(4).x).dtype == torch.float32
    assert "autocast" not in repr(model.forward)


def test_a_tracker_writes_its_file(tmp_path):
    settings = config(output=tmp_path, trackers=("tensorboard",))
    fit(chain(), "joint", settings, Table(), Table(12, seed=1))
    assert list(tmp_path.rglob("*tfevents*"))


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        model = convnet()
        history = fit(model, "leebert", config(seed=seed), images())
        return tensors(model), history.steps

    (one, first), (two, second), (other, _) = run(3), run(3), run(4)
    assert_same(one, two)
    assert first == second
    assert changed(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_bring_the_same_rows(workers):
    model = chain()
    fit(model, "leebert", config(workers=workers, epochs=1), Table())
    alone = chain()
    fit(alone, "leebert", config(epochs=1), Table())
    assert_same(tensors(model), tensors(alone))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_epoch_is_augmented_anew(workers):
    """The same image all over: only its crops can tell one epoch from another."""
    train = images(8)
    train.images[:], train.labels[:] = train.images[0], 0
    still = config(lr=1e-12, epochs=4, batch_size=8, workers=workers)
    history = fit(convnet(dropout=0.0), "joint", still, train)
    losses = [row["loss"] for row in history.steps]
    gaps = [abs(a - b) for i, a in enumerate(losses) for b in losses[:i]]
    assert min(gaps) > 1e-4, losses


@pytest.mark.parametrize("rows", [images, Table])
def test_a_part_of_a_set_trains_as_the_set_does(rows):
    make = convnet if rows is images else chain
    some, all_of_it = make(), make()
    fit(some, "leebert", config(), Subset(rows(), range(40)), Subset(rows(), range(5)))
    fit(all_of_it, "leebert", config(early_stopping=None), rows(), Subset(rows(), range(5)))
    assert_same(tensors(some), tensors(all_of_it))


def test_a_loader_gives_its_rows_and_its_batch_size():
    by_loader, by_set = chain(), chain()
    fit(by_loader, "joint", config(batch_size=3), DataLoader(Table(), batch_size=8, shuffle=True))
    fit(by_set, "joint", config(batch_size=8), Table())
    assert_same(tensors(by_loader), tensors(by_set))


def test_a_dict_with_labels_is_a_batch():
    class Named(Table):
        def __getitem__(self, row):
            return {"x": self.x[row], "labels": self.labels[row]}

    named, paired = chain(), chain()
    class_of = mx.MultiExitModel(named.backbone, CLASSES)
    class_of.load_state_dict(paired.state_dict())
    fit(class_of, "joint", config(), Named())
    fit(paired, "joint", config(), Table())
    assert_same(tensors(class_of), tensors(paired))


def test_regression_learns():
    class Scores(Table):
        def __init__(self, rows=64):
            super().__init__(rows)
            self.labels = self.x[:, 0] + 0.5 * self.x[:, 1]

    model = chain(classes=1)
    recipe = replace(mx.recipe("leebert"), policy=mx.Patience(1, tolerance=0.1))
    history = fit(model, recipe, config(epochs=8, lr=0.05), Scores(), Scores(32))
    assert history.best["mean"] > 0.8
    assert set(history.best["exits"][0]) == {"score", "pearson", "spearman"}


# The best epoch, and stopping early

SCORES = [(0.5, 0.5, 0.5), (1.0, 0.2, 0.2), (0.7, 0.7, 0.4), (0.0, 0.6, 0.9), (0.6, 0.6, 0.6)]
"""Exits' scores by epoch. By the mean: 0.5, 0.467, 0.6, 0.5, 0.6; the last exit's best is 3."""


@pytest.fixture
def crafted(monkeypatch):
    """A metric that gives SCORES, whatever the model says; it is tried once before."""
    given = iter([0.0, *(score for epoch in SCORES for score in epoch)])
    monkeypatch.setitem(
        metrics.METRICS, "crafted", lambda predicted, labels: {"score": next(given)}
    )


@pytest.mark.parametrize(("patience", "epochs"), [(None, 5), (2, 5), (1, 2)])
def test_the_best_mean_over_exits_is_kept(crafted, patience, epochs):
    model = chain(exits=3)
    settings = config(epochs=5, metric="crafted", early_stopping=patience)
    history = fit(model, "leebert", settings, Table(), Table(10, seed=1))
    assert [row["epoch"] for row in history.epochs] == list(range(epochs))
    best = 2 if epochs == 5 else 0
    assert history.best == history.epochs[best]
    assert history.best["mean"] == pytest.approx(sum(SCORES[best]) / 3)
    until_then = chain(exits=3)
    fit(until_then, "leebert", config(epochs=best + 1), Table())
    assert_same(tensors(model), tensors(until_then))


def test_the_best_epoch_is_of_the_last_phase(monkeypatch):
    given = iter([0.0, 0.9, 0.8, 0.3, 0.4, 0.2])  # it is tried once before
    monkeypatch.setitem(
        metrics.METRICS, "crafted", lambda predicted, labels: {"score": next(given)}
    )
    model = convnet(0.0, exits=[3])
    two = phased({"train": "all", "epochs": 2}, {"train": "last", "epochs": 3})
    train, dev = images(augment=False), images(8, augment=False)
    history = fit(model, two, config(metric="crafted"), train, dev)
    assert (history.best["phase"], history.best["epoch"]) == (1, 1)
    # The second phase starts from the best epoch of the first, its first one.
    until_then = convnet(0.0, exits=[3])
    two = phased({"train": "all", "epochs": 1}, {"train": "last", "epochs": 2})
    fit(until_then, two, config(), train)
    assert_same(tensors(model), tensors(until_then))


def test_the_saved_model_is_the_best_one(crafted, tmp_path):
    model = convnet(exits=[0, 1, 3])
    settings = config(epochs=5, metric="crafted", output=tmp_path)
    history = fit(model, "joint", settings, images(), images(10, augment=False))
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model", backbone=convnet().backbone)
    assert_same(tensors(model), tensors(again))
    assert again.policy == mx.recipe("joint").policy
    assert mx.History.load(tmp_path / "history.json") == history


def test_without_a_dev_set_the_last_epoch_stays():
    model = chain()
    history = fit(model, "joint", config(epochs=3, early_stopping=1), Table())
    assert history.best is None
    assert len(history.epochs) == 3
    watched = chain()
    settings = config(epochs=3, early_stopping=None)
    history = fit(watched, "joint", settings, Table(), Table(10, seed=1))
    if history.best["epoch"] == 2:
        assert_same(tensors(model), tensors(watched))


def test_looking_at_the_dev_set_does_not_change_training():
    def steps(dev):
        return fit(convnet(dropout=0.3), "leebert", config(), images(), dev).steps

    assert steps(None) == steps(images(12, augment=False))


# Numbers that are not


class Poisoned(Table):
    """Infinity in the inputs, from read number `bad` on."""

    def __init__(self, bad, rows=40):
        super().__init__(rows)
        self.bad, self.reads = bad, 0

    def __getitems__(self, rows):
        x = self.x[rows].clone()
        if self.reads >= self.bad:
            x[0, 0] = math.inf
        self.reads += 1
        return list(zip(x, self.labels[rows], strict=True))


@pytest.mark.parametrize("log_every", [1, 20])
def test_a_loss_that_is_no_number_is_named_and_the_checkpoint_stands(log_every, tmp_path):
    # Wide rows, tanh stages: infinity becomes NaN only where two meet; a linear net passes it on.
    model = mx.MultiExitModel(
        mx.wrap(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))), CLASSES
    )
    settings = config(output=tmp_path, checkpoint_every=2, log_every=log_every, epochs=3)
    with pytest.raises(FloatingPointError, match=r"exit 0's own loss is (nan|inf) at step 7"):
        fit(model, "joint", settings, Poisoned(7))
    saved = saved_state(tmp_path)
    assert saved["position"]["step"] == 6
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    with pytest.warns(UserWarning, match="data train hash"):  # the data was mended
        resumed = fit(model, "joint", replace(settings, resume=True, force=True), Table())
    assert resumed.epochs[-1]["epoch"] == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_exit_that_broke_is_named():
    model = chain()
    with torch.no_grad():
        model.heads[2].linear.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="exit 2's own loss is nan at step 0"):
        fit(model, "joint", config(), Table())


@pytest.mark.parametrize("dev", [None, Table(8, seed=1)])
def test_parameters_that_overflow_are_not_kept(dev, tmp_path):
    """The last step's loss may be finite and its update not."""
    model = chain()
    settings = config(output=tmp_path, lr=1e37, weight_decay=1e5, max_steps=1)
    with pytest.raises((FloatingPointError, ValueError)):
        fit(model, "joint", settings, Table(), dev)
    assert not checkpoint.names(tmp_path)
    assert not (tmp_path / "model").exists()


# Bad input


def refused(message, train, model=None, settings=PLAIN, recipe="leebert", dev=None):
    model = model or chain()
    before = tensors(model)
    with pytest.raises(ValueError, match=message):
        fit(model, recipe, settings, train, dev)
    assert_same(before, tensors(model))


@pytest.mark.parametrize("label", [-1, CLASSES])
@pytest.mark.parametrize("known", [True, False])
def test_labels_outside_the_classes_stop_it_before_the_first_step(label, known):
    train = Table()
    train.labels[17] = label
    row = "row 17"
    if not known:  # the set has no `labels`: they are seen when they come
        train, row = TensorDataset(train.x, train.labels), "row"
    refused(re.escape(f"label {label} in {row}"), train, settings=config(batch_size=40))


def test_labels_must_be_integers():
    train = Table()
    train.labels = train.labels.float()
    refused("labels are torch.float32.*int64", train)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(WIDTH), 0


class Triples(Table):
    def __getitem__(self, row):
        return self.x[row], self.labels[row], row


class Unlabelled(Table):
    def __getitem__(self, row):
        return {"x": self.x[row]}


class Bare(Table):
    def __getitem__(self, row):
        return self.x[row]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Table(1), "at least 2 rows, got 1"),
        (Table(0), "at least 2 rows, got 0"),
        (
            [(torch.zeros(WIDTH), 0)] * 8,
            "Dataset or DataLoader.*list: put tensors into a .*TensorDataset",
        ),
        (Endless(), "Dataset"),
        (Triples(), r"a batch is \(inputs, labels\)"),
        (Unlabelled(), r"a batch is \(inputs, labels\).*keys \['x'\]"),
        (Bare(), r"a batch is \(inputs, labels\).*Tensor"),
    ],
    ids=["one row", "no row", "list", "iterable", "triples", "unlabelled", "bare"],
)
def test_data_of_another_form_is_refused(train, message):
    refused(message, train)


def test_a_topology_that_does_not_fit_is_refused_when_the_trainer_is_made():
    recipe = mx.recipes.leebert(topology=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"4 exits.*\[4, 4\]"):
        mx.Trainer(chain(), recipe)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("accumulation", 0),
        ("log_every", 0),
        ("max_steps", 0),
        ("checkpoint_every", 0),
        ("keep_checkpoints", 0),
        ("early_stopping", 0),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("omega_lr", 0.0),
        ("omega_lr", math.nan),
        ("warmup", -0.1),
        ("warmup", 1.0),
        ("warmup", math.nan),
        ("optimizer", "adam"),
        ("schedule", "exponential"),
        ("mixed_precision", "int8"),
        ("metric", "bleu"),
        ("clip", 0.0),
        ("clip", -1.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("momentum", 1.5),
        ("milestones", (3.0,)),
        ("milestones", (math.nan,)),
        ("milestones", 0.5),
        ("milestones", "0.5"),
        ("milestones", ("0.5",)),
        ("workers", -1),
        ("epochs", True),
        ("epochs", 2.0),
        ("epochs", "3"),
        ("epochs", None),
        ("epochs", math.nan),
        ("seed", 2**32),
        ("seed", -1),
        ("early_stopping", False),
        ("lr", "0.1"),
        ("lr", True),
        ("lr", None),
        ("lr", 1j),
        ("clip", math.inf),
        ("clip", "1"),
        ("warmup", "0.1"),
        ("compile", 1),
        ("progress", "no"),
        ("resume", None),
        ("overwrite", 0),
        ("optimizer", None),
        ("optimizer", ["sgd"]),
        ("schedule", 3),
        ("mixed_precision", False),
        ("trackers", "wandb"),
        ("trackers", (1,)),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        mx.TrainConfig(**{name: value})
    assert str(value).strip("(),[]'") in str(caught.value)


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    settings = mx.TrainConfig(
        epochs=np.int64(2),
        seed=np.uint8(3),
        lr=np.float32(0.5),
        clip=np.float64(2),
        compile=np.bool_(False),
        milestones=np.array([0.25, 0.5]),
        schedule="step",
        trackers=[],
        output=os.fspath(tmp_path),
    )
    values = vars(settings)
    assert json.loads(json.dumps(values)) == {**values, "milestones": [0.25, 0.5], "trackers": []}
    assert settings == mx.TrainConfig(
        epochs=2,
        seed=3,
        lr=0.5,
        clip=2.0,
        milestones=(0.25, 0.5),
        schedule="step",
        output=str(tmp_path),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"milestones": (0.1,)}, r"milestones=\(0.1,\) has no effect with schedule='linear'"),
        ({"momentum": 0.5}, "momentum=0.5 has no effect with optimizer='adamw'"),
        ({"checkpoint_every": 5}, "checkpoint_every=5 has no effect with output=None"),
    ],
)
def test_what_has_no_effect_is_named(changes, said):
    with pytest.warns(UserWarning, match=said):
        mx.TrainConfig(**changes)


@given(
    schedule=st.sampled_from(["linear", "cosine", "step", "constant"]),
    warmup=st.floats(0, 0.99),
    steps=st.integers(1, 300),
)
@hypothesis_settings(deadline=None, max_examples=80)
def test_rates_rise_once_and_then_never(schedule, warmup, steps):
    settings = config(lr=3.0, schedule=schedule, warmup=warmup)
    rates = [learning_rate(settings, step, steps) for step in range(steps)]
    assert all(0 < rate <= 3.0 for rate in rates)
    warm = int(warmup * steps)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


def test_half_precision_of_gpus_is_refused_without_one():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="fp16"):
        fit(chain(), "joint", config(mixed_precision="fp16"), Table())


def test_trackers_must_exist_and_need_a_folder(tmp_path):
    with pytest.raises(ValueError, match="output"):
        fit(chain(), "joint", config(trackers=("tensorboard",)), Table())
    with pytest.raises(ValueError, match="bogus"):
        fit(chain(), "joint", config(trackers=("bogus",), output=tmp_path), Table())
    assert not list(tmp_path.iterdir())


def test_resuming_needs_a_folder():
    with pytest.raises(ValueError, match="output"):
        mx.TrainConfig(resume=True)


def test_a_dataset_type_is_enough(tmp_path):
    """A set that has no more than __len__ and __getitem__ trains, and leaves a whole folder."""

    class Least(Dataset):
        def __init__(self):
            self.rows = Table()

        def __len__(self):
            return 40

        def __getitem__(self, row):
            return self.rows[row]

    model = chain()
    fit(model, "leebert", config(output=tmp_path), Least())
    assert {path.name for path in Path(tmp_path).iterdir()} == {
        "checkpoints",
        "history.json",
        "model",
        "run.json",
    }


class Tainted(Dataset):
    """Vectors of which some rows are NaN from a given fetch on."""

    def __init__(self, bad_rows):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 6, generator=generator)
        self.x[list(bad_rows)] = float("nan")
        self.labels = torch.arange(32) % 3

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.labels[row]


def _chain():
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    return mx.MultiExitModel(mx.wrap(nn.Sequential(*stages)), 3)


def test_a_broken_second_half_stops_before_the_weights_are_kept(tmp_path):
    _, second = split_epoch(32, 0, 0, True)
    config = mx.TrainConfig(
        epochs=1, batch_size=16, lr=1e-3, output=tmp_path, progress=False, log_every=50
    )
    trainer = mx.Trainer(_chain(), mx.recipes.leebert(cycle=1), config)
    with pytest.raises(FloatingPointError, match="loss weights"):
        trainer.fit(Tainted(second[:1]))
    assert not checkpoint.names(tmp_path)


def test_a_second_fit_starts_anew():
    config = mx.TrainConfig(epochs=1, batch_size=16, lr=1e-3, progress=False)
    trainer = mx.Trainer(_chain(), mx.recipes.joint(), config)
    with pytest.raises(FloatingPointError):
        trainer.fit(Tainted(range(32)))
    trainer = mx.Trainer(_chain(), mx.recipes.joint(), config)
    assert len(trainer.fit(Tainted([])).epochs) == 1
    assert len(trainer.fit(Tainted([])).epochs) == 1


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (lambda teaches, progress, shares: torch.ones(3), r"\[3, 3\]"),
        (lambda teaches, progress, shares: torch.full((3, 3), torch.nan), "finite"),
    ],
)
def test_malformed_coefficients_are_refused(factors, words):
    recipe = replace(mx.recipes.joint(), phases=(mx.Phase(coefficients=factors),))
    config = mx.TrainConfig(epochs=1, progress=False)
    with pytest.raises(ValueError, match=words):
        mx.Trainer(_chain(), recipe, config).fit(Tainted([]))


def _mislabelled():
    rows = Tainted([])
    rows.labels = rows.labels + 5
    return rows


@pytest.mark.parametrize(
    ("dev", "words"), [(Subset(Tainted([]), []), "empty"), (_mislabelled(), "label 5")]
)
def test_an_unusable_dev_set_is_refused_before_training(dev, words):
    model = _chain()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=words):
        mx.Trainer(model, mx.recipes.joint(), mx.TrainConfig(progress=False)).fit(Tainted([]), dev)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda model, recipe: (model, "joint"), "recipe must be .* got 'joint'"),
        (lambda model, recipe: (model, mx.recipes.joint), "recipe must be .* got function"),
        (lambda model, recipe: (model, mx.TrainConfig(), recipe), "recipe must be .* TrainConfig"),
        (lambda model, recipe: (model.backbone, recipe), "model must be .* got "),
        (lambda model, recipe: (model, recipe, {"epochs": 3}), "config must be .* got dict"),
    ],
)
def test_what_is_no_model_recipe_or_configuration_is_named(parts, message):
    with pytest.raises(ValueError, match=message):
        mx.Trainer(*parts(chain(), mx.recipes.joint()))
