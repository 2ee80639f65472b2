"""Ω: its parametrisations, its learners, and one step of it against autograd."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from helpers import chain
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit import testing
from multiexit.losses import coefficients, topology, weights
from multiexit.losses.weights.learners import (
    BLO,
    CLO1,
    CLO2,
    SLO,
    Hyper,
    Learner,
    Plan,
    Random,
    Uniform,
)
from multiexit.losses.weights.names import ASCENDING
from multiexit.losses.weights.rows import MetaWeights
from multiexit.losses.weights.simulated import SimulatedExits
from multiexit.losses.weights.state import Omega

DESCENDING = [name for name in weights.PARAMETRIZATIONS if name not in ASCENDING]
LEARNERS = [
    Uniform(),
    Random(),
    SLO(),
    BLO(),
    CLO1(),
    CLO1(rho=0.0),
    CLO2(),
    CLO2(cycle=1),
    CLO2(rho=1.0, cycle=3, in_cycle=False),
    Hyper(cycle=3),
    MetaWeights(),
    MetaWeights(over="exits", cycle=2),
    SimulatedExits(),
    *(kind(parametrization=name) for kind in (SLO, CLO2) for name in weights.PARAMETRIZATIONS),
    *(Hyper(parametrization=name) for name in DESCENDING),
]
TOPOLOGIES = st.builds(
    lambda M, bits: torch.tensor(
        [[i != j and bits >> (i * M + j) & 1 == 1 for j in range(M)] for i in range(M)]
    ),
    st.integers(1, 6),
    st.integers(0, 2**36 - 1),
)


@pytest.mark.parametrize("learner", LEARNERS, ids=repr)
def test_conforms(learner):
    testing.check_learner(learner)


# Parametrisations


@pytest.mark.parametrize("name", weights.PARAMETRIZATIONS)
@pytest.mark.parametrize("made", topology.NAMES)
@pytest.mark.parametrize("M", [1, 2, 5, 27])
def test_uniform_start_gives_one_to_every_term(name, made, M):
    teaches_MM = topology.resolve(made, M)
    W_MM = weights.PARAMETRIZATIONS[name](teaches_MM)()
    counts_MM = coefficients.summed(teaches_MM, 0.0, ()) != 0
    torch.testing.assert_close(W_MM[counts_MM], torch.ones(int(counts_MM.sum())))


@given(TOPOLOGIES, st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.7]))
@settings(max_examples=60, deadline=None)
def test_softmax_weights_keep_their_sums_and_their_floor(teaches_MM, seed, floor):
    made, M = weights.SoftmaxWeights(teaches_MM, floor), len(teaches_MM)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(4 * torch.randn(parameter.shape, generator=generator))
        W_MM = made()
    assert torch.isfinite(W_MM).all()
    assert float(W_MM.diagonal().sum()) == pytest.approx(M, rel=1e-5)
    counts_MM = teaches_MM | torch.eye(M, dtype=torch.bool)
    assert float(W_MM[counts_MM].min()) >= floor - 1e-6
    for i in range(M):
        teachers = teaches_MM[i]
        assert float(W_MM[i][teachers].sum()) == pytest.approx(int(teachers.sum()), rel=1e-5)
        if teachers.any():
            raw = made.pairs_MM[i].detach()[teachers].double().exp()
            wanted = floor + (1 - floor) * int(teachers.sum()) * raw / raw.sum()
            torch.testing.assert_close(W_MM[i][teachers].double(), wanted, rtol=1e-4, atol=1e-6)


def test_a_floor_must_leave_room():
    for floor in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"floor must be a number in \[0, 1\)"):
            weights.SoftmaxWeights(topology.lae(3), floor)


def test_raw_weights_only_fall_even_below_zero():
    omega = Omega(SLO("raw"), topology.lae(3), lr=0.3, rho=1.0, seed=0)
    A_MM, path = coefficients.summed(topology.lae(3), 0.0, ()), []
    for _ in range(8):
        path.append(omega.value())
        omega.update(Plan(stepping=1.0), A_MM, {"stepping": torch.rand(3, 3) + 0.1})
    assert (torch.stack(path).diff(dim=0) < 0).all()
    assert (path[-1] < 0).all()


def test_uncertainty_settles_at_one_over_the_loss():
    teaches_MM = topology.lae(3)
    A_MM, L_MM = coefficients.summed(teaches_MM, 0.0, ()), torch.rand(3, 3) * 2 + 0.2
    omega = Omega(SLO("uncertainty"), teaches_MM, lr=0.05, rho=1.0, seed=0)
    for _ in range(600):
        omega.update(Plan(stepping=1.0), A_MM, {"stepping": L_MM})
    torch.testing.assert_close(omega.value(), 1 / L_MM, rtol=0.02, atol=0)


def test_fixed_weights_refuse_nan():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            weights.FixedWeights(torch.tensor([[1.0, bad], [1.0, 1.0]]))


def test_an_unknown_parametrization_is_named():
    with pytest.raises(ValueError, match=r"'sigmoid'.*softmax"):
        SLO(parametrization="sigmoid")


def test_what_ascends_refuses_hypergradients():
    for name in ASCENDING:
        with pytest.raises(ValueError, match=f"parametrization='{name}' ascends the loss, and Hyp"):
            Hyper(parametrization=name)


# Learners


def test_uniform_is_one_and_stays():
    assert torch.equal(Uniform().weights(topology.lae(4), 3)(), torch.ones(4, 4))
    assert not any(any(Uniform().plan(step, 0.5)) for step in range(9))
    assert not Uniform().learns
    assert not Uniform().splits


@given(TOPOLOGIES, st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_random_weights_are_integers_normalised_at_each_exit(teaches_MM, seed):
    W_MM, M = Random().weights(teaches_MM, seed)().double(), len(teaches_MM)
    counts_MM = teaches_MM | torch.eye(M, dtype=torch.bool)
    assert (W_MM[~counts_MM] == 0).all()
    torch.testing.assert_close(W_MM.sum(1), torch.ones(M, dtype=torch.float64))
    for row, counts in zip(W_MM, counts_MM, strict=True):
        fits = [
            total
            for total in range(1, 50 * M + 1)
            if ((row[counts] * total - (row[counts] * total).round()).abs() < 1e-3).all()
            and float((row[counts] * total).min().round()) >= 1
            and float((row[counts] * total).max().round()) <= 50
        ]
        assert fits, f"{row.tolist()} are no integers from 1..50 over their sum"


def test_random_weights_come_from_the_seed_alone():
    draws = []
    for torch_seed in (0, 1):
        torch.manual_seed(torch_seed)
        draws.append(Random().weights(topology.lae(4), 7)())
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], Random().weights(topology.lae(4), 8)())


def naive_algorithm_2(steps: int, C: int, in_cycle: bool) -> list[list[str]]:
    """What Ω's update reads at each step, transcribed from Algorithm 2 (or section 3.4's text)."""
    reads = []
    while len(reads) < steps:
        for c in range(1, C + 1):
            if c != C:
                reads.append(["λ1 L_B1 (Θ_t)"] if in_cycle else [])
            else:
                reads.append(["λ1 L_B1 (Θ_t+1)", "λ2 L_B2 (Θ_t+1)"])
    return reads[:steps]


@pytest.mark.parametrize("in_cycle", [True, False])
@pytest.mark.parametrize("C", [1, 2, 4, 8])
def test_clo_v2_follows_algorithm_2(C, in_cycle):
    rho, learner = 0.25, CLO2(cycle=C, in_cycle=in_cycle)
    names = {"stepping": "λ1 L_B1 (Θ_t)", "first": "λ1 L_B1 (Θ_t+1)", "second": "λ2 L_B2 (Θ_t+1)"}
    values = {"stepping": rho, "first": rho, "second": 1.0, "hyper": 0.0}
    for step, wanted in enumerate(naive_algorithm_2(25, C, in_cycle)):
        plan = learner.plan(step, rho)._asdict()
        assert [names[name] for name, factor in plan.items() if factor] == wanted
        assert all(factor in (0, values[name]) for name, factor in plan.items())


def test_other_plans():
    assert SLO().plan(5, 0.3) == Plan(stepping=1.0)
    assert not SLO().splits
    assert BLO().plan(5, 0.3) == Plan(second=1.0)
    assert CLO1().plan(5, 0.3) == Plan(first=0.3, second=1.0)
    assert CLO1(rho=1.0).plan(5, 0.3) == Plan(first=1.0, second=1.0)
    assert Hyper().plan(5, 0.3) == Plan(hyper=1.0)
    assert [any(Hyper(cycle=3).plan(step, 0.3)) for step in range(6)] == 2 * [False, False, True]
    assert [any(MetaWeights(cycle=2).plan(step, 0.3)) for step in range(4)] == 2 * [False, True]
    for learner in (BLO(), CLO1(), CLO2(), Hyper(), MetaWeights()):
        assert learner.splits
    for kind in (CLO2, Hyper, MetaWeights):
        for cycle in (0, 1.5):
            with pytest.raises(ValueError, match="cycle must be a whole number from 1"):
                kind(cycle=cycle)


# One step of Ω


PLANS = [
    Plan(1.0),
    Plan(second=1.0),
    Plan(first=0.02, second=1.0),
    Plan(0.3, 0.5, 2.0),
    Plan(hyper=1.0),
    Plan(first=0.5, hyper=2.0),
]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", DESCENDING)
@pytest.mark.parametrize("made", ["none", "last", "lle", "lae"])
def test_its_gradient_is_autograd_through_the_loss(name, made, plan):
    M, B, C = 4, 6, 3
    teaches_MM = topology.resolve(made, M)
    A_MM = coefficients.summed(teaches_MM, 0.0, ())
    omega = Omega(SLO(name), teaches_MM, lr=0.01, rho=0.1, seed=0)
    with torch.no_grad():
        for parameter in omega.weights.parameters():
            parameter.add_(torch.rand_like(parameter))
    start = copy.deepcopy(omega.weights)
    terms = {
        field: mx.loss_matrix(torch.randn(M, B, C), torch.randint(C, (B,)))
        for field, factor in plan._asdict().items()
        if factor
    }
    total = torch.zeros(())
    for field, L_MM in terms.items():
        paid = torch.zeros(())
        for i in range(M):
            for j in range(M):
                if name == "uncertainty" and field != "hyper":  # its outer loss holds no Ω
                    paid = paid + A_MM[i, j] * start.s_MM[i, j]
                paid = paid + start()[i, j] * A_MM[i, j] * L_MM[i, j]
        total = total + getattr(plan, field) * paid
    parameters = list(start.parameters())
    wanted = torch.autograd.grad(total, parameters, allow_unused=True)
    omega.update(plan, A_MM, terms)
    for now, then, gradient in zip(omega.weights.parameters(), parameters, wanted, strict=True):
        gradient = torch.zeros_like(then) if gradient is None else gradient
        torch.testing.assert_close(now.grad, gradient, rtol=1e-4, atol=1e-6)
        clear = gradient.abs() > 1e-4  # Adam's first step is λ2 along the sign
        torch.testing.assert_close(
            (now - then).detach()[clear], -0.01 * gradient[clear].sign(), rtol=1e-2, atol=0
        )
        assert torch.equal(now[gradient == 0], then[gradient == 0])


def test_a_plan_of_nothing_leaves_it_where_it_is():
    omega = Omega(SLO(), topology.lae(3), lr=0.1, rho=1.0, seed=0)
    A_MM = coefficients.summed(topology.lae(3), 0.0, ())
    omega.update(Plan(stepping=1.0), A_MM, {"stepping": torch.rand(3, 3)})
    before = omega.value().clone()
    omega.update(Plan(), A_MM, {})
    assert torch.equal(before, omega.value()), "Adam's momentum moved it"


@pytest.mark.parametrize("name", weights.PARAMETRIZATIONS)
def test_it_goes_on_as_if_never_saved(name):
    A_MM = coefficients.summed(topology.lae(3), 0.0, ())
    terms = [{"stepping": torch.rand(3, 3)} for _ in range(6)]
    straight, first, second = (Omega(SLO(name), topology.lae(3), 0.1, 1.0, 0) for _ in range(3))
    for term in terms:
        straight.update(Plan(1.0), A_MM, term)
    for term in terms[:3]:
        first.update(Plan(1.0), A_MM, term)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for term in terms[3:]:
        second.update(Plan(1.0), A_MM, term)
    assert torch.equal(straight.value(), second.value())


@pytest.mark.parametrize("name", weights.PARAMETRIZATIONS)
def test_a_value_once_read_stays_as_it_was(name):
    omega = Omega(SLO(name), topology.lae(3), lr=0.1, rho=1.0, seed=0)
    read = omega.value()
    assert not read.requires_grad
    before = read.tolist()
    for _ in range(2):  # normalised terms are all 1 at first
        omega.update(Plan(stepping=1.0), torch.ones(3, 3), {"stepping": torch.rand(3, 3)})
    assert read.tolist() == before
    assert omega.value().tolist() != before


# The checks themselves


@dataclass(frozen=True)
class Loose(Uniform):
    """Weights of another shape."""

    def weights(self, teaches_MM, seed):
        return weights.FixedWeights(torch.ones(2, 2))


@dataclass(frozen=True)
class Endless(Learner):
    """A factor that is no number."""

    def plan(self, step, rho):
        return Plan(stepping=math.inf)


class Bare(SLO):
    """A plan that is a bare tuple."""

    def plan(self, step, rho):
        return (1.0, 0.0, 0.0)


class Blind(Hyper):
    """Hypergradients that no phase is told of."""

    looks_back = False


class Whole(BLO):
    """A second batch from rows that the first is drawn from too."""

    splits = False


class Still(BLO):
    """Plans for weights that nothing moves."""

    learns = False


class Fixed(SLO):
    """It learns, and has nothing to learn."""

    def weights(self, teaches_MM, seed):
        return weights.FixedWeights(torch.ones(teaches_MM.shape))


class ByExit(SLO):
    """A weight for each exit, which would count for its column of teachers."""

    def weights(self, teaches_MM, seed):
        return weights.RawWeights(torch.ones(len(teaches_MM)))


class Unsaid(MetaWeights):
    """Weights of rows that no step is told of."""

    weighs_rows = False


class Said(Hyper):
    """Weights of terms that are said to be those of rows."""

    weighs_rows = True


class RowsByTerms(MetaWeights):
    """A gradient that weights of rows don't have."""

    def plan(self, step, rho):
        return Plan(first=1.0)


WRONG = [
    (Loose(), r"must be finite numbers of shape \[\d, \d\]; got \(2, 2\)"),
    (ByExit(), r"must be finite numbers of shape \[(\d), \1\]; got \(\1,\)"),
    (Endless(), "finite"),
    (Bare(), "must be a Plan"),
    (Blind(), r"plan\(0\) asks for a hypergradient: set looks_back = True"),
    (Whole(), r"plan\(0\) reads a second batch, .* leave splits at True"),
    (Still(), r"plan\(0\) moves Ω, .* leave learns at True"),
    (Fixed(), "gave FixedWeights without parameters: set learns = False"),
    (Unsaid(), "gave WeightNet, .* set weighs_rows = True"),
    (Said(), "gave SoftmaxWeights, .* set weighs_rows = False"),
    (RowsByTerms(), r"plan\(0\) .* give Plan\(hyper=…\)"),
    (Random("raw"), "parametrization='raw' has no effect: leave it out"),
]


@pytest.mark.parametrize(("learner", "message"), WRONG)
def test_the_check_catches_wrong_ones(learner, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_learner(learner)


@pytest.mark.parametrize(("learner", "message"), WRONG)
def test_a_trainer_refuses_wrong_ones(learner, message):
    with pytest.raises(ValueError, match=message):
        mx.Trainer(chain(3), mx.recipes.leebert(learner=learner))


def test_a_plan_that_goes_wrong_later_is_refused_at_its_step():
    @dataclass(frozen=True)
    class Late(SLO):
        def plan(self, step, rho):
            return Plan(second=1.0) if step == 1000 else Plan(stepping=1.0)

    omega = Omega(Late(), topology.lae(3), lr=0.1, rho=1.0, seed=0)
    with pytest.raises(ValueError, match=r"plan\(1000\) reads a second batch"):
        omega.plan(1000)


def test_what_is_of_clo_v2_is_refused_beside_another_learner():
    with pytest.raises(ValueError, match=r"cycle=8, fresh=False goes with CLO2, .* is BLO\("):
        mx.recipes.leebert(learner=BLO(), cycle=8, fresh=False)
