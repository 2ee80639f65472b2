"""Networks that draw their layers, in the trainer."""

from dataclasses import replace

import pytest
import torch
from encoders import bert, on
from helpers import Stopped, Text, Watched, assert_same, config, fit, tensors

from multiexit.recipes import static


def shipped():
    torch.manual_seed(7)
    predecessor = on(bert())
    return static.single_exit(predecessor, static.Theseus(predecessor.backbone, 3))


def dropping():
    torch.manual_seed(7)
    return on(static.LayerDrop(bert(), 0.5))


@pytest.mark.parametrize(
    ("make", "recipe"), [(shipped, static.theseus(0.2)), (dropping, static.fine_tune())]
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(make, recipe, tmp_path):
    """What layers are drawn after the stop is what would have been drawn."""
    settings = config(epochs=3, optimizer="adamw", lr=1e-3, checkpoint_every=1)
    whole = make()
    fit(whole, recipe, settings, Text())
    stopped = replace(settings, output=tmp_path)
    with pytest.raises(Stopped):
        fit(make(), recipe, stopped, Watched(Text(), stop=7))
    again = make()
    fit(again, recipe, replace(stopped, resume=True), Text())
    assert_same(tensors(again), tensors(whole))


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_all_train_at_half_precision(precision):
    settings = config(mixed_precision=precision, max_steps=2)
    student = on(static.first_layers(bert(), 3), "all")
    runs = [(shipped(), static.theseus(0.2)), (dropping(), static.fine_tune())]
    for model, recipe in [*runs, (student, static.pkd(on(bert()), 3))]:
        history = fit(model, recipe, settings, Text())
        assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
