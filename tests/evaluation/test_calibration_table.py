"""Calibration tables: what `calibrate` would choose, with bounds, and what is kept of them."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import multiexit as mx
from multiexit.evaluation import guarantee
from multiexit.evaluation.calibration_table import STEP
from multiexit.evaluation.grids import policy_settings
from multiexit.evaluation.targets import losses_of_settings
from multiexit.policies import CalibrationTable
from multiexit_runner import choosing
from multiexit_runner.drift import bins_of, packed, unpacked


def outputs_of(rows=300, exits=6, classes=3, **more):
    torch.manual_seed(0)
    labels_B = torch.randint(classes, (rows,))
    grows_M11 = torch.linspace(0.5, 4, exits)[:, None, None]
    right_BC = torch.nn.functional.one_hot(labels_B, classes)
    logits_MBC = torch.randn(exits, rows, classes) + grows_M11 * right_BC
    layers = tuple(range(1, exits + 1))
    cost = mx.Cost(layers, tuple(12 * n for n in layers), layers, full_macs=10 * exits)
    labels_B = labels_B.float() if classes == 1 else labels_B
    return mx.Outputs(logits_MBC, labels_B, cost, **more)


@pytest.mark.parametrize(
    "kind", [mx.MaxProb, mx.Entropy, mx.Patience], ids=lambda kind: kind.__name__
)
def test_choosing_from_it_is_calibrating(kind):
    outputs = outputs_of()
    table = mx.calibration_table(outputs, kind, confidence=0.8)
    plain = table.to_json()
    for setting in table.settings:  # each figure is that of its policy on these rows
        row = mx.judge(outputs, setting.policy)
        assert (row.score, row.mean_layers) == (setting.score, setting.mean_layers)
        assert (row.speedup_layers, row.speedup_macs) == (
            setting.speedup_layers,
            setting.speedup_macs,
        )
        counts_ME = unpacked(setting.counts, 6, 300)
        assert packed(counts_ME) == setting.counts
        assert tuple(counts_ME.sum(1) / 300) == pytest.approx(setting.shares_M)
        exit_B, answer_BC = outputs.answers(setting.policy)
        for exit in range(6):
            bins_B = bins_of(answer_BC[exit_B == exit].numpy(), "classification")
            assert np.bincount(bins_B, minlength=40).tolist() == counts_ME[exit].tolist()
    layers = [setting.mean_layers for setting in table.settings]
    gaps = [before - after for before, after in pairwise(layers)]
    assert min(gaps) > 0
    assert all(gap >= STEP * 6 for gap in gaps[:-1])
    everything = [mx.judge(outputs, p).mean_layers for p in policy_settings(kind, 6, 3)]
    assert (layers[0], layers[-1]) == (max(everything), min(everything))
    for speedup in (1.0, 1.5, 2.0):
        chosen = table.settings[choosing.choose(plain, ("speedup", speedup))]
        best = mx.judge(outputs, mx.calibrate(outputs, kind, speedup=speedup))
        assert chosen.speedup_layers >= speedup
        assert chosen.mean_layers >= best.mean_layers - 2 * STEP * 6
    # The bound is the one that learn_then_test certifies, at any risk.
    settings = policy_settings(kind, 6, 3)
    exit_sum_S, loss_SB = losses_of_settings(outputs, settings, "accuracy")
    if exit_sum_S[0] < exit_sum_S[-1]:
        settings, loss_SB = settings[::-1], loss_SB.flip(0)
    place = {policy: s for s, policy in enumerate(settings)}
    for risk in (0.02, 0.05, 0.1, 0.3):
        certified = guarantee.learn_then_test(loss_SB, risk, 0.2, "binomial")
        for setting in table.settings:
            safe = certified is not None and place[setting.policy] <= certified
            assert (setting.loss_bound <= risk) == safe


def test_a_target_that_none_reaches_is_refused():
    outputs = outputs_of(60)
    plain = mx.calibration_table(outputs, mx.MaxProb).to_json()
    for target, message in [
        (("speedup", 99.0), r"gives speedup=99; the fastest gives 6\.00"),
        (("max_loss", 0.5), r"within max_loss=0\.5 points; on 60 rows, with confidence 0\.9"),
        (("milliseconds", 0.1), r"takes milliseconds=0\.1; the fastest takes 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            choosing.choose(plain, target, [1.0] * len(plain["settings"]))
    numbers = outputs_of(60, classes=1)
    numbers = replace(numbers, labels_B=numbers.labels_B.float(), metric="pearson_spearman")
    table = mx.calibration_table(numbers, mx.Patience(1, tolerance=0.5))
    assert {setting.loss_bound for setting in table.settings} == {None}
    with pytest.raises(ValueError, match=r"bounds no loss.*choose by a speedup"):
        choosing.choose(table.to_json(), ("max_loss", 5.0))
    for wrong, message in [
        ({"speedup": 0.5}, "speedup is 1 without"),
        ({"speedup": "2"}, "speedup must be a number"),
        ({"speedup": True}, "speedup must be a number"),
        ({"max_loss": float("nan")}, "max_loss must be a number"),
        ({"max_loss": 100}, "in points"),
        ({"milliseconds": 0}, "above 0"),
        ({"speedup": 2, "max_loss": 1}, "speedup and max_loss: give one"),
    ]:
        with pytest.raises(ValueError, match=message):
            choosing.wanted(None, **wrong)
    with pytest.raises(ValueError, match="policy and speedup"):
        choosing.wanted("max-prob=0.9", speedup=2)


def test_it_is_saved_with_a_model_and_dropped_where_it_no_longer_holds(tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), 3, [0, 2, 4, 6, 7, 8])
    model.calibration = mx.calibration_table(outputs_of(), mx.MaxProb)
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert again.calibration == model.calibration
    assert json.loads(json.dumps(again.calibration.to_json())) == model.calibration.to_json()
    assert mx.keep_exits(model, [0, 5]).calibration is None
    data = model.calibration.to_json()
    for key, value, message in [
        ("settings", [], "calibration.settings"),
        ("confidence", 2, "confidence"),
        ("settings", [data["settings"][0] | {"policy": {"class": "Wild"}}], "Wild"),
        ("settings", [data["settings"][0] | {"loss_bound": -1}], "loss_bound"),
        ("settings", [data["settings"][0], data["settings"][1] | {"shares_M": [1.0]}], "exits"),
    ]:
        with pytest.raises(ValueError, match=message):
            CalibrationTable.from_json(data | {key: value})
    mx.fit_temperatures(again, outputs_of())
    assert again.calibration is None
    model.calibration = mx.calibration_table(outputs_of(exits=4), mx.MaxProb)
    with pytest.raises(ValueError, match="of 4 exits, not 6"):
        model.save_pretrained(tmp_path)
