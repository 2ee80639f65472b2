"""A recommendation is what calibration finds, judged on rows that didn't choose; its interval."""

import math
import warnings

import pytest
import torch

import multiexit as mx
from multiexit.evaluation import plain_words
from multiexit.evaluation.recommendation import paired_interval, recommend

KINDS = (mx.FixedExit, mx.Patience, mx.MaxProb, mx.Entropy, mx.Margin)


def made(rows=300, exits=5, classes=3, seed=0, metric="accuracy", keys=None) -> mx.Outputs:
    """Exits that are right ever more often, and surer where they are right."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(classes, (rows,), generator=generator)
    truth_BC = torch.nn.functional.one_hot(labels_B, classes).float()
    noise_MBC = torch.randn(exits, rows, classes, generator=generator).cumsum(0) / 2
    depth_M11 = torch.arange(1.0, exits + 1)[:, None, None]
    layers = tuple(2 * exit + 2 for exit in range(exits))
    cost = mx.Cost(layers, tuple(10 * n for n in layers), layers, full_macs=10 * layers[-1])
    return mx.Outputs(depth_M11 * truth_BC + noise_MBC, labels_B, cost, metric, keys_B=keys)


def by_hand(outputs, goal, key, own=()):
    """The best of each kind's calibrated setting, in a loop."""
    best = None
    for kind in (*KINDS, *own):
        try:
            row = mx.judge(outputs, mx.calibrate(outputs, kind, **goal))
        except ValueError:
            continue
        if best is None or key(row) > key(best):
            best = row
    return best


@pytest.mark.parametrize("seed", [1])
def test_the_choice_is_the_best_calibrated_one_and_other_rows_judge_it(seed):
    outputs = made(seed=seed)
    choosing, judging = outputs.split(0.4, 7)
    advice = recommend(outputs, speedup=1.5, share=0.4, seed=7)
    wanted = by_hand(choosing, {"speedup": 1.5}, lambda row: (row.score, row.speedup_layers))
    assert advice.row.policy == wanted.policy
    assert advice.tried[0] == wanted
    assert advice.row == mx.judge(judging, wanted.policy)
    assert advice.full == mx.judge(judging, mx.FixedExit(4))
    assert (advice.rows_chosen, advice.rows_judged, advice.repeated) == (120, 180, 0)
    full = mx.judge(choosing, mx.FixedExit(4)).score
    advice = recommend(outputs, max_loss=0.02, share=0.4, seed=7)
    goal = {"score": full - 0.02}
    wanted = by_hand(choosing, goal, lambda row: (row.speedup_layers, row.score))
    assert advice.row.policy == wanted.policy
    assert wanted.score >= full - 0.02


def test_rows_that_repeat_do_not_judge():
    keys = torch.arange(150).repeat(2)
    outputs = made(keys=keys)
    choosing, judging = outputs.split(0.5, 0)
    new = [key not in set(choosing.keys_B.tolist()) for key in judging.keys_B.tolist()]
    advice = recommend(outputs, speedup=1.5)
    assert advice.rows_judged == sum(new)
    assert advice.repeated == 150 - sum(new) > 0
    assert advice.row == mx.judge(judging.take(torch.tensor(new)), advice.row.policy)


def test_the_models_own_kind_keeps_its_other_numbers():
    outputs = made()
    advice = recommend(outputs, speedup=1.3, own=mx.PatientConfident(0.1, 2))
    (own,) = [row for row in advice.tried if isinstance(row.policy, mx.PatientConfident)]
    choosing, _ = outputs.split(0.5)
    assert own.policy == mx.calibrate(choosing, mx.PatientConfident(0.1, 2), speedup=1.3)


def test_a_fixed_exit_wins_where_the_input_tells_nothing():
    outputs = made()
    same = mx.Outputs(
        outputs.logits_MBC[-1:].expand(5, -1, -1), outputs.labels_B, outputs.cost, "accuracy"
    )
    advice = recommend(same, speedup=5)
    assert advice.row.policy == mx.FixedExit(0)
    assert advice.changed == 0
    said = plain_words.explain(advice, same.cost.layers_M, "accuracy")
    assert "Stop every input after layer 2 (exit 0)" in said
    assert "multiexit truncate" in said


def test_milliseconds_are_kept_on_the_rows_that_choose():
    outputs = made()
    zero = (0.0, 0.0)
    latency = mx.Latency("a CPU", (1, 8), zero, ((2.0, 4.0),) * 5, (zero,) * 5, zero, (10.0, 20.0))
    advice = recommend(outputs, milliseconds=6, latency=latency)
    assert 2 * sum((m + 1) * share for m, share in enumerate(advice.tried[0].shares_M)) <= 6
    said = plain_words.time(advice, latency, 1)
    assert "10 ms without early exits" in said


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "one target"),
        ({"speedup": 2, "max_loss": 0.1}, "one target"),
        ({"speedup": 0.5}, "1 without early exits"),
        ({"max_loss": -0.1}, "0 or more"),
        ({"milliseconds": 5}, "latency table"),
        ({"speedup": 9}, "reaches 9"),
        ({"speedup": 2, "share": 0.0001}, "empty"),
    ],
)
def test_what_cant_be_had_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        recommend(made(), **target)


def test_numbers_have_policies_too():
    outputs = made()
    scores = mx.Outputs(
        outputs.logits_MBC[..., :1] + torch.linspace(0, 9, 300)[:, None],
        torch.linspace(0, 5, 300),
        outputs.cost,
        "pearson_spearman",
        problem="regression",
    )
    advice = recommend(scores, speedup=1.2)
    assert advice.changed is None
    assert advice.row.speedup_layers > 1
    assert advice.interval[0] <= advice.difference <= advice.interval[1]


def test_the_interval_of_accuracy_against_a_table_of_four_cells():
    outputs = made(rows=50)
    one_BC, other_BC = outputs.logits_MBC[1], outputs.logits_MBC[4]
    cells = {(a, b): 0.5 for a in (True, False) for b in (True, False)}
    for one, other, label in zip(one_BC, other_BC, outputs.labels_B.tolist(), strict=True):
        cells[int(one.argmax()) == label, int(other.argmax()) == label] += 1
    n = sum(cells.values())
    p, q = cells[True, False] / n, cells[False, True] / n
    half = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / n)
    low, high = paired_interval(outputs, one_BC, other_BC)
    assert (low, high) == pytest.approx((p - q - half, p - q + half), abs=1e-6)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 400 sets whose true difference is 0.05 at least 93 % of the 95 % intervals hold it."""
    generator = torch.Generator().manual_seed(0)
    cost, held = mx.Cost((1,), (1,), (1,), full_macs=1), 0
    for _ in range(400):
        draw_B = torch.rand(120, generator=generator)
        right, other = draw_B < 0.8, (draw_B >= 0.1) & (draw_B < 0.85)
        labels_B = torch.zeros(120, dtype=torch.long)
        one_BC, other_BC = (torch.stack([x.float(), 1 - x.float()], 1) for x in (right, other))
        outputs = mx.Outputs(one_BC[None], labels_B, cost)
        low, high = paired_interval(outputs, one_BC, other_BC)
        held += low <= 0.05 <= high
    assert held >= 0.93 * 400


def test_the_bootstrap_of_another_metric_is_as_wide_as_the_formula():
    plain = made(rows=200)

    def right(predicted, labels):
        return float((predicted == labels).mean())

    mine = made(rows=200, metric=right)
    pair = plain.logits_MBC[1], plain.logits_MBC[4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_interval(mine, *pair) == pytest.approx(
            paired_interval(plain, *pair), abs=0.02
        )


@pytest.mark.parametrize("policy", [*mx.policies.POLICIES.values()], ids=lambda kind: kind.__name__)
def test_every_policy_has_words(policy):
    made_policy = {
        "FixedExit": lambda: policy(1),
        "Patience": lambda: policy(2),
        "PatientConfident": lambda: policy(0.2, 3),
    }.get(policy.__name__, lambda: policy(0.5))()
    assert "Stop by" not in plain_words.rule(made_policy, (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("never", "may"),
    [
        (mx.MostConfident(1.1), mx.MostConfident(1.0)),
        (mx.Settled(0.0), mx.Settled(0.1)),
        (mx.MaxProb((1.1, 1.1, 0.5)), mx.MaxProb((1.1, 0.9, 0.5))),
        (mx.Entropy((0.0, -1.0)), mx.Entropy((0.0, 0.1))),
        (mx.Patience(2), mx.Patience(1)),
        (mx.PatientConfident(0.5, 3), mx.PatientConfident(0.5, 2)),
    ],
)
def test_where_no_exit_can_stop_the_words_say_so(never, may):
    words = "No input stops early: each runs through all 6 layers"
    assert plain_words.rule(never, (2, 4, 6)).startswith(words)
    assert plain_words.rule(may, (2, 4, 6)).startswith("Stop when")
    surest = "is answered as the surest exit does" in plain_words.rule(never, (2, 4, 6))
    assert surest == isinstance(never, mx.MostConfident)
