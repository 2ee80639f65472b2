"""The engine says what `predict` says, whatever is switched on, and runs less for it."""

import copy
import json
import math
import pickle
import re
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import Text, chain, command
from hypothesis import given, settings
from hypothesis import strategies as st
from test_folding import CHANGES, calibrate, there_and_back, through_numpy
from test_model import Countdown, Spy
from torch.utils.data import DataLoader, TensorDataset

import multiexit as mx
from multiexit.data import padding
from multiexit.model import exit_loop
from multiexit.model.latency import machine_of

POLICIES = [mx.MaxProb(0.6), mx.Entropy(0.5), mx.Patience(2), mx.MostConfident(0.7)]


def same(got, wanted) -> None:
    assert torch.equal(got.exit_B, wanted.exit_B)
    torch.testing.assert_close(got.logits_BC, wanted.logits_BC, atol=1e-4, rtol=1e-4)


def batches(inputs, sizes):
    """The inputs cut into batches."""
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    return [{k: v[a:b] for k, v in inputs.items()} for a, b in pairwise(bounds)]


def table(model, stages, drop, sizes=(1, 24)):
    """A latency table in which each stage takes `stages` ms at each size."""
    M, S = model.num_exits, len(sizes)
    zero = (0.0,) * S
    return mx.Latency(
        machine_of(model),
        sizes,
        zero,
        (stages,) * M,
        (zero,) * M,
        (drop,) * S,
        zero,
    )


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_one_batch_is_answered_as_by_predict(network, policy):
    model, inputs = network
    wanted = model.predict(policy, **inputs)
    assert len(wanted.exit_B.unique()) > 1
    same(mx.Engine(model, policy).predict(**inputs), wanted)
    for latency in (table(model, (1.0, 9.0), 0.0), table(model, (1.0, 1.0), 5.0)):
        same(mx.Engine(model, policy, latency=latency).predict(**inputs), wanted)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 11), min_size=1, max_size=8),
    batch_size=st.integers(1, 9),
    window=st.integers(1, 5),
)
def test_a_stream_is_answered_as_by_predict(network, policy, sizes, batch_size, window):
    model, inputs = network
    rows = torch.arange(sum(sizes)) % 24
    inputs = {name: value[rows] for name, value in inputs.items()}
    wanted = model.predict(policy, **inputs)
    got = list(mx.Engine(model, policy).stream(batches(inputs, sizes), batch_size, window))
    assert [len(answer.exit_B) for answer in got] == sizes
    same(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


@pytest.mark.parametrize("head", ["linear+lte", "linear+mix", "linear+cascade"])
def test_what_heads_remember_stays_with_its_row(head):
    model, x = chain(head=head).eval(), 3 * torch.randn(30, 6)
    policy = mx.Certainty(0.55) if "lte" in head else mx.MaxProb(0.45)
    wanted = model.predict(policy, x)
    assert len(wanted.exit_B.unique()) > 1
    got = mx.Engine(model, policy).stream(x.split(4), batch_size=5, window=3)
    same(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


@pytest.mark.parametrize("kind", ["bert", "mlp"])
def test_compiled_segments_say_the_same(kind, request):
    model, inputs = request.getfixturevalue(kind)
    rows = len(next(iter(inputs.values())))
    wanted = model.predict(mx.MaxProb(0.6), **inputs)
    engine = mx.Engine(model, mx.MaxProb(0.6), compile=True)
    same(engine.predict(**inputs), wanted)
    got = engine.stream(batches(inputs, [rows - 4, 4]), batch_size=4)
    same(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


def test_a_data_set_streams_in_its_own_order(bert):
    model, _ = bert
    data, policy = Text(20), mx.MaxProb(0.6)
    every = data.collate([data[row] for row in range(20)])
    every.pop("labels")
    got = mx.Engine(model, policy).stream(data, batch_size=6)
    same(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), model.predict(policy, **every))


def test_a_stream_takes_what_a_loader_gives(mlp):
    model, inputs = mlp
    pairs = DataLoader(TensorDataset(inputs["x"], torch.zeros(24)), 5)
    got = mx.Engine(model, mx.Patience(2)).stream(pairs)
    wanted = model.predict(mx.Patience(2), **inputs)
    same(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


def test_it_reads_no_further_ahead_than_its_window(mlp):
    model, inputs = mlp
    read = []

    def source():
        for number, batch in enumerate(inputs["x"].split(4)):
            read.append(number)
            yield batch

    answers = mx.Engine(model, mx.Patience(2)).stream(source(), batch_size=4, window=2)
    next(answers)
    assert read == [0, 1]


def read_by(stream):
    """Answers until the error, and the error."""
    answers = []
    try:
        for answer in stream:
            answers.append(answer)
    except Exception as error:
        return answers, error
    return answers, None


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("bad", [0, 1, 4, 7])
def test_good_answers_come_before_what_a_row_does(mlp, bad, window):
    model, inputs = mlp
    x, policy = inputs["x"].clone(), mx.MaxProb(0.6)
    wanted = model.predict(policy, x)
    x[3 * bad + 1 : 3 * bad + 3, 0] = math.nan
    stream = mx.Engine(model, policy).stream(x.split(3), batch_size=4, window=window)
    answers, error = read_by(stream)
    assert len(answers) == bad
    for number, answer in enumerate(answers):
        same(answer, mx.Prediction(*(part[3 * number : 3 * number + 3] for part in wanted)))
    assert isinstance(error, ValueError)
    assert f"exit 0 gave NaN or infinite logits for row {3 * bad + 1} (batch {bad} of" in str(error)


@pytest.mark.parametrize("window", [2, 4, 8])
def test_good_answers_come_before_the_sources_error(mlp, window):
    model, inputs = mlp

    def source(end):
        yield from inputs["x"][:12].split(4)
        yield from end()

    def broken():
        raise OSError("the line is dead")

    engine = mx.Engine(model, mx.MaxProb(0.6))
    for end, kind, message in (
        (broken, OSError, "the line is dead"),
        (lambda: [{"y": inputs["x"]}], ValueError, "batch 3 of the stream: .*takes x"),
        (lambda: ["words"], ValueError, "batch 3 of the stream: a batch is"),
        (lambda: [torch.zeros(2, 5)], RuntimeError, "mat1|shape"),
    ):
        answers, error = read_by(engine.stream(source(end), batch_size=4, window=window))
        assert isinstance(error, kind)
        assert re.search(message, str(error))
        got = mx.Prediction(*map(torch.cat, zip(*answers, strict=True)))
        same(got, model.predict(mx.MaxProb(0.6), inputs["x"][:12]))


def test_what_has_come_is_answered_while_the_source_stalls(mlp):
    model, inputs = mlp
    more = threading.Event()

    def source():
        yield from inputs["x"][:12].split(4)
        assert more.wait(60)
        yield from inputs["x"][12:].split(4)

    answers = mx.Engine(model, mx.MaxProb(0.6)).stream(source(), batch_size=4)
    first = [next(answers) for _ in range(3)]
    more.set()
    got = mx.Prediction(*map(torch.cat, zip(*first, *answers, strict=True)))
    same(got, model.predict(mx.MaxProb(0.6), **inputs))


def test_empty_batches_have_empty_answers(mlp):
    model, inputs = mlp
    x = inputs["x"]
    for parts in ([x[:0]], [x[:0], x[:3], x[:0], x[3:5]], [x[:0], x[:0]]):
        got = mx.Engine(model, mx.Patience(1)).stream(parts)
        assert [len(answer.exit_B) for answer in got] == [len(part) for part in parts]


@pytest.mark.parametrize("name", ["batch_size", "window"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(1.5, "a whole number, got 1.5"), (True, "whole"), ("8", "whole number, got '8'"),
     (math.nan, "whole"), (0, "at least 1, got 0"), (-3, "at least 1, got -3")],
)  # fmt: skip
def test_sizes_of_a_stream_are_checked_when_it_is_asked_for(mlp, name, value, message):
    model, inputs = mlp
    engine = mx.Engine(model, mx.Patience(1))
    with pytest.raises(ValueError, match=f"{name} must be .*{message}"):
        engine.stream([inputs], **{name: value})
    assert len(list(engine.stream([inputs], **{name: np.int64(2)}))) == 1


def test_one_batch_is_no_stream(mlp):
    model, inputs = mlp
    for one in (inputs["x"], inputs, "words", 3):
        with pytest.raises(ValueError, match=r"such as x\.split\(32\); got one"):
            mx.Engine(model, mx.Patience(1)).stream(one)


# A model that changes


@pytest.mark.parametrize("kind", ["bert", "mlp"])
def test_an_engine_without_a_copy_follows_its_model(kind, request):
    model, inputs = request.getfixturevalue(kind)
    engine, policy = mx.Engine(model, mx.MaxProb(0.6)), mx.MaxProb(0.6)
    for change in CHANGES.values():
        change(model)
        same(engine.predict(**inputs), model.predict(policy, **inputs))


def test_a_compiled_engine_follows_its_model():
    model, x, policy = chain(exits=2).eval(), 3 * torch.randn(8, 6), mx.MaxProb(0.6)
    engine = mx.Engine(model, policy, compile=True)
    engine.predict(x)
    for change in CHANGES.values():
        change(model)
        if change in (through_numpy, there_and_back, calibrate):
            same(engine.predict(x), model.predict(policy, x))


def test_an_engine_keeps_its_policy(mlp):
    model, inputs = mlp
    model.policy = mx.FixedExit(1)
    engine = mx.Engine(model)
    model.policy = mx.FixedExit(3)
    assert engine.predict(**inputs).exit_B.unique().tolist() == [1]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))]
)
def test_copies_of_an_engine_answer_as_it_does(network, copied):
    model, inputs = network
    policy = mx.MaxProb(0.6)
    engine = mx.Engine(model, policy, latency=table(model, (1.0, 9.0), 0.0))
    other = copied(engine)
    assert (other.policy, other.latency) == (policy, engine.latency)
    same(other.predict(**inputs), engine.predict(**inputs))
    with pytest.raises(ValueError, match="whole number"):
        other.stream([inputs], window=1.5)


# What is saved


@pytest.fixture
def spied(bert):
    """A tiny BERT whose stages are watched."""
    model, inputs = bert
    model.backbone = Spy(model.backbone)
    return model, model.backbone, inputs


def test_shared_padding_is_not_computed(spied):
    model, spy, inputs = spied
    wide = {name: torch.nn.functional.pad(value, (0, 20)) for name, value in inputs.items()}
    widths = []
    start = spy.inner.start

    def watch(**given):
        widths.append(given["input_ids"].shape[1])
        return start(**given)

    spy.inner.start = watch
    engine = mx.Engine(model, mx.Patience(1))
    same(engine.predict(**wide), model.predict(mx.Patience(1), **inputs))
    assert widths == [8, 9]  # six rows of 3 to 8 tokens, in a batch of 29, then of 9


def test_deep_stages_of_a_stream_run_full(mlp):
    """Half of the rows leave at each exit; what is left of eight batches fills fewer."""
    model, _ = mlp
    spy = model.backbone = Spy(model.backbone)
    x = 3 * torch.randn(512, 6)
    policy = mx.MaxProb(0.6)
    staying = 512 - model.predict(policy, x).exit_B.bincount(minlength=5).cumsum(0)
    spy.seen.clear()
    list(mx.Engine(model, policy).stream(x.split(32), batch_size=32, window=16))
    here = [512, *staying[:-1].tolist()]
    for stage, rows in enumerate(here):
        sizes = [size for at, size in spy.seen if at == stage]
        assert sum(sizes) == rows
        assert sum(size >= 32 for size in sizes) >= len(sizes) - 1  # all full but the last
    assert here[1] < 512


def test_rows_are_dragged_along_where_dropping_them_costs_more(mlp):
    model, inputs = mlp
    spy = model.backbone = Spy(model.backbone)
    policy = mx.MaxProb(0.6)
    flat = mx.Engine(model, policy, latency=table(model, (1.0, 1.0), 0.1))
    flat.predict(**inputs)
    assert {size for _, size in spy.seen} == {24}
    spy.seen.clear()
    steep = mx.Engine(model, policy, latency=table(model, (1.0, 24.0), 0.1))
    steep.predict(**inputs)
    stay_S = 24 - model.predict(policy, **inputs).exit_B.bincount(minlength=5).cumsum(0)
    assert [size for _, size in spy.seen[:5]] == [24, *stay_S[:-1].tolist()]


@pytest.mark.parametrize("drop", [0.0, 3.0, 9.0, 20.0, 50.0])
def test_rows_are_dropped_once_dragging_them_has_cost_more(mlp, drop):
    """A stage takes a millisecond per row; dropping rows takes `drop`."""
    model, inputs = mlp
    policy = mx.MaxProb(0.75)
    here_M = 24 - model.predict(policy, **inputs).exit_B.bincount(minlength=5).cumsum(0)
    sizes, size, wasted = [24], 24, 0.0
    for here in here_M[:-1].tolist():
        wasted += size - here
        if size > here and wasted > drop:
            size, wasted = here, 0.0
        sizes.append(size)
    spy = model.backbone = Spy(model.backbone)
    mx.Engine(model, policy, latency=table(model, (1.0, 24.0), drop)).predict(**inputs)
    assert [rows for _, rows in spy.seen] == sizes


def test_when_all_have_left_nothing_more_runs(mlp):
    model, inputs = mlp
    spy = model.backbone = Spy(model.backbone)
    flat = mx.Engine(model, mx.FixedExit(1), latency=table(model, (1.0, 1.0), 9.0))
    flat.predict(**inputs)
    assert spy.seen == [(0, 24), (1, 24)]


# Groups


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_merging_and_resizing_keep_each_row_whole(data):
    """Whatever is merged, shrunk and filled up: each row keeps its carry, memory and state."""
    groups, number = [], 0
    for _ in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.integers(1, 5))
        ids = torch.arange(number, number + size)
        number += size
        running_B = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        running_B[0] = True
        carry = {"x": ids.float().unsqueeze(1), "mask": None}
        memory, state = {"m": 2 * ids}, {"s": 3 * ids}
        groups.append(
            exit_loop.Group(1, int(running_B.sum()), ids, running_B, carry, memory, state)
        )
    merged = exit_loop.merge(groups)
    assert merged.running == sum(group.running for group in groups)
    size = merged.running + data.draw(st.integers(0, 3))
    resized = exit_loop.resize(merged, size)
    running_B = resized.running_B
    alive = [int(row) for group in groups for row in group.rows_B[group.running_B]]
    assert len(resized.rows_B) == size
    assert resized.rows_B[running_B].tolist() == alive
    assert torch.equal(resized.carry["x"][:, 0], resized.rows_B.float())
    assert torch.equal(resized.memory["m"], 2 * resized.rows_B)
    assert torch.equal(resized.state["s"], 3 * resized.rows_B)
    assert resized.carry["mask"] is None


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 8))
def test_trimming_keeps_every_real_token(rows, tokens, step):
    mask = torch.randint(2, (rows, tokens))
    mask[:, 0] = 1
    ids = torch.arange(1, rows * tokens + 1).view(rows, tokens)
    cut = padding.trim({"input_ids": ids, "attention_mask": mask, "other": 3}, step)
    width = cut["input_ids"].shape[1]
    assert width % step == 0
    assert width - step < max(int(row.nonzero().max()) + 1 for row in mask)
    real = cut["attention_mask"].bool()
    assert torch.equal(cut["input_ids"][real], ids[mask.bool()])
    assert cut["other"] == 3


def test_one_row_for_all_is_spread_when_batches_are_joined():
    one = {"x": torch.ones(3, 2), "place": torch.tensor([[5, 6]])}
    two = {"x": torch.zeros(2, 2), "place": torch.tensor([[7, 8]])}
    joined = padding.join([one, two], [3, 2])
    assert joined["x"].shape == (5, 2)
    assert joined["place"].tolist() == [[5, 6]] * 3 + [[7, 8]] * 2


# The latency table


def test_a_profile_measures_every_part(bert, tmp_path):
    model, inputs = bert
    latency = mx.profile(model, inputs=inputs, batch_sizes=(1, 3), repeats=1)
    M = model.num_exits
    assert latency.batch_sizes == (1, 3)
    assert [len(part) for part in (latency.stages_ms, latency.check_ms)] == [M, M]
    every = [*latency.stages_ms, *latency.check_ms, latency.start_ms, latency.full_ms]
    assert all(len(part) == 2 and min(part) > 0 for part in [*every, latency.drop_ms])
    until = latency.until_exit_ms(3)
    parts = zip(latency.stages_ms, latency.check_ms, strict=True)
    wanted = latency.start_ms[1] + sum(stage[1] + check[1] for stage, check in parts)
    assert until == sorted(until)
    assert until[-1] == pytest.approx(wanted)
    assert mx.Latency.from_json(json.loads(json.dumps(latency.to_json()))) == latency
    model.latency = latency
    model.save_pretrained(tmp_path)
    assert mx.MultiExitModel.from_pretrained(tmp_path).latency == latency


def test_between_sizes_it_is_interpolated_and_beyond_in_proportion(mlp):
    latency = table(mlp[0], (2.0, 9.0), 0.0, sizes=(1, 8))
    assert [latency.at((2.0, 9.0), rows) for rows in (1, 2, 8, 16)] == [2.0, 3.0, 9.0, 18.0]


def test_the_expected_time_of_a_shrinking_batch(mlp):
    """At batch size 1 it is the mean over rows of the time until their exit."""
    latency = mx.profile(mlp[0], batch_sizes=(1, 4), repeats=1)
    shares = [0.5, 0.0, 0.25, 0.0, 0.25]
    alone = sum(s * ms for s, ms in zip(shares, latency.until_exit_ms(1), strict=True))
    assert latency.expected_ms(shares, 1) == pytest.approx(alone)
    nobody = [0.0, 0.0, 0.0, 0.0, 1.0]
    assert latency.expected_ms(nobody, 4) == pytest.approx(latency.until_exit_ms(4)[-1])


def test_fewer_exits_cost_the_same_stages(mlp):
    latency = mx.profile(mlp[0], batch_sizes=(1,), repeats=1)
    some = latency.with_exits([1, 2, 4])
    spent = [sum(x[0] for x in table.stages_ms) for table in (latency, some)]
    assert spent[0] == pytest.approx(spent[1])
    assert some.check_ms == tuple(latency.check_ms[m] for m in (1, 2, 4))
    assert some.stages_ms[0][0] == pytest.approx(sum(x[0] for x in latency.stages_ms[:2]))


# What it refuses


def test_a_table_from_elsewhere_is_refused(mlp):
    model, inputs = mlp
    latency = replace(table(model, (1.0, 1.0), 0.0), machine="an abacus")
    with pytest.raises(ValueError, match=r"another machine \(an abacus"):
        mx.Engine(model, mx.Patience(1), latency=latency)
    model.latency = latency  # a folder that was copied: still serves, without the table
    with pytest.warns(UserWarning, match="another machine"):
        engine = mx.Engine(model, mx.Patience(1))
    same(engine.predict(**inputs), model.predict(mx.Patience(1), **inputs))


def test_a_table_of_other_exits_is_refused(mlp):
    model, _ = mlp
    with pytest.raises(ValueError, match="has 2 exits, not 5"):
        mx.Engine(model, mx.Patience(1), latency=table(model, (1.0, 1.0), 0.0).with_exits([1, 4]))


def test_bad_settings_are_named(mlp):
    model, inputs = mlp
    with pytest.raises(ValueError, match=r"needs a policy.*NoneType"):
        mx.Engine(model)
    engine = mx.Engine(model, mx.Patience(1))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        list(engine.stream([inputs], batch_size=0))
    with pytest.raises(ValueError, match="must rise"):
        mx.profile(model, batch_sizes=(4, 2))
    with pytest.raises(ValueError, match="the network takes x"):
        list(engine.stream([{"x": inputs["x"]}, {"y": inputs["x"]}]))
    model.train()
    with pytest.raises(ValueError, match="train mode"):
        engine.predict(**inputs)
    with pytest.raises(ValueError, match="train mode"):
        list(engine.stream([inputs]))


def test_a_nan_in_a_stream_is_named(mlp):
    model, inputs = mlp
    x = inputs["x"].clone()
    x[9, 0] = math.nan
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 9"):
        list(mx.Engine(model, mx.Patience(1)).stream(x.split(5)))


def test_no_rows_give_no_answers(mlp):
    model, inputs = mlp
    engine = mx.Engine(model, mx.Patience(1))
    assert engine.predict(inputs["x"][:0]).logits_BC.shape == (0, 3)
    assert list(engine.stream([])) == []


def test_the_model_s_own_policy_is_the_default(spied):
    model, _, inputs = spied
    model.policy = mx.FixedExit(2)
    assert mx.Engine(model).predict(**inputs).exit_B.tolist() == [2] * 6


def test_a_policy_of_one_s_own_streams(mlp):
    model, inputs = mlp
    wanted = model.predict(Countdown(), **inputs)
    got = mx.Engine(model, Countdown()).stream(inputs["x"].split(7), batch_size=4)
    same(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


def test_the_command_line_profiles_a_folder(tmp_path):
    mx.MultiExitModel(mx.cifar_resnet(20), 10, exits=[2, 8]).save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    ended = command("profile", tmp_path, "--batch-sizes", "1,2", "--repeats", 1)
    assert ended.code == 0, ended.err
    assert "no early exits" in ended.out
    latency = mx.MultiExitModel.from_pretrained(tmp_path).latency
    assert (latency.batch_sizes, len(latency.stages_ms)) == ((1, 2), 2)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    for words, message in (
        (("--batch-sizes", "2,1"), "that rise"),
        (("--batch-sizes", "1,x"), "whole numbers"),
        (("--tokens", 5), "reads x, not text"),
    ):
        ended = command("profile", tmp_path, *words)
        assert ended.code == 2
        assert message in ended.err


# Fewer exits


def test_kept_exits_say_what_they_said(network):
    model, inputs = network
    some = mx.keep_exits(model, [1, 4])
    with torch.no_grad():
        assert torch.equal(some(**inputs), model(**inputs)[[1, 4]])
    assert some.num_exits == 2
    assert next(some.backbone.parameters()) is next(model.backbone.parameters())


def test_kept_exits_survive_a_folder(mlp, tmp_path):
    model, inputs = mlp
    model.policy, model.latency = mx.Patience(2), table(model, (1.0, 2.0), 0.0)
    model.temperature_M.copy_(torch.arange(1.0, 6.0))
    some = mx.keep_exits(model, [0, 2, 4])
    some.save_pretrained(tmp_path)
    back = mx.MultiExitModel.from_pretrained(tmp_path, backbone=model.backbone)
    with torch.no_grad():
        assert torch.equal(back(**inputs), model(**inputs)[[0, 2, 4]])
    assert back.policy == mx.Patience(2)
    assert back.latency == model.latency.with_exits([0, 2, 4])
    for policy in (mx.MaxProb((0.9, 0.8, 0.7, 0.6)), mx.FixedExit(3)):
        model.policy = policy
        with pytest.warns(UserWarning, match="exits that aren't all kept"):
            assert mx.keep_exits(model, [0, 2, 4]).policy is None
    model.policy = mx.FixedExit(2)
    some = mx.keep_exits(model, [0, 2, 4])
    assert some.policy == mx.FixedExit(1)
    wanted = model.predict(model.policy, **inputs).logits_BC
    assert torch.equal(some.predict(some.policy, **inputs).logits_BC, wanted)


def test_exits_that_pay_are_the_best_choice(mlp):
    """Against all 2^4 choices: the greedy one is as fast, here where checks cost differently."""
    model, inputs = mlp
    data = TensorDataset(inputs["x"], torch.arange(24) % 3)
    outputs, policy = mx.collect(model, data), mx.MaxProb(0.6)
    plain = table(model, (1.0, 24.0), 0.0)
    for check in (
        (0.0,) * 5,
        (9.0, 9.0, 9.0, 9.0, 0.0),
        (0.2, 0.9, 0.1, 0.6, 0.3),
        (0.9, 0.1, 0.1, 0.9, 0.1),
    ):
        latency = replace(plain, check_ms=tuple((ms, 24 * ms) for ms in check))

        def ms(kept, latency=latency):
            exit_B = mx.simulate(policy, outputs.logits_MBC[kept])
            until = latency.with_exits(kept).until_exit_ms(1)
            return sum(until[exit] for exit in exit_B.tolist()) / 24

        every = [[m for m in range(4) if mask >> m & 1] + [4] for mask in range(16)]
        kept = mx.exits_that_pay(outputs, policy, latency)
        assert ms(kept) == pytest.approx(min(map(ms, every)))
        assert kept[-1] == 4
        assert check[0] < 9 or kept == [4]


def test_exits_that_can_t_be_kept_are_named(mlp):
    model, _ = mlp
    for wrong in ([], [3, 1], [1, 1], [5], [-1]):
        with pytest.raises(ValueError, match=r"rise within 0\.\.4"):
            mx.keep_exits(model, wrong)
    with pytest.raises(ValueError, match="CascadedHead reads"):
        mx.keep_exits(chain(head="linear+cascade"), [0, 3])
