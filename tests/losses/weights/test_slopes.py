"""The derivative of an optimiser's step by the gradient, against autograd."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from multiexit.losses.weights import hypergradient


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
