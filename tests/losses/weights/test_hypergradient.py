"""Ω's gradient through the trainer's own step, in float64, against autograd through it unrolled.

Letters: M exits, B batch rows, C classes. Θ are the network's parameters, Ω the loss weights.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from helpers import Table, chain, config, convnet, fit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import BertConfig, BertModel
from unrolled import (
    ADAMW,
    MOMENTUM,
    SGD,
    albert,
    batch_of,
    bert,
    logits_of,
    naive_losses,
    naive_weights,
    picture,
    sentence,
    snapshot,
    stepper_of,
    unrolled,
)

import multiexit as mx
from multiexit.losses import coefficients, weights
from multiexit.losses.weights.learners import Hyper
from multiexit.losses.weights.names import ASCENDING
from multiexit.losses.weights.rows import MetaWeights, allot
from multiexit.training.stepper import Stepper

EXACT = {"rtol": 1e-7, "atol": 1e-13}


@pytest.fixture
def double(monkeypatch) -> Iterator[None]:
    """Everything in float64, the losses too."""
    monkeypatch.setattr(Tensor, "float", lambda self: self)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def naive_rows(logits_MBC: Tensor, labels_B: Tensor) -> Tensor:
    return torch.stack(
        [F.cross_entropy(logits_BC, labels_B, reduction="none") for logits_BC in logits_MBC]
    )


def weighted(stepper: Stepper, name: str) -> Callable[..., Tensor]:
    """Σ W ∘ A ∘ L of a batch, naively."""

    def total(omega: list[Tensor], logits_MBC: Tensor, labels_B: Tensor, tau: float) -> Tensor:
        W_MM = naive_weights(name, omega, stepper._teaches_MM)
        return (W_MM * stepper.A_MM * naive_losses(logits_MBC, labels_B, tau)).sum()

    return total


def every_exit(logits_MBC: Tensor, labels_B: Tensor) -> Tensor:
    if logits_MBC.shape[-1] == 1:
        return sum(((logits_B1[:, 0] - labels_B) ** 2).mean() for logits_B1 in logits_MBC)
    return sum(F.cross_entropy(logits_BC, labels_B) for logits_BC in logits_MBC)


def errors(stepper: Stepper, make: Callable, steps: int, name: str, micro: int = 1) -> list[float]:
    """Train some steps; at each compare Ω's gradient with the oracle. The relative errors."""
    made = []
    for t in range(steps):
        first = [make(100 * t + index) for index in range(micro)]
        second = [make(100 * t + 50 + index) for index in range(micro)]
        before = snapshot(stepper, t + 1)
        stepper.step(first, lambda second=second: second, t, steps)
        now = torch.get_rng_state()
        wanted = unrolled(stepper, before, first, second, weighted(stepper, name), every_exit)
        assert torch.equal(torch.get_rng_state(), now), "the draws of looking back count"
        got = [p.grad for p in stepper.omega.weights.parameters()]
        scale = max(float(g.abs().max()) for g in wanted)
        assert scale > 0
        for mine, theirs in zip(got, wanted, strict=True):
            made.append(float((mine - theirs).abs().max()) / scale)
    return made


@pytest.mark.parametrize("name", [n for n in weights.PARAMETRIZATIONS if n not in ASCENDING])
@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("changes", [SGD, MOMENTUM, ADAMW], ids=["sgd", "momentum", "adamw"])
def test_omega_gets_the_gradient_through_the_step(double, name, tau, changes):
    stepper = stepper_of(chain(3), Hyper(name), tau, **changes)
    found = errors(stepper, lambda seed: batch_of(5, seed), 4, name)
    assert max(found) < 1e-8, found


@pytest.mark.parametrize("made", ["none", "last", "lle"])
def test_on_other_topologies(double, made):
    phase = replace(mx.recipes.leebert(2.0, learner=Hyper()).phases[0], topology=made)
    stepper = stepper_of(chain(4), Hyper(), phase=phase, **ADAMW)
    assert max(errors(stepper, lambda seed: batch_of(5, seed), 3, "softmax")) < 1e-8


def test_on_regression(double):
    stepper = stepper_of(chain(3, classes=1), Hyper(), **ADAMW)
    assert max(errors(stepper, lambda seed: batch_of(5, seed, 1), 3, "softmax")) < 1e-8


def test_where_only_teachers_count(double):
    """The outer loss reads labels though Θ's doesn't."""
    lae = mx.recipes.leebert(learner=Hyper()).phases[0]
    phase = replace(lae, coefficients=coefficients.teachers_only)
    stepper = stepper_of(chain(3), Hyper(), phase=phase, **ADAMW)
    assert max(errors(stepper, lambda seed: batch_of(5, seed), 3, "softmax")) < 1e-8


def test_over_accumulated_batches(double):
    stepper = stepper_of(chain(3, dropout=0.3), Hyper(), 4.0, accumulation=2, **ADAMW)
    assert max(errors(stepper, lambda seed: batch_of(5, seed), 3, "softmax", micro=2)) < 1e-8


@pytest.mark.parametrize("changes", [MOMENTUM, ADAMW], ids=["momentum", "adamw"])
def test_with_the_dropout_of_the_step(double, changes):
    stepper = stepper_of(chain(3, dropout=0.5), Hyper(), 4.0, **changes)
    assert max(errors(stepper, lambda seed: batch_of(6, seed), 4, "softmax")) < 1e-8


@pytest.mark.parametrize("changes", [MOMENTUM, ADAMW], ids=["momentum", "adamw"])
def test_with_batch_statistics(double, changes):
    stepper = stepper_of(convnet(dropout=0.2), Hyper(), 4.0, **changes)
    assert max(errors(stepper, lambda seed: picture(5, seed), 3, "softmax")) < 1e-8


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("make", [bert, albert])
def test_with_attention_and_shared_modules(double, make, dropout):
    stepper = stepper_of(make(dropout), Hyper(), **{**ADAMW, "lr": 0.01})
    assert max(errors(stepper, lambda seed: sentence(4, seed), 3, "softmax")) < 1e-7


class OldTanh(torch.autograd.Function):
    """Written as before torch had a forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


class OnceTanh(OldTanh):
    backward = staticmethod(once_differentiable(OldTanh.backward))


class Kernel(OldTanh):
    """Its backward is no part of a graph, as that of a kernel of one's own."""

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(OldTanh.backward(ctx, grad).detach().numpy())


class Tenth(OldTanh):
    @staticmethod
    def backward(ctx, grad):
        return 0.1 * OldTanh.backward(ctx, grad)


class By(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class Hooked(nn.Module):
    """As `Tenth`, by a hook on a tensor."""

    def forward(self, x):
        y = x.tanh()
        if y.requires_grad:
            y.register_hook(lambda grad: 0.1 * grad)
        return y


class Normed(nn.Module):
    """By a size that is taken as constant."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x):
        with self.mode():
            size = x.abs().amax(-1, keepdim=True)
        return x / size.detach()


def by(part) -> mx.MultiExitModel:
    torch.manual_seed(1)
    stages = [nn.Sequential(nn.Linear(6, 6), part, nn.Dropout(0.2)) for _ in range(3)]
    return mx.MultiExitModel(mx.wrap(nn.Sequential(*stages)), 3)


def test_where_a_network_has_no_forward_mode(double):
    stepper = stepper_of(by(By(OldTanh)), Hyper(), **ADAMW)
    assert max(errors(stepper, lambda seed: batch_of(5, seed), 3, "softmax")) < 1e-8


@pytest.mark.parametrize(
    ("part", "other"),
    [(Hooked(), By(Tenth)), (Normed(torch.no_grad), Normed(torch.enable_grad))],
    ids=["hook", "no_grad"],
)
def test_what_only_goes_backward_counts(double, part, other):
    """Hooks and `no_grad` are for training, not for the forward mode."""
    found = []
    for each in (part, other):
        run = config(max_steps=4, omega_lr=0.1)
        history = fit(by(each), mx.recipe("leebert-hyper", cycle=1), run, Table(24))
        found.append(torch.tensor([W_MM for _, W_MM in history.weights]))
    torch.testing.assert_close(*found, **EXACT)
    assert (found[0][0] - found[0][-1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["leebert-hyper", "l2w-den"])
def test_a_network_that_cannot_be_differentiated_twice_is_refused_before_work(name):
    model = by(By(OnceTanh))
    mx.Trainer(model, mx.recipe("leebert-clo-v1"))
    with pytest.raises(ValueError, match=f"'{name}' differentiates a step"):
        mx.Trainer(model, mx.recipe(name))


@pytest.mark.parametrize("name", ["leebert-hyper", "l2w-den"])
def test_what_would_be_another_derivative_than_that_of_training_is_refused_at_once(name):
    trainer = mx.Trainer(by(By(Kernel)), mx.recipe(name, cycle=1), config(max_steps=50))
    with pytest.raises(ValueError, match=r"one backward pass gives .*, two give"):
        trainer.fit(Table(48))
    assert not trainer.history.weights


@pytest.mark.parametrize("name", ["leebert-hyper", "romebert"])
def test_checkpoints_that_know_one_backward_are_refused_before_work(name):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = BertModel(BertConfig(vocab_size=32, intermediate_size=32, **sizes))
    network.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        mx.Trainer(mx.MultiExitModel(mx.wrap(network), 3), mx.recipe(name))


def test_with_a_frozen_trunk(double):
    phase = replace(mx.recipes.leebert(learner=Hyper()).phases[0], train="heads")
    stepper = stepper_of(chain(3, dropout=0.2), Hyper(), phase=phase, **ADAMW)
    assert max(errors(stepper, lambda seed: batch_of(5, seed), 3, "softmax")) < 1e-8


def test_a_clipped_step_counts_as_scaled(double):
    """The factor that bounds the norm is taken as a constant."""
    model, clip = chain(3), 0.05
    stepper = stepper_of(model, Hyper("raw"), **SGD, clip=clip)
    first, second = batch_of(5, 0), batch_of(5, 1)
    before = snapshot(stepper, 1)
    stepper.step([first], lambda: [second], 0, 1)
    L_MM = naive_losses(*logits_of(before.model, first), 1.0)
    g = torch.autograd.grad((stepper.A_MM * L_MM).sum(), before.parameters)
    norm = torch.stack([part.square().sum() for part in g]).sum().sqrt()
    assert norm > 2 * clip
    (wanted,) = unrolled(
        stepper,
        before,
        [first],
        [second],
        weighted(stepper, "raw"),
        every_exit,
        scale=float(clip / (norm + 1e-6)),
    )
    torch.testing.assert_close(stepper.omega.weights.W_MM.grad, wanted, **EXACT)


def test_only_every_so_many_steps(double):
    stepper = stepper_of(chain(3), Hyper(cycle=3), **ADAMW)
    values = [stepper.omega.value()]
    for t in range(7):
        stepper.step([batch_of(5, t)], lambda t=t: [batch_of(5, 100 + t)], t, 7)
        values.append(stepper.omega.value())
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(values)]
    assert moved == [False, False, True, False, False, True, False]


def test_the_terms_that_rows_are_weighed_with_are_those_of_the_step(double):
    """What a look back calls the terms is what the step computed, dropout and all."""
    seen = {}
    stepper = stepper_of(chain(3, dropout=0.4), Hyper(), **ADAMW)
    look_back = stepper._hypergradients

    def watch(look, second):
        seen["pairs"] = look_back(look, second)
        return seen["pairs"]

    stepper._hypergradients = watch
    gone_by = stepper.step([batch_of(5, 0)], lambda: [batch_of(5, 1)], 0, 1)
    ((terms_MM, _),) = seen["pairs"]
    torch.testing.assert_close(terms_MM, gone_by.L_MM, rtol=1e-12, atol=0)


# Where gradients are zero


def test_parameters_that_get_no_gradient(double):
    """Dead units, embeddings of words that don't occur, and a part that takes no part."""
    model = bert()
    model.backbone.spare = nn.Parameter(torch.ones(3))
    with torch.no_grad():  # no row gets through this head
        model.heads[0].linear.weight.zero_()
    stepper = stepper_of(model, Hyper(), **ADAMW)
    assert max(errors(stepper, lambda seed: sentence(4, seed), 3, "softmax")) < 1e-7
    assert stepper.omega.value().isfinite().all()


# Weights of rows


@pytest.mark.parametrize("over", ["batch", "exits"])
@pytest.mark.parametrize("changes", [MOMENTUM, ADAMW], ids=["momentum", "adamw"])
def test_the_weighting_network_gets_the_gradient_through_the_step(double, over, changes):
    learner = MetaWeights(over=over)
    phase = replace(mx.recipes.l2w_den().phases[0], learner=learner)
    stepper = stepper_of(chain(3, dropout=0.2), learner, phase=phase, accumulation=2, **changes)

    def total(omega: list[Tensor], logits_MBC: Tensor, labels_B: Tensor, tau: float) -> Tensor:
        w1, b1, w2, b2 = omega
        own_MB = naive_rows(logits_MBC, labels_B)
        t_BM = ((own_MB.detach().T @ w1.T + b1).relu() @ w2.T + b2).tanh()
        mean = t_BM.mean() if over == "batch" else t_BM.mean(1, keepdim=True)
        return ((1 + 0.3 * (t_BM - mean)).T * own_MB).mean(1).sum()

    def outer(logits_MBC: Tensor, labels_B: Tensor) -> Tensor:
        own_MB = naive_rows(logits_MBC, labels_B)
        exit_B = allot(logits_MBC.detach(), 0.75)
        paid = [own_MB[m, exit_B == m] for m in range(len(own_MB))]
        return sum(some.mean() for some in paid if len(some))

    for t in range(3):
        first, second = ([batch_of(8, 100 * t + s) for s in some] for some in ((0, 1), (2, 3)))
        before = snapshot(stepper, t + 1)
        stepper.step(first, lambda second=second: second, t, 3)
        wanted = unrolled(stepper, before, first, second, total, outer)
        largest = max(float(g.abs().max()) for g in wanted)
        assert largest > 0
        for p, g in zip(stepper.omega.weights.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-7, atol=1e-9 * largest)
