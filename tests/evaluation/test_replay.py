"""A budget on a stream: row by row as a loop has it, and held while rows get harder."""

from dataclasses import replace

import pytest
import torch

import multiexit as mx

M, C = 6, 3
LAYERS = tuple(range(1, M + 1))
COST = mx.Cost(LAYERS, tuple(12 * n for n in LAYERS), LAYERS, full_macs=10 * M)


def stream(hardness_B, seed=0):
    """Exits are the surer of the right answer the deeper they are, and the easier the row is."""
    draw = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(C, (len(hardness_B),), generator=draw)
    grows_MB1 = (torch.linspace(0.5, 4, M)[:, None] / hardness_B)[..., None]
    right_BC = torch.nn.functional.one_hot(labels_B, C)
    noise_MBC = 0.5 * torch.randn(M, len(hardness_B), C, generator=draw)
    return mx.Outputs(noise_MBC + grows_MB1 * right_BC, labels_B, COST)


TABLE = mx.calibration_table(stream(torch.ones(1000), seed=1), mx.MaxProb)


def drifting(rows=4000):
    """As at calibration, then twice as hard, then ever easier."""
    calm, hard = torch.ones(rows // 4), torch.full((rows // 4,), 2.0)
    return stream(torch.cat([calm, hard, torch.linspace(2, 0.5, rows // 2)]))


@pytest.mark.parametrize(
    "policy", [mx.MaxProb, mx.Patience, mx.MostConfident], ids=lambda kind: kind.__name__
)
def test_it_is_one_row_after_another(policy):
    outputs, budget = drifting(120), 3.0
    table = mx.calibration_table(stream(torch.ones(300), seed=1), policy)
    layers_S = [setting.mean_layers for setting in table.settings]
    aim, spent, right = budget, 0, 0
    went = mx.replay(outputs, table, budget)
    for row, label in enumerate(outputs.labels_B):
        place = min(range(len(layers_S)), key=lambda s: abs(layers_S[s] - aim))
        alone = outputs.take(torch.tensor([row]))
        exit_B, answer_BC = alone.answers(table.settings[place].policy)
        assert (int(went.setting_B[row]), int(went.exit_B[row])) == (place, int(exit_B))
        layers = LAYERS[int(exit_B)]
        low, high = min(layers_S), max(layers_S)
        aim = min(max(aim + 0.02 * (budget - layers), 2 * low - high), 2 * high - low)
        spent, right = spent + layers, right + int(answer_BC.argmax() == label)
    assert went.mean_layers == pytest.approx(spent / 120)
    assert went.scores["score"] == pytest.approx(right / 120)


@pytest.mark.parametrize("budget", [2.5, 3.5, 4.5])
def test_a_budget_is_held_under_drift_that_a_fixed_setting_does_not_hold(budget):
    outputs = drifting()
    went = mx.replay(outputs, TABLE, budget)
    assert went.mean_layers == pytest.approx(budget, abs=0.03)
    for part_B in went.exit_B.split(500):
        assert float(part_B.double().mean()) + 1 == pytest.approx(budget, abs=0.25)
    fixed = min(TABLE.settings, key=lambda setting: abs(setting.mean_layers - budget))
    exit_B, _ = outputs.answers(fixed.policy)
    assert abs(float(exit_B[1000:2000].double().mean()) + 1 - budget) > 0.4


def test_what_does_not_fit_is_refused():
    outputs = stream(torch.ones(5))
    with pytest.raises(ValueError, match=r"table is what calibration_table\(outputs, policy\) gi"):
        mx.replay(outputs, None, 3.0)
    with pytest.raises(ValueError, match=r"budget_layers must be from 1.00 to 6.00"):
        mx.replay(outputs, TABLE, 7.0)
    cost = mx.Cost(*(3 * [(1, 2, 3, 4, 5)]), full_macs=5)
    fewer = replace(outputs, logits_MBC=outputs.logits_MBC[:5], cost=cost)
    with pytest.raises(ValueError, match="of a model of 6 exits, these outputs have 5"):
        mx.replay(fewer, TABLE, 3.0)
