"""Phases and recipes as data."""

import pytest

import multiexit as mx
from multiexit.losses import weights
from multiexit.losses.gradients import Conflictless, equilibrium
from multiexit.losses.weights.rows import MetaWeights
from multiexit.model import Pass
from multiexit.recipes import Seen
from multiexit.recipes.labels import certainty_loss


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


def test_an_extra_loss_sees_all_of_a_pass():
    assert Seen._fields[3:] == Pass._fields
