"""Stages that work in place on the feature before them: exits read what they read elsewhere."""

import pytest
import torch
from helpers import CLASSES, WIDTH, Table, config, fit
from torch import nn

import multiexit as mx


class Shift(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.shift, self.in_place = nn.Parameter(torch.randn(WIDTH)), in_place

    def forward(self, x):
        if not self.in_place:
            return x + self.shift
        x += self.shift
        return x


NETWORKS = {
    "activations": lambda yes: [
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=yes)),
        *(nn.Linear(WIDTH, WIDTH), nn.SiLU(inplace=yes)),
    ],
    "shifts": lambda yes: [nn.Linear(WIDTH, WIDTH), Shift(yes), Shift(yes)],
    "behind a view": lambda yes: [nn.Linear(WIDTH, WIDTH), nn.Identity(), nn.ReLU(inplace=yes)],
    "dropout": lambda yes: [nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5, inplace=yes), nn.Tanh()],
}


def model_of(network, in_place, head=None):
    torch.manual_seed(1)
    backbone = mx.wrap(nn.Sequential(*NETWORKS[network](in_place)))
    return mx.MultiExitModel(backbone, CLASSES, head=head)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["joint", "elasticbert", "romebert", "ztw", "leebert-hyper"])
def test_training_is_the_same_in_place_and_not(network, name):
    recipe = mx.recipe(name)
    head = "linear+cascade" if name == "ztw" else None
    runs = [model_of(network, yes, head) for yes in (False, True)]
    steps = [fit(model, recipe, config(max_steps=4), Table(24)).steps for model in runs]
    assert [row["loss"] for row in steps[0]] == [row["loss"] for row in steps[1]]


@pytest.mark.parametrize("network", NETWORKS)
def test_features_and_the_logits_of_training_are_those_of_evaluation(network):
    x = torch.randn(8, WIDTH)
    wanted, model = (model_of(network, yes).eval() for yes in (False, True))
    for feature, other in zip(model.backbone.features(x), wanted.backbone.features(x), strict=True):
        assert torch.equal(feature, other)
    if network != "dropout":
        torch.testing.assert_close(model.train()(x), wanted(x))
