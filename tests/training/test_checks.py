"""What is refused before anything is trained."""

import pytest
from helpers import Scores, Table, assert_same, config, fit, linear_chain, tensors

import multiexit as mx

# What a method can't serve


def regressor(head=None):
    return linear_chain(head, classes=1)


def one_exit():
    return linear_chain(stages=1)


ANOTHER = r"can't serve.*1 output.*another policy.*policy="
REFUSED = {
    "entropy of one output": ("joint", regressor, ANOTHER),
    "uncertainty of one output": ("fastbert", regressor, ANOTHER),
    "confidence of one output": ("dbt", regressor, ANOTHER),
    "confident exits of one output": ("pcee", regressor, ANOTHER),
    "agreement of one output": ("pabee", regressor, ANOTHER),
    "the surest of one output": ("shallow-deep", regressor, ANOTHER),
    "temperatures of one output": (
        "right-tool",
        lambda: regressor("+mix"),
        "right-tool.*berxit",
    ),
    "a budget of one output": ("msdnet", regressor, "'msdnet' needs at least 2 classes.*berxit"),
    "DeeBERT with one exit": ("deebert", one_exit, "1 exit.*give the model early exits"),
    "FastBERT with one exit": ("fastbert", one_exit, "1 exit.*give the model early exits"),
    "nobody to be certain": ("berxit", linear_chain, r"none: make it with head='pooler\+lte'"),
    "no cascade": ("ztw", linear_chain, r"make it with head='linear\+cascade'"),
    "no dev set for temperatures": ("right-tool", lambda: linear_chain("+mix"), "pass dev="),
    "no dev set for a budget": ("msdnet", linear_chain, "pass dev="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_cannot_serve_is_refused_before_it_trains(case):
    name, make, message = REFUSED[case]
    model = make()
    before = tensors(model)
    train = Scores() if model.num_classes == 1 else Table()
    with pytest.raises(ValueError, match=message):
        fit(model, name, config(), train)
    assert_same(before, tensors(model))
    assert all(p.requires_grad for p in model.parameters())


def test_a_budget_that_no_network_like_this_can_keep_is_refused_before_it_trains():
    model = linear_chain()
    before = tensors(model)
    with pytest.raises(ValueError, match="can't be spent"):
        fit(model, mx.recipe("msdnet", speedup=50.0), config(), Table(), Table(10))
    assert_same(before, tensors(model))
