"""L2W-DEN: a network that weighs rows."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from helpers import Table, chain, config, fit
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.nn import functional as F

import multiexit as mx
from multiexit.losses import topology
from multiexit.losses.weights.rows import MetaWeights, WeightNet, allot
from multiexit.training.stepper import Stepper


@given(
    epsilon=st.floats(0.05, 1),
    over=st.sampled_from(["batch", "exits"]),
    exits=st.integers(1, 6),
    rows=st.integers(1, 9),
    seed=st.integers(0, 9999),
)
@settings(max_examples=40, deadline=None)
def test_rows_weigh_1_on_average_and_never_far_from_it(epsilon, over, exits, rows, seed):
    torch.manual_seed(seed)
    net = WeightNet(topology.none(exits), epsilon, over)
    w_MB = net.rows(5 * torch.rand(exits, rows)).detach()
    mean = w_MB.mean() if over == "batch" else w_MB.mean(0)
    torch.testing.assert_close(mean, torch.ones_like(mean))
    assert (w_MB - 1).abs().max() <= 2 * epsilon


def naive_allotment(logits_MBC, q):
    exits, rows, _ = logits_MBC.shape
    shares = [q**m / sum(q**k for k in range(exits)) for m in range(exits)]
    sure = logits_MBC.softmax(-1).amax(-1).tolist()
    given_to = [exits - 1] * rows
    left = list(range(rows))
    for m in range(exits - 1):
        surest = sorted(left, key=lambda row, m=m: -sure[m][row])[: math.floor(rows * shares[m])]
        for row in surest:
            given_to[row] = m
        left = [row for row in left if row not in surest]
    return given_to


@given(
    exits=st.integers(1, 6),
    rows=st.integers(1, 30),
    q=st.floats(0.1, 2),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_each_exit_is_given_the_surest_of_the_rows_that_are_left(exits, rows, q, seed):
    logits_MBC = torch.randn(exits, rows, 3, generator=torch.Generator().manual_seed(seed))
    shares = [rows * q**m / sum(q**k for k in range(exits)) for m in range(exits)]
    assume(all(abs(share - round(share)) > 1e-6 for share in shares[:-1]))
    assert allot(logits_MBC, q).tolist() == naive_allotment(logits_MBC, q)


def per_row(logits_MBC, labels_B):
    return torch.stack([F.cross_entropy(z_BC, labels_B, reduction="none") for z_BC in logits_MBC])


def test_a_network_in_double_precision_is_weighed_too():
    rows = Table()
    rows.x = rows.x.double()
    (step, *_) = fit(chain(3).double(), mx.recipe("l2w-den"), config(max_steps=1), rows).steps
    assert step["loss"] > 0


@pytest.mark.parametrize("over", ["batch", "exits"])
def test_the_weighting_net_descends_the_gradient_through_the_network_s_own_step(over):
    """One step of SGD, unrolled in double precision."""
    train, rate, epsilon, q = Table(24), 0.5, 0.3, 0.75
    one, two = (train.x[:16], train.labels[:16]), (train.x[16:], train.labels[16:])
    model = chain(3)
    still = copy.deepcopy(model).double()
    phase = mx.recipe("l2w-den", epsilon=epsilon, over=over, q=q).phases[0]
    plain = config(lr=rate, momentum=0.0)
    stepper = Stepper(model, phase, plain, Accelerator(cpu=True))
    weighting = stepper.omega.weights
    net = copy.deepcopy(weighting.net).double()
    stepper.omega.optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)
    before = copy.deepcopy(weighting.net)
    stepper.step([one], lambda: [two], 0, 1)
    stepper.close()

    theta = dict(still.named_parameters())
    own_MB = per_row(functional_call(still, theta, one[0].double()), one[1])
    t_BM = torch.tanh(net(own_MB.detach().T))
    mean = t_BM.mean() if over == "batch" else t_BM.mean(1, keepdim=True)
    w_MB = (1 + epsilon * (t_BM - mean)).T
    loss = (w_MB * own_MB).mean(1).sum()
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    stepped = {name: p - rate * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
    logits_MBC = functional_call(still, stepped, two[0].double())
    given_to = torch.tensor(naive_allotment(logits_MBC.detach(), q))
    assert set(given_to.tolist()) == {0, 1, 2}
    outer_MB = per_row(logits_MBC, two[1])
    outer = sum(outer_MB[m][given_to == m].mean() for m in range(3))
    wanted = torch.autograd.grad(outer, list(net.parameters()))

    for (name, p), value in zip(model.named_parameters(), stepped.values(), strict=True):
        torch.testing.assert_close(p.double(), value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: n)
    for after, was, g in zip(weighting.net.parameters(), before.parameters(), wanted, strict=True):
        moved = (was - after).double()
        assert g.abs().max() > 1e-6
        # The step is small beside the parameter it is taken from: single precision's grain.
        torch.testing.assert_close(moved, g, atol=2e-7, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, r"epsilon must be a number in \(0, 1\], got 0.0"),
        ({"epsilon": 1.1}, r"epsilon must be a number in \(0, 1\], got 1.1"),
        ({"over": "rows"}, "over must be 'batch' or 'exits', got 'rows'"),
        ({"q": 0.0}, "q must be above 0, got 0.0"),
    ],
)
def test_what_no_rows_weigh_by_is_refused(options, message):
    assert MetaWeights(epsilon=1.0).epsilon == 1
    with pytest.raises(ValueError, match=message):
        MetaWeights(**options)
