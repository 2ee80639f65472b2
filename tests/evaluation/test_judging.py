"""Collect, judge, sweep and calibrate against loops over rows."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import multiexit as mx
from multiexit.serving.speedup import measured_speedup

POLICIES = [
    mx.Entropy(0.8),
    mx.NormalizedEntropy(0.6),
    mx.MaxProb(0.7),
    mx.Margin(0.4),
    mx.Patience(1),
    mx.Patience(3),
    mx.PatientConfident(0.8, 2),
    mx.FixedExit(0),
    mx.FixedExit(4),
]


class Texts(Dataset):
    """Rows of different lengths, padded to the longest of their batch."""

    def __init__(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor):
        self.lengths = inputs["attention_mask"].sum(1).tolist()
        self.inputs, self.labels = inputs, labels
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict:
        self.asked.append(row)
        length = self.lengths[row]
        cut = {key: value[row, :length] for key, value in self.inputs.items()}
        return {**cut, "labels": self.labels[row]}

    def collate(self, rows: list[dict]) -> dict:
        longest = max(len(row["input_ids"]) for row in rows)
        padded = [
            {
                key: value
                if key == "labels"
                else torch.nn.functional.pad(value, (0, longest - len(value)))
                for key, value in row.items()
            }
            for row in rows
        ]
        return default_collate(padded)


@pytest.fixture
def texts(network_bert):
    model, inputs = network_bert
    return model, Texts(inputs, torch.randint(3, (24,)))


@pytest.fixture
def network_bert(make_backbone, text):
    torch.manual_seed(1)
    return mx.MultiExitModel(make_backbone("bert"), 3).eval(), text(24)


@pytest.fixture
def outputs(mlp) -> mx.Outputs:
    model, inputs = mlp
    return mx.collect(model, TensorDataset(inputs["x"], torch.arange(24) % 3))


# Collect


def test_rows_come_back_in_the_set_s_order(texts):
    model, rows = texts
    got = mx.collect(model, rows, batch_size=5)
    assert torch.equal(got.labels_B, rows.labels)
    lengths = [rows.lengths[row] for row in rows.asked]
    assert lengths == sorted(lengths, reverse=True), "long rows first, so that little is padded"
    assert sorted(rows.asked) == list(range(24))
    for row in range(24):
        with torch.no_grad():
            alone = model(**{key: value[row : row + 1] for key, value in rows.inputs.items()})
        torch.testing.assert_close(got.logits_MBC[:, row], alone[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
def test_batches_make_no_difference(batch_size, mlp):
    model, inputs = mlp
    labels = torch.arange(24) % 3
    rows = TensorDataset(inputs["x"], labels)
    with torch.no_grad():
        wanted = model(**inputs)
    named = [
        {"x": x, "labels": y}
        for x, y in zip(inputs["x"].split(batch_size), labels.split(batch_size), strict=True)
    ]
    for data in (rows, DataLoader(rows, batch_size), named, iter(named)):
        got = mx.collect(model, data, batch_size=batch_size)
        torch.testing.assert_close(got.logits_MBC, wanted)
        assert torch.equal(got.labels_B, labels)
        assert got.metric == "accuracy"
        assert got.cost == model.cost()
        assert got.num_exits == 5
        assert not got.logits_MBC.requires_grad


def test_collecting_is_in_evaluation_mode_and_puts_the_mode_back(make_backbone):
    model = mx.MultiExitModel(make_backbone("resnet"), 3, exits=[2, 8])
    rows = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        first, second = (mx.collect(model, rows, batch_size=size) for size in (1, 4))
        torch.testing.assert_close(first.logits_MBC, second.logits_MBC)
        assert model.training is training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_regression_is_judged_by_its_correlations(regressor):
    model, inputs = regressor
    labels = torch.rand(24) * 5
    got = mx.collect(model, [{**inputs, "labels": labels}])
    assert got.metric == "pearson_spearman"
    for logits_B1, scores in zip(got.logits_MBC, mx.exit_scores(got), strict=True):
        x, y = logits_B1[:, 0].double(), labels.double()
        x, y = x - x.mean(), y - y.mean()
        wanted = float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())
        assert scores["pearson"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("make", [lambda: TensorDataset(torch.zeros(0, 6), torch.zeros(0)), list])
def test_nothing_to_collect_is_refused(make, mlp):
    with pytest.raises(ValueError, match="no rows"):
        mx.collect(mlp[0], make())


def test_collect_names_what_is_wrong(mlp):
    model, inputs = mlp
    labels = torch.arange(24) % 3
    with pytest.raises(ValueError, match="no metric 'f2'; there are"):
        mx.collect(model, [(inputs["x"], labels)], metric="f2")
    with pytest.raises(ValueError, match=r"a batch is .* got keys \['x'\]"):
        mx.collect(model, [inputs])
    x = inputs["x"].clone()
    x[4] = math.nan
    batches = list(zip(x.split(3), labels.split(3), strict=True))
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 4"):
        mx.collect(model.train(), batches)
    assert model.training


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_outside_the_classes_are_named(wrong, mlp):
    model, inputs = mlp
    labels = torch.arange(24) % 3
    labels[20] = wrong
    with pytest.raises(ValueError, match=f"{wrong} in row 20"):
        mx.collect(model, TensorDataset(inputs["x"], labels), batch_size=6)


# Judge and sweep


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_judge_equals_a_loop_over_rows(policy, outputs):
    row, cost, N = mx.judge(outputs, policy), outputs.cost, 24
    right, layers, macs, at = 0, 0, 0, [0] * 5
    for n in range(N):
        exit = int(mx.simulate(policy, outputs.logits_MBC[:, [n]])[0])
        z = outputs.logits_MBC[exit, n].tolist()
        right += z.index(max(z)) == int(outputs.labels_B[n])
        layers += exit + 1
        macs += cost.macs_M[exit]
        at[exit] += 1
    assert row.policy == policy
    assert row.score == row.scores["accuracy"] == pytest.approx(right / N)
    assert row.mean_layers == pytest.approx(layers / N)
    assert row.speedup_layers == pytest.approx(5 * N / layers)
    full = 5 * 36 + 18  # five Linear(6, 6) and one Linear(6, 3)
    assert row.speedup_macs == pytest.approx(full * N / macs)
    assert row.shares_M == pytest.approx([count / N for count in at])


def test_exit_scores_are_those_of_fixed_exits(outputs):
    for m, scores in enumerate(mx.exit_scores(outputs)):
        row = mx.judge(outputs, mx.FixedExit(m))
        assert row.scores == scores
        assert row.mean_layers == m + 1
        assert row.shares_M == [float(m == exit) for exit in range(5)]
    assert row.speedup_layers == 1
    assert row.speedup_macs < 1  # all heads are asked, nobody left


def test_layers_are_stages_where_exits_are_few(mlp, make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 3, exits=[1, 3])
    got = mx.collect(model, [(mlp[1]["x"], torch.arange(24) % 3)])
    row = mx.judge(got, mx.FixedExit(0))
    assert (row.mean_layers, row.speedup_layers) == (2, 2)
    assert row.speedup_macs == pytest.approx((4 * 36 + 18) / (2 * 36 + 18))


def test_a_sweep_takes_any_policies_and_no_single_one(outputs):
    assert mx.sweep(outputs, iter(POLICIES)) == mx.sweep(outputs, POLICIES)
    for wrong in (mx.MaxProb, mx.MaxProb(0.5)):
        with pytest.raises(ValueError, match="takes a list of policies"):
            mx.sweep(outputs, wrong)
    with pytest.raises(ValueError, match=r"its class is wanted, .* got 'max-prob'"):
        mx.calibrate(outputs, "max-prob", speedup=2)


def test_a_sweep_is_a_row_for_each_and_goes_into_json(outputs):
    rows = mx.sweep(outputs, POLICIES)
    assert [row.policy for row in rows] == POLICIES
    for row, again in zip(rows, json.loads(json.dumps([r.to_json() for r in rows])), strict=True):
        assert again["score"] == row.score
        assert mx.judge(outputs, row.policy) == row
        assert again["policy"]["class"] == type(row.policy).__name__
        assert len(again["shares_M"]) == 5


def test_predict_earns_the_score_that_judge_foretells(network):
    model, inputs = network
    labels = torch.arange(24) % 3
    got = mx.collect(model, [{**inputs, "labels": labels}])
    for policy in POLICIES:
        answers, exit_B = model.predict(policy, **inputs)
        row = mx.judge(got, policy)
        assert float((answers.argmax(-1) == labels).double().mean()) == pytest.approx(row.score)
        assert float((exit_B + 1).double().mean()) == pytest.approx(row.mean_layers)


def test_the_speedup_is_the_full_networks_time_over_ours(monkeypatch):
    def in_turn(calls, repeats):
        ours, theirs = calls
        ours(), theirs()
        return 2.0, 5.0

    monkeypatch.setattr("multiexit.serving.speedup.median_seconds", in_turn)
    chain = torch.nn.Sequential(*(torch.nn.Linear(300, 300) for _ in range(12)))
    model = mx.MultiExitModel(mx.wrap(chain), 3).eval()
    rows = TensorDataset(torch.randn(64, 300), torch.zeros(64, dtype=torch.long))
    assert measured_speedup(model, mx.FixedExit(0), rows, batch_size=64) == 2.5


# Calibrate


KINDS = [mx.Entropy, mx.NormalizedEntropy, mx.MaxProb, mx.Margin, mx.Patience, mx.FixedExit]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("speedup", [1.0, 1.2, 1.4])
def test_the_slowest_of_those_that_are_fast_enough(kind, speedup, outputs):
    policy = mx.calibrate(outputs, kind, speedup=speedup)
    assert isinstance(policy, kind)
    chosen = mx.judge(outputs, policy)
    assert chosen.speedup_layers >= speedup
    numbers = {mx.Patience: range(1, 5), mx.FixedExit: range(5)}
    tried = [kind(n) for n in numbers.get(kind, torch.linspace(0, 1.2, 61).tolist())]
    fast = [row for row in mx.sweep(outputs, tried) if row.speedup_layers >= speedup]
    slowest = min(row.speedup_layers for row in fast)
    # Another grid than its own may find a slower setting, by a row's leaving a few exits later.
    spare = 0 if kind in numbers else 4 / 24
    assert 1 / chosen.speedup_layers >= 1 / slowest - spare
    if kind in numbers:
        assert chosen.score == max(row.score for row in fast if row.speedup_layers == slowest)


def test_the_first_exit_can_be_chosen(outputs):
    assert mx.calibrate(outputs, mx.FixedExit, speedup=5.0) == mx.FixedExit(0)


def test_what_no_setting_reaches_is_refused_with_the_fastest(outputs):
    with pytest.raises(ValueError, match=r"no setting of Patience reaches 4.*Patience\(patience=1"):
        mx.calibrate(outputs, mx.Patience, speedup=4.0)


@pytest.mark.parametrize("speedup", [0.0, -1.0, math.nan, math.inf])
def test_a_speedup_that_is_none_is_refused(speedup, outputs):
    with pytest.raises(ValueError, match="speedup must be above 0"):
        mx.calibrate(outputs, mx.Entropy, speedup=speedup)


def test_a_policy_of_two_numbers_is_refused(outputs):
    with pytest.raises(ValueError, match="PatientConfident"):
        mx.calibrate(outputs, mx.PatientConfident, speedup=1.5)


def test_all_settings_are_alike_with_one_exit(outputs):
    cost = mx.Cost((5,), (100,), (10,), 100)
    single = mx.Outputs(outputs.logits_MBC[:1], outputs.labels_B, cost)
    assert mx.judge(single, mx.calibrate(single, mx.Patience, speedup=1.0)).speedup_layers == 1
    with pytest.raises(ValueError, match=r"no setting of Patience reaches 1\.5×"):
        mx.calibrate(single, mx.Patience, speedup=1.5)


@dataclass(frozen=True)
class Late(mx.ExitPolicy):
    """Annotated with words, as modules are that begin with `from __future__ import annotations`."""

    exit: "int"

    def __post_init__(self):
        if not isinstance(self.exit, int):
            raise ValueError(f"exit must be a whole number, got {self.exit}")

    def init(self, logits_BC):
        return {"index": torch.zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state, logits_BC):
        return {"index": state["index"] + 1}, state["index"] >= self.exit


def test_a_whole_number_may_be_annotated_as_a_string(outputs):
    assert mx.calibrate(outputs, Late, speedup=5.0) == Late(0)


def test_outputs_say_where_rows_leave_as_a_loop_over_them_does():
    logits_MBC = torch.randn(3, 40, 3, generator=torch.Generator().manual_seed(0))
    cost = mx.Cost((1, 2, 3), (10, 20, 30), (5, 10, 15), full_macs=25)
    outputs = mx.Outputs(logits_MBC, logits_MBC[-1].argmax(-1), cost)
    policy = mx.MaxProb(0.6)
    exits = []
    for row in range(40):
        sure = [float(logits_MBC[m, row].softmax(-1).max()) >= 0.6 for m in range(3)]
        exits.append(sure.index(True) if any(sure) else 2)
    exit_B, answer_BC = outputs.answers(policy)
    assert exit_B.tolist() == exits
    assert torch.equal(answer_BC, torch.stack([logits_MBC[m, row] for row, m in enumerate(exits)]))
    assert outputs.shares(policy).tolist() == [exits.count(m) / 40 for m in range(3)]
    with pytest.raises(ValueError, match="no rows"):
        outputs.take(torch.tensor([], dtype=torch.long)).shares(policy)
