"""Targets against searches over every setting; certificates that travel; keys of rows."""

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import Table, chain
from hypothesis import given
from hypothesis import strategies as st
from test_guarantee import outputs_of

import multiexit as mx
from multiexit import policies
from multiexit.data.row_keys import row_keys
from multiexit.evaluation import exit_losses
from multiexit.evaluation.grids import policy_settings
from multiexit.evaluation.recommendation import recommend

KINDS = [mx.MaxProb, mx.Entropy, mx.Margin, mx.Patience, mx.FixedExit]

# Exits cost 3, 4, 9 and 10 ms to reach alone, the network without early exits 8 ms.
TABLE = mx.Latency(
    "a machine",
    (1, 4),
    start_ms=(1.0, 2.0),
    stages_ms=((1.5, 2.0), (0.5, 1.0), (4.5, 5.0), (0.5, 0.5)),
    check_ms=((0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)),
    drop_ms=(0.0, 0.0),
    full_ms=(8.0, 10.0),
)
UNTIL_MS = [3.0, 4.0, 9.0, 10.0]


@pytest.fixture(scope="module")
def outputs():
    return outputs_of(300)


def every(outputs, kind):
    """Each setting that is tried, with its exits, score, layers, MACs and milliseconds by hand."""
    found = []
    for setting in policy_settings(kind, 4, 3):
        exits, answer_BC = policies.answers(setting, outputs.logits_MBC)
        right = int((answer_BC.argmax(-1) == outputs.labels_B).sum())
        counts = [exits.tolist().count(m) for m in range(4)]
        layers = sum((m + 1) * counts[m] for m in range(4)) / 300
        ms = sum(UNTIL_MS[m] * counts[m] for m in range(4)) / 300
        found.append((setting, right / 300, {"layers": 4 / layers, "time": 8 / ms}, ms))
    return found


def timed(by):
    return TABLE if by == "time" else None


# Targets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["layers", "time"])
def test_nothing_else_that_is_fast_enough_is_slower(kind, by, outputs):
    tried = every(outputs, kind)
    for wanted in (1.0, 1.1, 1.25):
        chosen = mx.calibrate(outputs, kind, speedup=wanted, by=by, latency=timed(by))
        score, speed = next((s, v[by]) for setting, s, v, _ in tried if setting == chosen)
        assert speed >= wanted
        fast = [(v[by], s) for _, s, v, _ in tried if v[by] >= wanted]
        assert not [1 for v, s in fast if v < speed - 1e-9]
        assert not [1 for v, s in fast if v < speed + 1e-9 and s > score + 1e-9]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["layers", "time"])
def test_nothing_else_that_scores_enough_is_faster(kind, by, outputs):
    tried = every(outputs, kind)
    for wanted in (0.5, 0.7, 0.8):
        chosen = mx.calibrate(outputs, kind, score=wanted, by=by, latency=timed(by))
        score, speed = next((s, v[by]) for setting, s, v, _ in tried if setting == chosen)
        assert score >= wanted
        assert not [s for _, s, v, _ in tried if s >= wanted and v[by] > speed + 1e-9]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_within_the_milliseconds_takes_longer(kind, outputs):
    tried = every(outputs, kind)
    for wanted in (6.2, 8.0, 9.99):
        chosen = mx.calibrate(outputs, kind, milliseconds=wanted, latency=TABLE)
        score, ms = next((s, ms) for setting, s, _, ms in tried if setting == chosen)
        assert ms <= wanted
        within = [(t, s) for _, s, _, t in tried if t <= wanted]
        assert not [1 for t, s in within if t > ms + 1e-9]
        assert not [1 for t, s in within if t > ms - 1e-9 and s > score + 1e-9]


def test_larger_batches_take_their_own_time(outputs):
    policy = mx.calibrate(outputs, mx.FixedExit, milliseconds=9.5, latency=TABLE)
    assert policy == mx.FixedExit(2)
    # Four rows until exit 2: 2 + 2 + 1 + 5 + 3 · 0.5 = 11.5 ms; until exit 1: 6 ms.
    batched = {"latency": TABLE, "batch_size": 4}
    assert mx.calibrate(outputs, mx.FixedExit, milliseconds=11.4, **batched) == mx.FixedExit(1)
    assert mx.calibrate(outputs, mx.FixedExit, milliseconds=11.6, **batched) == mx.FixedExit(2)
    assert mx.calibrate(outputs, mx.FixedExit, speedup=1.6, by="time", **batched) == mx.FixedExit(1)


def test_of_equal_scores_a_score_picks_the_fastest(outputs):
    same = replace(outputs, logits_MBC=outputs.logits_MBC[-1:].expand(4, -1, -1))
    assert mx.calibrate(same, mx.FixedExit, score=0.1) == mx.FixedExit(0)


def test_speed_by_macs_counts_the_heads(outputs):
    dear = replace(outputs, cost=mx.Cost((1, 2, 3, 4), (6, 8, 9, 10), (1, 1, 1, 1), 8))
    assert mx.calibrate(dear, mx.FixedExit, speedup=1.3, by="macs") == mx.FixedExit(0)
    assert mx.calibrate(dear, mx.FixedExit, speedup=1.3) == mx.FixedExit(2)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"speedup": 5.0}, r"no setting of FixedExit reaches 5.0× by layers; .* gives 4.00× at"),
        ({"speedup": 3.0, "by": "time", "latency": TABLE}, r"by time; .*\(exit=0\), gives 2.67×"),
        ({"score": 2.0}, r"scores 2.0; the best, FixedExit\(exit=3\), scores 0.\d+ at 1.00×"),
        (
            {"milliseconds": 2.5, "latency": TABLE},
            r"takes 2.5 ms for a batch of 1; .*\(exit=0\), takes 3 ms at a score .* exits 8 ms",
        ),
        ({"speedup": 2.0, "by": "time"}, r"latency=mx.profile\(model\)"),
        ({"milliseconds": 2.0}, r"latency=mx.profile\(model\)"),
        ({"milliseconds": 0.0, "latency": TABLE}, "milliseconds must be above 0, got 0.0"),
        ({"speedup": True}, "speedup must be above 0, got True"),
        ({"milliseconds": 9.0, "latency": TABLE, "batch_size": 0}, "batch_size must be .* got 0"),
        (
            {"speedup": 2.0, "by": "steps"},
            "no measure of speed called 'steps'; there are layers, macs, time",
        ),
        ({"score": math.nan}, "score must be a finite number, got nan"),
        ({"score": 0.5, "milliseconds": 9.0}, "one target.*got score and milliseconds"),
        ({"speedup": 1.3, "loss": "zzz"}, "loss, which goes with a risk, has no effect beside spe"),
        ({"score": 0.5, "loss": torch.zeros(4, 9)}, "loss, which goes with a risk, has no effect"),
        ({"speedup": 1.3, "confidence": 7}, "confidence, which goes with a risk, has no effect"),
        ({"risk": 0.2, "by": "zzz"}, "by, which goes with a speedup or a score, has no effect"),
        ({"speedup": 1.3, "batch_size": 0}, "batch_size, which goes with time, has no effect"),
        ({"speedup": 1.2, "latency": TABLE}, "latency goes with by='time' or milliseconds: leave"),
        ({"score": 0.5, "by": "macs", "latency": TABLE}, "latency goes with by='time' or"),
        ({"risk": 0.2, "latency": TABLE}, "latency goes with by='time' or milliseconds"),
        (
            {"milliseconds": 9.0, "latency": TABLE, "batch_size": 2.5},
            "batch_size must be a whole number, got 2.5",
        ),
        ({}, "one target.*got none"),
        (
            {"milliseconds": 9.0, "latency": TABLE.with_exits([1, 3])},
            "the latency table has 2 exits, these outputs have 4",
        ),
    ],
)
def test_what_cannot_be_had_says_what_can(wanted, message, outputs):
    with pytest.raises(ValueError, match=message):
        mx.calibrate(outputs, mx.FixedExit, **wanted)


@pytest.mark.parametrize(
    "ask",
    [
        lambda given: mx.calibrate(given, mx.MaxProb, speedup=2.0),
        lambda given: mx.calibration_table(given, mx.MaxProb),
        lambda given: mx.budgeted(given, 2.0),
        lambda given: mx.sweep(given, [mx.MaxProb(0.5)]),
        lambda given: recommend(given, speedup=2.0),
        mx.exit_scores,
    ],
)
def test_a_model_in_place_of_its_outputs_is_refused(ask):
    with pytest.raises(ValueError, match=r"collect\(model, data\) gives; got MultiExitModel"):
        ask(chain())


# Certificates


@pytest.fixture(scope="module")
def collected():
    return mx.collect(chain(), Table(400))


@pytest.mark.parametrize("confidence", [0.8, None])
@pytest.mark.parametrize("loss", ["disagreement", "accuracy"])
def test_a_certificate_says_what_was_certified(loss, confidence, collected):
    policy = mx.calibrate(collected, mx.MaxProb, risk=0.2, confidence=confidence, loss=loss)
    _, answer_BC = policies.answers(policy, collected.logits_MBC)
    lost = 0
    for early, full, label in zip(
        answer_BC.tolist(), collected.logits_MBC[-1].tolist(), collected.labels_B, strict=True
    ):
        said, last = early.index(max(early)), full.index(max(full))
        lost += said != last if loss == "disagreement" else last == label != said
    made = policy.certificate
    assert made is not None
    assert (made.loss, made.risk, made.confidence, made.rows) == (loss, 0.2, confidence, 400)
    assert made.observed == pytest.approx(lost / 400)
    assert exit_losses.realised(collected, policy, loss) == pytest.approx(lost / 400)
    assert list(made.keys) == sorted(collected.keys_B.tolist())


@pytest.fixture
def certified(collected):
    return mx.calibrate(collected, mx.MaxProb, risk=0.2)


def test_only_a_bounded_risk_has_a_certificate(collected):
    assert mx.calibrate(collected, mx.MaxProb, speedup=1.0).certificate is None
    assert mx.calibrate(collected, mx.MaxProb, score=0.1).certificate is None
    assert mx.budgeted(collected, 1.2).certificate is None


def test_a_changed_policy_has_none_and_an_equal_one_is_equal(certified):
    plain = mx.MaxProb(certified.threshold)
    assert plain == certified
    assert hash(plain) == hash(certified)
    assert plain.certificate is None
    assert replace(certified, threshold=0.5).certificate is None
    assert mx.MaxProb(0.5).with_certificate(certified.certificate).certificate is not None


def test_it_goes_with_what_it_was_given_for(mlp):
    model, inputs = mlp
    labels_B = torch.arange(len(inputs["x"])) % model.num_classes
    outputs = mx.collect(model, torch.utils.data.TensorDataset(inputs["x"], labels_B))
    certified = mx.MaxProb(0.9).with_certificate(mx.Certificate("disagreement", 0.1, 0.9, 9, 0.0))
    for change in (
        lambda: mx.keep_exits(model, range(model.num_exits)).policy.certificate is not None,
        lambda: mx.keep_exits(model, range(1, model.num_exits)).policy.certificate is None,
        lambda: mx.fit_temperatures(model, outputs) or model.policy.certificate is None,
    ):
        model.policy = certified
        assert change()
        assert certified.certificate is not None


def test_it_is_saved_with_the_model(certified, tmp_path):
    again = policies.from_json(json.loads(json.dumps(policies.to_json(certified))))
    assert again == certified
    assert again.certificate == certified.certificate
    model = mx.MultiExitModel(mx.cifar_resnet(20), 3)
    model.policy = certified
    model.save_pretrained(tmp_path)
    loaded = mx.MultiExitModel.from_pretrained(tmp_path).policy
    assert loaded == certified
    assert loaded.certificate == certified.certificate


@given(st.lists(st.integers(-(2**63), 2**63 - 1)) | st.none(), st.floats(0, 1) | st.none())
def test_any_certificate_comes_back_from_json(keys, confidence):
    keys = None if keys is None else tuple(sorted(keys))
    made = mx.Certificate("accuracy", 0.1, confidence, 7, 0.05, keys)
    assert mx.Certificate.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_rows_that_were_calibrated_on_do_not_judge(certified, collected):
    with pytest.raises(ValueError, match=r"400 of these 400 rows .*without\(policy.certificate\)"):
        mx.judge(collected, certified)
    with pytest.raises(ValueError, match="400 of these 400"):
        mx.sweep(collected, [mx.MaxProb(0.5), certified])
    with pytest.raises(ValueError, match="all 400 rows are among the 400"):
        collected.without(certified.certificate)
    plain = mx.MaxProb(certified.threshold)
    assert (
        mx.judge(collected, plain).score
        == mx.judge(replace(collected, keys_B=None), certified).score
    )


@pytest.mark.parametrize(("seen", "refused"), [(0, False), (3, False), (4, True)])
def test_a_few_rows_may_repeat(seen, refused, certified, collected):
    """Real data has duplicates: up to 1 % of the rows."""
    fresh = mx.collect(chain(), Table(297 + 3 - seen, seed=5))
    mixed = mx.Outputs(
        torch.cat([collected.logits_MBC[:, :seen], fresh.logits_MBC], 1),
        torch.cat([collected.labels_B[:seen], fresh.labels_B]),
        fresh.cost,
        keys_B=torch.cat([collected.keys_B[:seen], fresh.keys_B]),
    )
    if refused:
        with pytest.raises(ValueError, match="4 of these 300 rows"):
            mx.judge(mixed, certified)
    else:
        assert mx.judge(mixed, certified).policy == certified
    left = mixed.without(certified.certificate)
    assert torch.equal(left.logits_MBC, fresh.logits_MBC)
    assert torch.equal(left.keys_B, fresh.keys_B)
    assert mx.judge(left, certified) == mx.judge(fresh, mx.MaxProb(certified.threshold))


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_parts_the_rows(rows, share, seed):
    if int(rows * share + 1e-9) == 0:
        with pytest.raises(ValueError, match="leaves one of the two parts empty"):
            outputs_of(rows).split(share, seed)
        return
    numbered = replace(outputs_of(rows), keys_B=torch.arange(rows))
    one, other = numbered.split(share, seed)
    assert len(one.keys_B) == int(rows * share + 1e-9)
    assert sorted([*one.keys_B.tolist(), *other.keys_B.tolist()]) == list(range(rows))
    for part in (one, other):
        assert torch.equal(part.logits_MBC, numbered.logits_MBC[:, part.keys_B])
        assert torch.equal(part.labels_B, numbered.labels_B[part.keys_B])
    assert torch.equal(numbered.split(share, seed)[0].keys_B, one.keys_B)


def test_splits_differ_by_seed():
    numbered = replace(outputs_of(100), keys_B=torch.arange(100))
    assert len({tuple(numbered.split(0.5, seed)[0].keys_B.tolist()) for seed in range(9)}) == 9
    for share in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"share must be a number in \(0, 1\)"):
            numbered.split(share)
    for share in (0.001, 1 - 1e-12):
        with pytest.raises(ValueError, match=r"of 100 rows leaves one of the two parts empty"):
            numbered.split(share)


# Keys


def padded(texts, width, side="right"):
    """Token ids, segments and mask [B, width] of lists of tokens."""
    fields = {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    for text in texts:
        empty = [0] * (width - len(text))
        for name, row in zip(fields, (text, [t % 2 for t in text], [1] * len(text)), strict=True):
            fields[name].append(row + empty if side == "right" else empty + row)
    return {name: torch.tensor(rows) for name, rows in fields.items()}


TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=12)


@given(TEXTS, st.integers(0, 3), st.sampled_from(["left", "right"]), st.booleans())
def test_rows_have_one_key_if_and_only_if_they_are_the_same(texts, more, side, shared):
    """However they are padded, batched and ordered; `position_ids` have one row for all."""
    width = max(map(len, texts))

    def keys(some, width, side="right"):
        inputs = padded(some, width, side)
        if shared and side == "right":  # padded on the left, they give tokens other positions
            inputs["position_ids"] = torch.arange(width)[None]
        found = row_keys((), inputs, len(some))
        assert found is not None
        assert found.dtype == torch.int64
        return found.tolist()

    together = keys(texts, width)
    assert (len(set(together))) == len(set(map(tuple, texts)))
    for text, key in zip(texts, together, strict=True):
        assert [k for t, k in zip(texts, together, strict=True) if t == text].count(key) >= 1
        assert keys([text], len(text)) == [key]
    assert keys(texts[::-1], width + more) == together[::-1]
    if not shared:
        assert keys(texts, width + more, side) == together


def test_every_value_of_every_input_counts():
    x, y = torch.randn(3, 2, 4), torch.randn(3)
    first = row_keys((x,), {"y": y}, 3)
    for b in range(3):
        for values in (x[b].reshape(-1), y[b : b + 1]):
            for i in range(len(values)):
                old = values[i].clone()
                values[i] = torch.nextafter(old, torch.tensor(9.0))
                changed = row_keys((x,), {"y": y}, 3)
                assert (changed == first).tolist() == [other != b for other in range(3)]
                values[i] = old
    assert torch.equal(first, row_keys((x,), {"y": y}, 3))
    one, two, three = (torch.tensor([[1.0, 2, 3][:n]]) for n in (1, 2, 3))
    rest = three[:, 1:], three[:, 2:]
    assert row_keys((one, rest[0]), {}, 1) != row_keys((two, rest[1]), {}, 1)


def test_the_same_row_given_otherwise_has_its_key():
    ids, mask = torch.randint(1, 99, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    text = {"input_ids": ids, "attention_mask": mask}
    types = torch.zeros_like(ids)
    types[2, 3] = 1
    alone, typed = (row_keys((), each, 3) for each in (text, {**text, "token_type_ids": types}))
    assert (alone == typed).tolist() == [True, True, False]
    zeros = torch.zeros(3, 2)
    assert torch.equal(row_keys((zeros,), {}, 3), row_keys((-zeros,), {}, 3))


@pytest.mark.parametrize(
    ("args", "inputs"),
    [
        (((torch.zeros(2), torch.ones(2)),), {}),
        ((), {"image": {"pixels": torch.zeros(2, 3)}}),
        ((torch.zeros(5, 2),), {}),
        ((torch.zeros(1, 2),), {}),
        ((), {"scale": 2.0}),
    ],
)
def test_rows_that_cannot_be_told_apart_have_no_keys(args, inputs):
    assert row_keys(args, inputs, 2) is None


def test_collected_keys_are_in_the_sets_order_in_any_batch(make_backbone, text):
    from test_judging import Texts

    model = mx.MultiExitModel(make_backbone("bert"), 3)
    rows = Texts(text(24), torch.arange(24) % 3)
    one, other = (mx.collect(model, rows, batch_size=size).keys_B for size in (1, 7))
    assert torch.equal(one, other)
    inputs = {name: value[5:6, : rows.lengths[5]] for name, value in rows.inputs.items()}
    assert one[5] == row_keys((), inputs, 1)
    batches = [{"inputs_embeds": torch.randn(2, 3, 16), "labels": torch.tensor([0, 1])}]
    assert len(set(mx.collect(model, batches).keys_B.tolist())) == 2


def test_rows_that_leave_at_an_exit_which_has_learnt_nothing_are_warned_of():
    torch.manual_seed(0)
    labels_B = torch.arange(200) % 2
    logits_MBC = torch.randn(3, 200, 2) * 0.1
    logits_MBC[0, :, 1] += 1  # the same answer for all
    logits_MBC[1:, torch.arange(200), labels_B] += 3
    cost = mx.Cost((1, 2, 3), (1, 2, 3), (1, 2, 3), full_macs=3)
    outputs = mx.Outputs(logits_MBC, labels_B, cost)
    with pytest.warns(UserWarning, match=r"leave at exit 0.*no more than one class for all"):
        mx.calibrate(outputs, mx.MaxProb, speedup=2.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.calibrate(outputs, mx.MaxProb, speedup=1.2)  # leaves at exit 1


def test_certainties_are_calibrated_and_recommended(outputs):
    right_MB = outputs.logits_MBC.argmax(-1) == outputs.labels_B
    told = replace(outputs, certainty_MB=0.1 + 0.8 * right_MB)
    chosen = mx.calibrate(told, mx.Certainty, speedup=1.2)
    assert mx.judge(told, chosen).speedup_layers >= 1.2
    assert isinstance(recommend(told, speedup=1.2).row.policy, mx.Certainty)
