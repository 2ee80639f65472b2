"""Numbers that are none: what broke is named, and nothing of it is kept."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import CLASSES, WIDTH, Table, Tainted, chain, config, fit, saved_state
from torch import nn

import multiexit as mx
from multiexit.data.order import split_epoch
from multiexit.training.records import checkpoint


class Poisoned(Table):
    """Infinity in the inputs, from read number `bad` on."""

    def __init__(self, bad, rows=40):
        super().__init__(rows)
        self.bad, self.reads = bad, 0

    def __getitems__(self, rows):
        x = self.x[rows].clone()
        if self.reads >= self.bad:
            x[0, 0] = math.inf
        self.reads += 1
        return list(zip(x, self.labels[rows], strict=True))


@pytest.mark.parametrize("log_every", [1, 20])
def test_a_loss_that_is_no_number_is_named_and_the_checkpoint_stands(log_every, tmp_path):
    # Wide rows, tanh stages: infinity becomes NaN only where two meet; a linear net passes it on.
    model = mx.MultiExitModel(
        mx.wrap(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))), CLASSES
    )
    settings = config(output=tmp_path, checkpoint_every=2, log_every=log_every, epochs=3)
    with pytest.raises(FloatingPointError, match=r"exit 0's own loss is (nan|inf) at step 7"):
        fit(model, "joint", settings, Poisoned(7))
    saved = saved_state(tmp_path)
    assert saved["position"]["step"] == 6
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    with pytest.warns(UserWarning, match="data train hash"):  # the data was mended
        resumed = fit(model, "joint", replace(settings, resume=True, force=True), Table())
    assert resumed.epochs[-1]["epoch"] == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_exit_that_broke_is_named():
    model = chain()
    with torch.no_grad():
        model.heads[2].linear.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="exit 2's own loss is nan at step 0"):
        fit(model, "joint", config(), Table())


@pytest.mark.parametrize("dev", [None, Table(8, seed=1)])
def test_parameters_that_overflow_are_not_kept(dev, tmp_path):
    """The last step's loss may be finite and its update not."""
    model = chain()
    settings = config(output=tmp_path, lr=1e37, weight_decay=1e5, max_steps=1)
    with pytest.raises((FloatingPointError, ValueError)):
        fit(model, "joint", settings, Table(), dev)
    assert not checkpoint.names(tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_broken_second_half_stops_before_the_weights_are_kept(tmp_path):
    _, second = split_epoch(40, 0, 0, True)
    settings = config(epochs=1, batch_size=20, lr=1e-3, output=tmp_path, log_every=50)
    with pytest.raises(FloatingPointError, match="loss weights"):
        fit(chain(), mx.recipes.leebert(cycle=1), settings, Tainted(second[:1]))
    assert not checkpoint.names(tmp_path)
