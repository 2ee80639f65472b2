"""Layouts of features: which dimension is the width, and what is refused rather than guessed."""

import pytest
import torch

import multiexit as mx
from multiexit.backbones import layouts
from multiexit.model import heads

SIZES = (3, 4, 5, 6)


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_feature_is_averaged_over_its_positions(name):
    layout = layouts.LAYOUTS[name]
    feature = torch.randn(2, *SIZES[: layout.rank])
    moved = feature.movedim(layout.width + 1, 1)
    wanted = torch.stack([torch.stack([c.sum() / c.numel() for c in row]) for row in moved])
    torch.testing.assert_close(heads.pool_feature(feature, "mean", layout=name), wanted)
    shape = tuple(feature.shape[1:])
    assert layouts.width_of(shape, name) == moved.shape[1]
    head = heads.LinearHead(shape, 7, "mean", name)
    torch.testing.assert_close(head(feature), head.linear(wanted))


def test_mixed_pooling_of_channels_last_images_is_that_of_the_others():
    torch.manual_seed(0)
    first = heads.MixedPoolHead((3, 8, 12), 2)
    last = heads.MixedPoolHead((8, 12, 3), 2, "channels-last-image")
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(last(x.permute(0, 2, 3, 1)), first(x))


class Own(mx.Backbone):
    """A backbone of the user's own that gives what it was told."""

    def __init__(self, shapes, named=None):
        super().__init__(shapes, layouts=named)

    def start(self, x):
        return {"x": x}

    def stage(self, carry, index):
        return carry, carry["x"]

    def stage_module(self, index):
        return torch.nn.Identity()

    def example_inputs(self, batch=1):
        return {"x": torch.zeros(batch, *self.feature_shapes[0])}


def test_usual_shapes_need_no_layout_and_others_are_asked_for():
    assert Own([(5,), (None, 6), (3, 8, 8)]).layouts == ["vector", "tokens", "image"]
    assert Own([(8, 20), (8, 10)], "sequence").layouts == ["sequence"] * 2
    model = mx.MultiExitModel(Own([(8, 20)], ["sequence"]), 2)
    assert model.heads[0].linear.in_features == 8
    assert model(torch.randn(3, 8, 20)).shape == (1, 3, 2)
    for shapes, named, message in (
        ([(8, 20)], None, r"may be 'tokens' \[B, T, H\], 'sequence' \[B, C, L\]: say which"),
        ([(3, 4, 5, 6)], None, "may be 'volume'"),
        ([(3, 4, 5)], "tokens", r"stage 0 gives a feature of shape \(B, 3, 4, 5\)"),
        ([(3, 4, 5)], "nhwc", "no layout 'nhwc'; there are 'vector'"),
        ([(3,)], ["vector", "vector"], "2 layouts for 1 stages"),
        ([(1, 2, 3, 4, 5)], None, "has no layout"),
    ):
        with pytest.raises(ValueError, match=message):
            Own(shapes, named)


def test_a_feature_of_another_rank_than_expected_is_refused():
    chain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model = mx.MultiExitModel(mx.wrap(chain), 2)
    with pytest.raises(ValueError, match=r"a feature of shape \(2, 7, 4\) where a vector was"):
        model(torch.randn(2, 7, 4))
