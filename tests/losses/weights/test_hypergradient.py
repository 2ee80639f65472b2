"""The hypergradient against autograd through an unrolled step, in float64.

Letters: M exits, B batch rows, C classes. Θ are the network's parameters, Ω the loss weights.
"""

import copy
import itertools
import json
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import (
    CLASSES,
    ROOT,
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    example,
    fit,
    images,
    saved_state,
    tensors,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

import multiexit as mx
from multiexit.losses import coefficients, gradients, weights
from multiexit.losses.weights import hypergradient
from multiexit.losses.weights.learners import Hyper, Learner, Plan
from multiexit.losses.weights.rows import MetaWeights, allot
from multiexit.training.stepper import Stepper

EXACT = {"rtol": 1e-7, "atol": 1e-13}
SGD = {"optimizer": "sgd", "lr": 0.3, "momentum": 0.0}
MOMENTUM = {"optimizer": "sgd", "lr": 0.3, "momentum": 0.9, "weight_decay": 0.1}
ADAMW = {"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.1}


@pytest.fixture
def double(monkeypatch) -> Iterator[None]:
    """Everything in float64, the losses too."""
    monkeypatch.setattr(Tensor, "float", lambda self: self)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The oracle: a step of Θ written out, and autograd twice through it


@contextmanager
def swapped(model: nn.Module, values: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, other tensors stand wherever these parameters stood."""
    taken = [
        (part, leaf, p)
        for part in model.modules()
        for leaf, p in list(part._parameters.items())
        if p in values
    ]
    for part, leaf, p in taken:
        del part._parameters[leaf]
        setattr(part, leaf, values[p])
    yield
    for part, leaf, p in taken:
        delattr(part, leaf)
        part._parameters[leaf] = p


def naive_losses(logits_MBC: Tensor, labels_B: Tensor, tau: float) -> Tensor:
    """Eqs. 1 and 2, a pair of exits at a time."""
    M, _, C = logits_MBC.shape
    rows = []
    for i in range(M):
        row = []
        for j in range(M):
            if C == 1:
                wanted_B = labels_B if i == j else logits_MBC[j, :, 0].detach()
                row.append(((logits_MBC[i, :, 0] - wanted_B) ** 2).mean())
            elif i == j:
                row.append(F.cross_entropy(logits_MBC[i], labels_B))
            else:
                teacher_BC = (logits_MBC[j].detach() / tau).softmax(-1)
                student_BC = (logits_MBC[i] / tau).softmax(-1).log()
                row.append(-(tau**2) * (teacher_BC * student_BC).sum(-1).mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def naive_rows(logits_MBC: Tensor, labels_B: Tensor) -> Tensor:
    return torch.stack(
        [F.cross_entropy(logits_BC, labels_B, reduction="none") for logits_BC in logits_MBC]
    )


def naive_weights(name: str, omega: list[Tensor], teaches_MM: Tensor) -> Tensor:
    """W of a parametrisation, from its parameters."""
    if name != "softmax":
        return omega[0] if name == "raw" else (-omega[0]).exp()
    own_M, pairs_MM = omega
    M, f = len(own_M), 0.1
    W = torch.ones(M, M).tolist()
    for i in range(M):
        W[i][i] = f + (1 - f) * M * own_M[i].exp() / own_M.exp().sum()
        teachers = [j for j in range(M) if teaches_MM[i, j]]
        for j in teachers:
            total = sum(pairs_MM[i, k].exp() for k in teachers)
            W[i][j] = f + (1 - f) * len(teachers) * pairs_MM[i, j].exp() / total
    return torch.stack([torch.stack([torch.as_tensor(w) for w in row]) for row in W])


def naive_step(
    settings: mx.TrainConfig, theta: dict, gradient: dict, state: dict, t: int
) -> dict[nn.Parameter, Tensor]:
    """Θ_t+1 of SGD or AdamW; `state` has the moments before the step."""
    lr, made = settings.lr, {}
    for p, value in theta.items():
        g, old = gradient[p], state.get(p, {})
        if settings.optimizer == "sgd":
            g = g + settings.weight_decay * value
            if old.get("momentum_buffer") is not None:
                g = settings.momentum * old["momentum_buffer"] + g
            made[p] = value - lr * g
            continue
        decay = settings.weight_decay if p.ndim > 1 else 0.0  # biases and norms are spared
        m = 0.9 * old.get("exp_avg", torch.zeros_like(value)) + 0.1 * g
        v = 0.999 * old.get("exp_avg_sq", torch.zeros_like(value)) + 0.001 * g**2
        m, v = m / (1 - 0.9**t), v / (1 - 0.999**t)
        root = torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0)
        made[p] = value - lr * decay * value - lr * m / (root + 1e-8)
    return made


def batch_of(rows: int, seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    if classes == 1:
        return x, torch.randn(rows, generator=generator)
    return x, torch.randint(classes, (rows,), generator=generator)


def picture(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, 8, 8, generator=generator)
    return x, torch.randint(CLASSES, (rows,), generator=generator)


def sentence(rows: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 30, (rows, 7), generator=generator)
    mask = (torch.arange(7) < torch.arange(rows)[:, None] % 4 + 4).long()
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


TEXT = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
    "initializer_range": 0.5,
}


def bert(dropout: float = 0.0, head: str | None = None) -> mx.MultiExitModel:
    """Three layers; the heads share the pooler."""
    torch.manual_seed(3)
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    shape = BertConfig(**TEXT, **drops)
    return mx.MultiExitModel(mx.wrap(BertModel(shape)), CLASSES, head=head)


def albert(dropout: float = 0.0) -> mx.MultiExitModel:
    """Three layers that are one."""
    torch.manual_seed(3)
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    shape = AlbertConfig(**TEXT, **drops, embedding_size=6)
    return mx.MultiExitModel(mx.wrap(AlbertModel(shape)), CLASSES)


def logits_of(model: mx.MultiExitModel, batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"]
    return model(batch[0]), batch[1]


def stepper_of(
    model: mx.MultiExitModel, learner: Learner, tau: float = 1.0, phase: Any = None, **changes
) -> Stepper:
    phase = phase or mx.recipes.leebert(tau, learner=learner).phases[0]
    return Stepper(model, phase, config(**changes), Accelerator())


def unrolled(
    stepper: Stepper,
    before: SimpleNamespace,
    micro: list,
    second: list,
    factors: Callable[[list[Tensor]], Tensor],
    outer: Callable[[Tensor, Tensor], Tensor],
    scale: float = 1.0,
    branch: Any = None,
) -> list[Tensor]:
    """The outer loss's gradient by Ω's parameters, by autograd through Θ's step.

    Args:
        before: the model, the optimiser's state, Ω and the random state before the step.
        micro, second: B1 and B2.
        factors: from Ω's parameters the W ∘ A of the loss terms.
        outer: the outer loss of logits and labels.
        scale: what Θ's gradient is multiplied by.
    """
    torch.set_rng_state(before.random)
    model = before.model
    theta = {p: p.detach().clone().requires_grad_() for p in before.parameters}
    omega = [w.detach().clone().requires_grad_() for w in before.omega]
    tau = stepper.tau
    with sdpa_kernel(SDPBackend.MATH):
        total = torch.zeros(())
        with swapped(model, theta):
            for batch in micro:
                total = total + factors(omega, *logits_of(model, batch), tau) / len(micro)
        found = torch.autograd.grad(
            total, list(theta.values()), create_graph=True, allow_unused=True
        )
        gradient = {
            p: torch.zeros_like(p) if g is None else scale * g
            for p, g in zip(theta, found, strict=True)
        }
        after = naive_step(stepper.config, theta, gradient, before.state, before.t)
        with swapped(model, after):
            paid = sum(outer(*logits_of(model, batch)) for batch in second) / len(second)
    made = torch.autograd.grad(paid, omega, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(omega, made, strict=True)]


def snapshot(stepper: Stepper, t: int) -> SimpleNamespace:
    """All that a step begins with, as copies; the state by the copied parameters."""
    model = copy.deepcopy(stepper.model)
    twin = dict(zip(stepper.model.parameters(), model.parameters(), strict=True))
    state = {twin[p]: copy.deepcopy(s) for p, s in stepper.optimizer.optimizer.state.items()}
    return SimpleNamespace(
        model=model,
        parameters=[twin[p] for p in stepper._parameters],
        state=state,
        omega=[w.detach().clone() for w in stepper.omega.weights.parameters()],
        random=torch.get_rng_state(),
        t=t,
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
        before, draws = snapshot(stepper, t + 1), iter(second)
        stepper.step(first, lambda draws=draws: next(draws), t, steps)
        now = torch.get_rng_state()
        wanted = unrolled(stepper, before, first, second, weighted(stepper, name), every_exit)
        assert torch.equal(torch.get_rng_state(), now), "the draws of looking back count"
        got = [p.grad for p in stepper.omega.weights.parameters()]
        scale = max(float(g.abs().max()) for g in wanted)
        assert scale > 0
        for mine, theirs in zip(got, wanted, strict=True):
            made.append(float((mine - theirs).abs().max()) / scale)
    return made


# The derivative of a step


def naive_adam(decoupled: bool) -> Callable[..., Tensor]:
    def step(theta, g, state, group, t):
        if not decoupled:
            g = g + group["weight_decay"] * theta
        beta1, beta2 = group["betas"]
        m = beta1 * state["exp_avg"] + (1 - beta1) * g
        v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g**2
        root = (v / (1 - beta2**t)).sqrt()
        shrunk = theta * (1 - group["lr"] * group["weight_decay"] * decoupled)
        return shrunk - group["lr"] * m / (1 - beta1**t) / (root + group["eps"])

    return step


def naive_sgd(theta, g, state, group, t):
    g = g + group["weight_decay"] * theta
    if state.get("momentum_buffer") is not None:
        g = group["momentum"] * state["momentum_buffer"] + g
    return theta - group["lr"] * g


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}, naive_sgd),
    "sgd, momentum, decay": (
        torch.optim.SGD,
        {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.2},
        naive_sgd,
    ),
    "adam": (torch.optim.Adam, {"lr": 0.1}, naive_adam(False)),
    "adam, large eps": (torch.optim.Adam, {"lr": 0.1, "eps": 0.3}, naive_adam(False)),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.2}, naive_adam(True)),
    "adamw, fused": (
        torch.optim.AdamW,
        {"lr": 0.1, "weight_decay": 0.2, "betas": (0.8, 0.95), "eps": 1e-3, "fused": True},
        naive_adam(True),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_derivative_of_a_step_is_autograds(name):
    kind, options, naive = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(7, generator=generator, dtype=torch.float64))
    optimizer = kind([p], **options)
    for t in range(1, 6):
        g = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
        theta = p.detach().clone()
        state = copy.deepcopy(optimizer.state[p]) or {
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
        after = naive(theta, g, state, optimizer.param_groups[0], t)
        (wanted,) = torch.autograd.grad(after.sum(), g)
        p.grad = g.detach().clone()
        optimizer.step()
        torch.testing.assert_close(p.detach(), after.detach(), rtol=1e-10, atol=1e-12)
        (slope,) = hypergradient.slopes(optimizer)
        torch.testing.assert_close(-slope, wanted, rtol=1e-9, atol=1e-13)
        (halved,) = hypergradient.slopes(optimizer, 0.5)
        torch.testing.assert_close(halved, slope / 2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
        (torch.optim.SGD, {"lr": 0.1, "maximize": True}),
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.2}),
        (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
        (torch.optim.AdamW, {"lr": 0.1, "maximize": True}),
        (torch.optim.RMSprop, {"lr": 0.1}),
    ],
)
def test_a_step_whose_derivative_is_not_known_is_refused(kind, options):
    p = nn.Parameter(torch.randn(3))
    optimizer = kind([p], **options)
    p.grad = torch.randn(3)
    optimizer.step()
    with pytest.raises(ValueError, match="hypergradient"):
        hypergradient.slopes(optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_slopes_are_finite_where_the_gradient_is_zero(kind):
    idle, still, half = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = kind([idle, still, half], lr=0.1)
    for _ in range(3):
        still.grad, half.grad = torch.zeros(2), torch.tensor([0.0, 1e-30])
        optimizer.step()
        found = hypergradient.slopes(optimizer)
        assert all(slope.isfinite().all() for slope in found)
        assert torch.equal(found[0], torch.zeros(2)), "what has no gradient does not step"


# Ω's gradient, through the trainer's own step


@pytest.mark.parametrize("name", weights.PARAMETRIZATIONS)
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
    stepper.step([first], lambda: second, 0, 1)
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
        stepper.step([batch_of(5, t)], lambda t=t: batch_of(5, 100 + t), t, 7)
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
    gone_by = stepper.step([batch_of(5, 0)], lambda: batch_of(5, 1), 0, 1)
    ((terms_MM, _),) = seen["pairs"]
    torch.testing.assert_close(terms_MM, gone_by.L_MM, rtol=1e-12, atol=0)


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
        before, draws = snapshot(stepper, t + 1), iter(second)
        stepper.step(first, lambda draws=draws: next(draws), t, 3)
        wanted = unrolled(stepper, before, first, second, total, outer)
        largest = max(float(g.abs().max()) for g in wanted)
        assert largest > 0
        for p, g in zip(stepper.omega.weights.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-7, atol=1e-9 * largest)


# What looking back leaves as it was


@dataclass(frozen=True)
class Idle(Learner):
    """Weights that stay 1, and a plan that costs something all the same."""

    hyper: float = 0.0
    second: float = 0.0
    halves: bool = True

    @property
    def splits(self) -> bool:
        return self.halves

    @property
    def learns(self) -> bool:
        return False

    def weights(self, teaches_MM, seed):
        return weights.FixedWeights(torch.ones(teaches_MM.shape))

    def plan(self, step, rho):
        return Plan(second=self.second, hyper=self.hyper)


def trained(model: mx.MultiExitModel, learner: Learner, rows: Any, **changes: Any) -> dict:
    fit(model, mx.recipes.leebert(2.0, learner=learner), config(**changes), rows)
    return tensors(model)


@pytest.mark.parametrize("changes", [SGD, ADAMW, {**ADAMW, "accumulation": 2, "clip": 0.1}])
def test_looking_back_leaves_the_run_as_it_is(changes):
    """Without dropout, a run that looks back in vain is the uniform one, to the last bit."""
    plain = trained(chain(), weights.Uniform(), Table(), **changes)
    assert_same(trained(chain(), Idle(hyper=1.0, halves=False), Table(), **changes), plain)


@pytest.mark.parametrize("changes", [SGD, ADAMW, {**ADAMW, "accumulation": 2}])
def test_looking_back_draws_no_random_number(changes):
    """Dropout draws for the pass on B2 as BLO's does, and for nothing else.

    Running statistics of BatchNorm are among what is compared.
    """
    first_order = trained(convnet(0.3), Idle(second=1.0), images(), **changes)
    assert_same(trained(convnet(0.3), Idle(hyper=1.0), images(), **changes), first_order)


@pytest.mark.parametrize("make", [bert, albert, convnet])
def test_the_parameters_stay_the_same_objects(make):
    model = make()
    places = [
        (part, leaf, id(p)) for part in model.modules() for leaf, p in part._parameters.items()
    ]
    keys = {part: set(vars(part)) for part in model.modules()}
    batch = picture if make is convnet else sentence
    stepper = stepper_of(model, Hyper(), **ADAMW)
    model.zero_grad()
    for t in range(2):
        stepper.step([batch(4, t)], lambda t=t: batch(4, 10 + t), t, 2)
    stepper.close()
    assert all(id(part._parameters[leaf]) == place for part, leaf, place in places)
    for part, before in keys.items():
        assert set(vars(part)) == before
    for p in model.parameters():
        assert isinstance(p, nn.Parameter)
        assert p.requires_grad
        assert p.is_leaf
        assert p.grad is None


def test_running_statistics_move_once_a_step():
    one, other = convnet(0.0), convnet(0.0)
    for learner, model in ((Hyper(), one), (weights.Uniform(), other)):
        stepper = stepper_of(model, learner, **SGD)
        stepper.step([picture(6, 0)], lambda: picture(6, 1), 0, 2)
    before = tensors(one)
    assert_same(before, tensors(other))
    assert any("running_mean" in name for name in before)
    assert all(int(v) == 1 for name, v in before.items() if "num_batches" in name)


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


def test_in_float32_the_first_step_of_adam_is_right_too():
    """Its derivative is nearly 0 (the step is lr along the sign): no rounding may drown it."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(1000, generator=generator, dtype=torch.float64) * 1e-3
    found = {}
    for dtype in (torch.float32, torch.float64):
        p = nn.Parameter(torch.zeros(1000, dtype=dtype))
        optimizer = torch.optim.AdamW([p], lr=1.0, fused=True)
        p.grad = g.to(dtype)
        optimizer.step()
        (found[dtype],) = hypergradient.slopes(optimizer)
    wanted = 1e-8 / (g.abs() + 1e-8) ** 2
    torch.testing.assert_close(found[torch.float64], wanted, rtol=1e-6, atol=0)
    # 1e-7 is what float32 can do for a difference from 1; the slope is that times 1 / |g|.
    allowed = 4e-7 / g.abs()
    assert ((found[torch.float32].double() - wanted).abs() <= allowed).all()


# What else a phase may do to the gradient


@pytest.mark.parametrize(
    "changed", [{"surgery": gradients.Conflictless()}, {"branch": gradients.equilibrium}]
)
def test_what_changes_the_steps_gradient_is_refused(changed):
    """Then Θ doesn't step along Σ F∘∇L, and the formula would say something else."""
    for learner in (Hyper(), MetaWeights()):
        with pytest.raises(ValueError, match="surgery"):
            mx.Phase(topology="lae", learner=learner, **changed)


def scaled_stepper(scale: float, **changes: Any) -> Stepper:
    """As fp16 trains: losses are scaled up before the backward pass."""
    accelerator = Accelerator()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    accelerator.scaler = scaler
    phase = mx.recipes.leebert(learner=Hyper("raw")).phases[0]
    stepper = Stepper(chain(3), phase, config(**changes), accelerator)
    # accelerate does this before it clips, but only where fp16 itself is on
    accelerator.unscale_gradients = lambda: scaler.unscale_(stepper.optimizer.optimizer)
    return stepper


@pytest.mark.parametrize("changes", [SGD, {**SGD, "clip": 0.1}, ADAMW, {**ADAMW, "clip": 0.1}])
def test_a_loss_scale_changes_nothing(changes):
    plain = stepper_of(chain(3), Hyper("raw"), **changes)
    scaled = scaled_stepper(2.0**12, **changes)
    for t in range(3):
        for stepper in (plain, scaled):
            stepper.step([batch_of(5, t)], lambda t=t: batch_of(5, 50 + t), t, 3)
        mine, theirs = (s.omega.weights.W_MM.grad for s in (scaled, plain))
        largest = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("where", ["the step", "the pass on B2"])
@pytest.mark.parametrize("changes", [SGD, ADAMW, {**ADAMW, "clip": 0.1}])
def test_an_overflow_leaves_omega_alone(changes, where):
    stepper = scaled_stepper(2.0**12, **changes)
    passes = []

    def overflow(module, args):
        passes.append(torch.is_grad_enabled())
        if len(passes) == 1 + (where == "the pass on B2"):
            bias.register_hook(lambda g: g * torch.inf)

    bias = stepper.model.heads[0].linear.bias
    stepper._pass.register_forward_pre_hook(overflow)
    stepper.step([batch_of(5, 0)], lambda: batch_of(5, 1), 0, 3)
    assert passes[0]
    assert torch.equal(stepper.omega.value(), torch.ones(3, 3))
    assert all(p.isfinite().all() for p in stepper.model.parameters())


@pytest.mark.parametrize("make", [bert, albert])
def test_the_step_and_its_look_back_use_one_attention_kernel(make):
    """On a GPU a fused kernel draws its dropout otherwise than the plain one."""
    stepper, enabled = stepper_of(make(0.1), Hyper(), **ADAMW), []

    def note(module, args):
        kernels = torch.backends.cuda
        enabled.append((kernels.flash_sdp_enabled(), kernels.mem_efficient_sdp_enabled()))

    stepper._pass.register_forward_pre_hook(note)
    stepper.step([sentence(4, 0)], lambda: sentence(4, 1), 0, 1)
    stepping, _, looking_back = enabled
    assert stepping == looking_back


@pytest.mark.parametrize("make", [bert, albert])
def test_in_bfloat16(make):
    found = {}
    for precision in ("no", "bf16"):
        history = fit(
            make(),
            mx.recipes.leebert(learner=Hyper("raw")),
            config(optimizer="sgd", lr=0.05, momentum=0.0, mixed_precision=precision, max_steps=1),
            Sentences(),
        )
        assert len(history.weights) >= 1
        found[precision] = torch.tensor(history.steps[-1]["loss"])
    assert found["bf16"] == pytest.approx(float(found["no"]), rel=0.05)


class Sentences(torch.utils.data.Dataset):
    """Sixteen sentences."""

    def __init__(self):
        self.rows = sentence(16, 0)
        self.labels = self.rows["labels"]

    def __len__(self):
        return 16

    def __getitem__(self, row):
        return {name: value[row] for name, value in self.rows.items()}


# A stopped run


@pytest.mark.parametrize("recipe", ["leebert-hyper", "l2w-den"])
@pytest.mark.parametrize("changes", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_stopped_run_ends_as_if_it_never_was(recipe, changes, tmp_path):
    method = mx.recipe(recipe, cycle=3)
    settings = {**changes, "epochs": 3, "checkpoint_every": 2}
    model, watched = convnet(), Watched(images())
    whole = fit(model, method, config(output=tmp_path / "whole", **settings), watched)
    for stops in ((5,), (watched.reads // 2, 1), (watched.reads - 2,)):
        folder = tmp_path / str(stops)
        for stop in stops:
            mine = convnet(seed=7) if folder.exists() else convnet()
            with pytest.raises(Stopped):
                fit(
                    mine,
                    method,
                    config(output=folder, resume=True, **settings),
                    Watched(images(), stop),
                )
        torch.manual_seed(12345)
        mine = convnet(seed=7)
        again = fit(mine, method, config(output=folder, resume=True, **settings), images())
        assert_same(tensors(mine), tensors(model))
        assert again.steps == whole.steps
        assert not differences(saved_state(folder), saved_state(tmp_path / "whole"))


def test_its_weights_do_move(tmp_path):
    """The run above learns something: Ω is not what it was."""
    history = fit(chain(), "leebert-hyper", config(epochs=4), Table())
    (_, first), (_, last) = history.weights[0], history.weights[-1]
    assert first != last


# A problem whose answer is known


@pytest.fixture(scope="module")
def toy() -> dict[str, Any]:
    """The example's functions."""
    return runpy.run_path(str(ROOT / "examples" / "hypergradient_toy.py"))


@pytest.mark.parametrize("case", ["random", "sure"])
def test_it_finds_the_teacher_that_is_worth_imitating(toy, case):
    found = toy["run"](case, Hyper(), seed=0, steps=80)
    plain = toy["run"](case, weights.Uniform(), seed=0, steps=80)
    assert found["W good"] > 1.4
    assert found["W bad"] < 0.6
    assert found["CE above least"] < plain["CE above least"]


def test_first_order_learners_follow_the_smaller_term(toy):
    """Whether that is the good teacher's or the misleading one's."""
    for learner in (weights.SLO(), weights.CLO2()):
        assert toy["run"]("random", learner, seed=0, steps=80)["W good"] > 1.7
        found = toy["run"]("sure", learner, seed=0, steps=80)
        assert found["term bad"] < found["term good"]
        assert found["W good"] < 0.3
        assert found["CE above least"] > 0.04


def test_the_example_prints_its_table(tmp_path):
    words = ("--seeds", 1, "--steps", 2, "--output", tmp_path / "toy.json")
    out = example("examples/hypergradient_toy.py", *words)
    assert len(out.strip().splitlines()) == 2 + 2 * 7
    written = json.loads((tmp_path / "toy.json").read_text())
    assert [row["learner"] for row in written["rows"][:3]] == ["known", "Uniform", "Hyper"]
    assert written["about"].keys() == {"command", "machine", "versions"}
