"""LayerDrop: which layers are skipped, and what that does to gradients."""

import pytest
import torch
from encoders import LAYERS, STILL, albert, assert_saves, batch, bert, by_hand, count_runs, on
from helpers import Text, config, fit
from torch.nn import functional as F

from multiexit.recipes import static


def test_layerdrop_at_rate_0_and_in_evaluation_is_the_encoder():
    inputs, _ = batch()
    plain = bert(**STILL)
    for rate, mode in ((0.0, True), (0.9, False)):
        dropping = static.LayerDrop(plain, rate).train(mode)
        for one, other in zip(dropping.features(**inputs), plain.features(**inputs), strict=True):
            assert torch.equal(one, other)


def test_layerdrop_skips_the_right_share_and_nothing_else():
    inputs, _ = batch(2)
    dropping = static.LayerDrop(bert(**STILL), 0.3).train()
    with torch.no_grad():
        runs = count_runs(dropping.inner, lambda: [dropping.features(**inputs) for _ in range(200)])
    share = 1 - sum(runs) / (200 * LAYERS)
    assert share == pytest.approx(0.3, abs=0.05)  # 3.8 standard deviations
    assert max(runs) - min(runs) < 60
    torch.manual_seed(3)
    kept = [layer for layer in range(LAYERS) if float(torch.rand(())) >= 0.3]
    assert 0 < len(kept) < LAYERS
    torch.manual_seed(3)
    assert torch.equal(dropping.features(**inputs)[-1], by_hand(dropping.inner, kept, inputs))


def test_a_skipped_layer_has_zero_gradient():
    inputs, labels = batch()
    dropping = static.LayerDrop(bert(**STILL), 0.5).train()
    model = on(dropping).train()
    assert not model.backbone.overwritten  # looked for before runs are counted
    torch.manual_seed(4)
    runs = count_runs(
        dropping.inner, lambda: F.cross_entropy(model(**inputs)[0], labels).backward()
    )
    assert {0, 1} == set(runs)
    for layer, run in zip(dropping.inner.layers, runs, strict=True):
        slope = sum(p.grad.abs().sum() for p in layer.parameters())
        assert bool(slope > 0) == bool(run)


def test_layerdrop_trains_saves_as_the_plain_encoder_and_is_cut(tmp_path):
    model = on(static.LayerDrop(albert(), 0.5))
    fit(model, static.fine_tune(), config(max_steps=3, output=tmp_path), Text())
    assert_saves(model, tmp_path / "again")
    inputs, _ = batch()
    whole = model.backbone.inner
    short = static.single_exit(
        model, static.keep_layers(whole, static.spread_layers(LAYERS, 3))
    ).eval()
    feature = by_hand(whole.eval(), [0, 2, 4], inputs)
    assert torch.equal(short(**inputs)[0], model.heads[0].eval()(feature))
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            static.LayerDrop(bert(), rate)
