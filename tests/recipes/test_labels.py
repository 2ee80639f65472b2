"""What one method on labels alone has: certainty that is learned, calibrated confidences."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import (
    CLASSES,
    Scores,
    Table,
    changed,
    config,
    fit,
    images,
    linear_chain,
    stage_features,
    tensors,
)

import multiexit as mx
from multiexit.recipes.base import Seen
from multiexit.recipes.labels import certainty_loss

# BERxiT: learning to exit


def seen(logits_MBC, labels_B, certainty_MB):
    return Seen((), {}, labels_B, logits_MBC, certainty_MB, [])


def test_how_certain_an_exit_should_be_by_hand():
    # Exit 0 is right on rows 0 and 2, exit 1 on row 1 alone; ties go to class 0.
    logits_MBC = torch.tensor([[[2.0, 1], [3, 0], [0, 9]], [[0, 1], [-1, 5], [1, 1]]])
    labels_B = torch.tensor([0, 1, 1])
    u_MB = torch.tensor([[0.9, 0.2, 0.5], [0.25, 1.0, 0.0]])
    off = (0.1**2 + 0.2**2 + 0.5**2 + 0.25**2 + 0.0 + 0.0) / 6
    assert float(certainty_loss(seen(logits_MBC, labels_B, u_MB))) == pytest.approx(off)
    # tanh(0.5493) = 0.5: that far off is half certain, on either side.
    half = math.atanh(0.5)
    logits_MB1 = torch.tensor([[[2.0 + half], [2.0 - half], [2.0], [99.0]]])
    u_MB = torch.tensor([[0.5, 0.4, 0.9, 0.2]])
    off = (0.0 + 0.1**2 + 0.1**2 + 0.2**2) / 4
    found = certainty_loss(seen(logits_MB1, torch.full((4,), 2.0), u_MB))
    assert float(found) == pytest.approx(off, rel=1e-5)


@pytest.mark.parametrize("classes", [1, CLASSES])
def test_certainty_teaches_the_trunk_but_not_the_answers(classes):
    model = linear_chain("own-pooler+lte", classes=classes)
    train = Table()
    labels_B = train.labels.float() if classes == 1 else train.labels
    said = model.run((train.x,), {})
    certainty_loss(seen(said.logits_MBC, labels_B, said.certainty_MB)).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    answering = {name for name, _ in model.named_parameters() if ".linear." in name}
    assert reached == {name for name, _ in model.named_parameters()} - answering
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)
    gates = {id(head.gate) for head in model.heads}
    assert len(gates) == 1, "one layer tells for all exits"


# The Right Tool: mixed layers and calibrated confidences


def test_the_right_tool_ends_calibrated_and_a_mix_learns():
    model, train = linear_chain("+mix"), Table(64)
    fit(model, "right-tool", config(epochs=3), train, Table(30, seed=3))
    assert (model.temperature_M != 1).all()
    for m, head in enumerate(model.heads):
        share = head.mix.softmax(0)
        assert len(share) == m + 1
        assert float(share.detach().sum()) == pytest.approx(1)
        assert m == 0 or not torch.equal(head.mix, torch.zeros(m + 1)), "equal at the start"
        vectors = stage_features(model, train.x)
        mixed = sum(share[j] * vectors[j] for j in range(m + 1))
        wanted = (mixed @ head.base.linear.weight.T + head.base.linear.bias) / model.temperature_M[
            m
        ]
        torch.testing.assert_close(model(train.x)[m], wanted, atol=1e-5, rtol=1e-5)


# Regression


@pytest.mark.parametrize(
    ("recipe", "head"),
    [
        (mx.recipe("berxit"), "own-pooler+lte"),
        (mx.recipe("pabee", patience=1, tolerance=0.5), None),
        (replace(mx.recipe("joint"), policy=mx.FixedExit(1)), None),
    ],
    ids=["berxit", "pabee", "joint"],
)
def test_regression_has_its_own_methods(recipe, head, tmp_path):
    """What the refusals point to trains, and is saved with its policy."""
    model = linear_chain(head, classes=1)
    settings = config(epochs=6, lr=0.05, output=tmp_path)
    history = fit(model, recipe, settings, Scores(64), Scores(32))
    assert history.best["mean"] > 0.5
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model", backbone=linear_chain().backbone)
    assert again.policy == recipe.policy
    x = Scores(8).x
    said, wanted = again.eval().predict(again.policy, x), model.eval().predict(recipe.policy, x)
    assert torch.equal(said.logits_BC, wanted.logits_BC)


# Shallow-Deep


def test_shallow_deeps_head_learns_how_to_pool():
    torch.manual_seed(0)
    backbone = mx.cifar_resnet(20, in_channels=1, size=8)
    model = mx.MultiExitModel(backbone, 3, exits=[0, 4, 8], head="mixed-pool")
    before = tensors(model)
    fit(model, "shallow-deep", config(max_steps=3), images())
    assert "heads.0.alpha" in changed(before, tensors(model))
