"""The hypergradient on a problem whose answer is known: the example."""

import json
import runpy
from typing import Any

import pytest
from helpers import ROOT, example

from multiexit.losses import weights
from multiexit.losses.weights.learners import Hyper


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
