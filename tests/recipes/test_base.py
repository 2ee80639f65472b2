"""Phases and recipes as data."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import Table, chain, config, fit
from torch.nn import functional as F

import multiexit as mx
from multiexit import recipes
from multiexit.data.order import split_epoch
from multiexit.losses import coefficients, weights
from multiexit.losses.gradients import Conflictless, equilibrium
from multiexit.losses.temperature import Constant
from multiexit.losses.weights.rows import MetaWeights
from multiexit.model import Pass
from multiexit.recipes import Seen
from multiexit.recipes.labels import certainty_loss

M, ROWS = 4, 40


@pytest.mark.parametrize(
    "options",
    [
        {"surgery": Conflictless(), "extra": certainty_loss},
        {"surgery": Conflictless(), "learner": MetaWeights()},
        {"surgery": Conflictless(), "learner": weights.Hyper()},
        {"branch": equilibrium, "learner": weights.Hyper()},
    ],
    ids=["surgery and extra", "surgery and rows", "surgery and hyper", "branch and hyper"],
)
def test_parts_that_would_leave_each_other_out_are_refused(options):
    with pytest.raises(ValueError, match=r"surgery|branches"):
        mx.Phase(**options)


class Powered(weights.SLO):
    def __init__(self, power):
        super().__init__()
        object.__setattr__(self, "power", power)


class Warmed(Constant):
    def __init__(self, value, rate):
        super().__init__(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 2.0}, r"temperature is one such as .*Constant\(2\.0\); got 2\.0"),
        ({"learner": weights.SLO}, r"learner is one such as .*SLO\(\); got the class SLO"),
        ({"surgery": Conflictless}, "surgery is one such as .*; got the class Conflictless"),
        ({"learner": Powered(3.0)}, "Powered must be a frozen dataclass"),
        ({"temperature": Warmed(1.0, 2.0)}, "Warmed must be a frozen dataclass"),
        ({"coefficients": [coefficients.summed]}, r"tuple of such that take turns; got \[<func"),
        ({"coefficients": np.eye(2)}, "coefficients are a function"),
        ({"coefficients": ()}, r"coefficients are a function .*got \(\)"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
    ],
)
def test_what_is_no_part_of_a_phase_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mx.Phase(**options)


def test_an_extra_loss_sees_all_of_a_pass():
    assert Seen._fields[3:-2] == Pass._fields[:3]  # and what labels mean


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_says_where_it_comes_from(name):
    made = mx.recipe(name)
    assert made.name == name
    assert len(made.paper) > 20
    assert made.section
    assert 2016 <= made.year <= 2025
    assert made.summary
    assert recipes.RECIPES[name].__doc__
    assert isinstance(made.policy, mx.ExitPolicy)
    assert mx.recipe(name) == made or name in ("dbt", "romebert", "cosee")  # a closure of its own


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"no recipe 'leeberd'.*leebert-clo-v1"):
        mx.recipe("leeberd")
    with pytest.raises(ValueError, match=r"pabee.*temperature"):
        mx.recipe("pabee", temperature=2.0)
    with pytest.raises(ValueError, match="mix"):
        mx.recipe("dbt", mix=1.5)
    with pytest.raises(ValueError, match="cycle"):
        mx.recipe("leebert", cycle=0)
    with pytest.raises(ValueError, match="'all', 'last', 'heads' or"):
        mx.Phase(train="trunk")
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        mx.Phase(epochs=0)
    with pytest.raises(ValueError, match="no phases"):
        replace(mx.recipe("joint"), phases=())
    with pytest.raises(ValueError, match="divergence"):
        mx.recipe("leebert", divergence="js")


def test_a_recipe_of_ones_own():
    """Labels for all, the last exit teaches by KL, twice as strong, the first exit counts half."""

    def half(teaches_MM, progress, shares_M):
        A_MM = coefficients.summed(teaches_MM, 0.0, ()) * 2
        A_MM[0, 0] = 0.5
        return A_MM

    phase = mx.Phase("last", half, divergence="kl", temperature=Constant(2.0))
    recipe = replace(mx.recipe("joint"), name="own", phases=(phase,))
    model, train = chain(M), Table(ROWS)
    z, y = [logits.detach() for logits in model(train.x)], train.labels
    order = split_epoch(ROWS, 0, 0, halves=False)[0]
    assert sorted(order) == list(range(ROWS))
    ce_M = [F.cross_entropy(logits, y) for logits in z]
    wanted = 0.5 * ce_M[0] + 2 * sum(ce_M[1:])
    for m in range(M - 1):
        kl = F.kl_div((z[m] / 2).log_softmax(-1), (z[-1] / 2).softmax(-1), reduction="batchmean")
        wanted = wanted + 2 / M * 4 * kl
    history = fit(model, recipe, config(max_steps=1, batch_size=ROWS), train)
    assert history.steps[0]["loss"] == pytest.approx(float(wanted), rel=1e-5)
