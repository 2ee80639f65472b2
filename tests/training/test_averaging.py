"""The moving average of weights: against one kept by hand over the weights of every step."""

from itertools import pairwise

import pytest
import torch
from helpers import (
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    fit,
    images,
    phased,
    saved_state,
    tensors,
)
from torch import nn

import multiexit as mx

DECAY = 0.7
LAST_FIRST = phased(
    {"train": "last", "coefficients": mx.coefficients.last_only}, {"train": "heads"}
)


class Recorded(mx.Callback):
    """The network's own weights as each phase begins, and after each of its steps."""

    def __init__(self):
        self.phases = []

    def on_begin(self, run):
        self.phases.append([tensors(run.model)])

    def on_step(self, run, row):
        self.phases[-1].append(tensors(run.model))


def train(model, recipe, settings, data, dev=None):
    recorded = Recorded()
    recipe = mx.recipe(recipe) if isinstance(recipe, str) else recipe
    history = mx.Trainer(model, recipe, settings, callbacks=[recorded]).fit(data, dev)
    return history, recorded.phases


def averaged(states):
    """θ̄ after the last of these, in float64."""
    average = {name: value.double() for name, value in states[0].items()}
    for t, state in enumerate(states[1:]):
        d = min(DECAY, (1 + t) / (10 + t))
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = d * average[name] + (1 - d) * value.double()
            else:
                average[name] = value
    return average


def assert_average(model, states):
    for name, value in averaged(states).items():
        torch.testing.assert_close(tensors(model)[name].double(), value.double(), msg=name)


@pytest.mark.parametrize("recipe", ["joint", "leebert", "leebert-hyper", LAST_FIRST])
def test_a_run_leaves_the_average_of_the_weights_after_its_steps(recipe):
    model = convnet(dropout=0.0)
    settings = config(ema=DECAY, accumulation=2, epochs=3, omega_lr=0.1)
    _, phases = train(model, recipe, settings, images(40))
    assert_average(model, phases[-1])
    for before, after in pairwise(phases):  # a phase begins at the averages
        for name, value in averaged(before).items():
            torch.testing.assert_close(after[0][name].double(), value.double(), msg=name)


def test_training_itself_goes_on_as_without():
    """Neither Θ nor Ω sees an average, which are judged in between."""

    def run(ema):
        return train(chain(dropout=0.2), "leebert", config(ema=ema), Table(), Table(12, seed=1))

    (plain, states), (averages, same) = run(None), run(DECAY)
    assert_same(states[0][-1], same[0][-1])
    assert averages.steps == plain.steps


def test_what_is_scored_selected_and_saved_are_the_averages(tmp_path):
    model, dev = chain(), Table(60, seed=5)
    settings = config(ema=DECAY, evaluate_every=2, lr=0.8, epochs=4, output=tmp_path)
    history, phases = train(model, "joint", settings, Table(), dev)
    assert history.best["step"] < history.epochs[-1]["step"]  # so that it is a choice
    assert_average(model, phases[0][: history.best["step"] + 1])
    assert [row["score"] for row in mx.exit_scores(mx.collect(model, dev))] == [
        row["score"] for row in history.best["exits"]
    ]
    saved = mx.MultiExitModel.from_pretrained(tmp_path / "model", model.backbone)
    assert_same(tensors(saved), tensors(model))


@pytest.mark.parametrize(("recipe", "stop"), [("leebert", 5), (LAST_FIRST, 8)])
def test_a_killed_run_goes_on_exactly(tmp_path, recipe, stop):
    def run(folder, data, resume=False):
        settings = config(ema=DECAY, output=folder, checkpoint_every=2, resume=resume)
        model = convnet()
        fit(model, recipe, settings, data, images(12))
        return tensors(model), saved_state(folder)

    whole, state = run(tmp_path / "whole", images())
    with pytest.raises(Stopped):
        run(tmp_path / "cut", Watched(images(), stop))
    resumed, other = run(tmp_path / "cut", images(), resume=True)
    assert_same(whole, resumed)
    state["run"] = other["run"] = None
    assert differences(state, other) == []


def test_averaging_may_begin_in_a_run_that_had_none(tmp_path):
    settings = {"output": tmp_path, "checkpoint_every": 5}
    with pytest.raises(Stopped):
        fit(chain(), "joint", config(**settings), Watched(Table(), 7))
    model, forced = chain(), config(ema=DECAY, resume=True, force=True, **settings)
    with pytest.warns(UserWarning, match="config ema"):
        _, phases = train(model, "joint", forced, Table())
    states = phases[0]
    average = states[0]["heads.0.linear.weight"].double()
    for t, state in enumerate(states[1:], 5):  # the steps' own numbers
        d = min(DECAY, (1 + t) / (10 + t))
        average = d * average + (1 - d) * state["heads.0.linear.weight"].double()
    torch.testing.assert_close(model.heads[0].linear.weight.detach().double(), average)


def test_shared_weights_are_averaged_once_and_stay_shared():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(layer, layer)), 3)
    _, phases = train(model, "joint", config(ema=DECAY), Table())
    assert_average(model, phases[0])
    assert len({p.data_ptr() for p in model.backbone.parameters()}) == 2


def test_other_loops_average_by_themselves():
    from multiexit.integrations import PhaseLoss

    with pytest.raises(ValueError, match=r"ema=0\.7 is .*Trainer"):
        PhaseLoss(chain(), mx.recipe("joint"), config=config(ema=DECAY))
