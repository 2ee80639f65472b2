"""A stream is answered as `predict` answers: in order, row by row, until something is wrong."""

import math
import re
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import Text, chain, same_answers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import POLICIES
from test_model import Countdown, Spy
from torch.utils.data import DataLoader, TensorDataset

import multiexit as mx


def batches(inputs, sizes):
    """The inputs cut into batches."""
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    return [{k: v[a:b] for k, v in inputs.items()} for a, b in pairwise(bounds)]


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
    same_answers(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=8),
    batch_size=st.integers(1, 9),
    window=st.integers(1, 5),
    data=st.data(),
)
def test_batches_and_rows_have_policies_of_their_own(network, sizes, batch_size, window, data):
    model, inputs = network
    rows = torch.arange(sum(sizes)) % 24
    cut = batches({name: value[rows] for name, value in inputs.items()}, sizes)
    each_exit = mx.MaxProb(tuple(0.8 * 0.9**exit for exit in range(model.num_exits)))
    one = st.sampled_from([*POLICIES, mx.MaxProb(0.9), each_exit, Countdown()])
    own = [
        data.draw(st.none() | one | st.lists(one, min_size=size, max_size=size)) for size in sizes
    ]
    engine, whole = mx.Engine(model, mx.MaxProb(0.6)), data.draw(one)
    given, wanted = data.draw(
        st.sampled_from([(own, own), (iter(own), own), (whole, [whole] * len(sizes))])
    )
    answers = engine.stream(cut, batch_size, window, policy=given)
    for batch, policy, answer in zip(cut, wanted, answers, strict=True):
        same_answers(answer, engine.predict(**batch, policy=policy))


@pytest.mark.parametrize("head", ["linear+lte", "linear+gates", "linear+mix", "linear+cascade"])
def test_what_heads_remember_stays_with_its_row(head):
    model, x = chain(head=head).eval(), 3 * torch.randn(30, 6)
    policy = mx.Certainty(0.55) if head in ("linear+lte", "linear+gates") else mx.MaxProb(0.45)
    wanted = model.predict(policy, x)
    assert len(wanted.exit_B.unique()) > 1
    got = mx.Engine(model, policy).stream(x.split(4), batch_size=5, window=3)
    same_answers(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


@pytest.mark.parametrize("kind", ["bert", "mlp"])
def test_compiled_segments_say_the_same(kind, request):
    model, inputs = request.getfixturevalue(kind)
    rows = len(next(iter(inputs.values())))
    wanted = model.predict(mx.MaxProb(0.6), **inputs)
    engine = mx.Engine(model, mx.MaxProb(0.6), compile=True)
    same_answers(engine.predict(**inputs), wanted)
    got = engine.stream(batches(inputs, [rows - 4, 4]), batch_size=4)
    same_answers(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


def test_a_data_set_streams_in_its_own_order(bert):
    model, _ = bert
    data, policy = Text(20), mx.MaxProb(0.6)
    every = data.collate([data[row] for row in range(20)])
    every.pop("labels")
    got = mx.Engine(model, policy).stream(data, batch_size=6)
    same_answers(
        mx.Prediction(*map(torch.cat, zip(*got, strict=True))), model.predict(policy, **every)
    )


def test_a_stream_takes_what_a_loader_gives(mlp):
    model, inputs = mlp
    pairs = DataLoader(TensorDataset(inputs["x"], torch.zeros(24)), 5)
    got = mx.Engine(model, mx.Patience(2)).stream(pairs)
    wanted = model.predict(mx.Patience(2), **inputs)
    same_answers(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


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
    same_answers(got, model.predict(mx.MaxProb(0.6), **inputs))


class OneTensor:
    """Batches that all lie in one tensor, in turn."""

    def __init__(self, x, size):
        self.parts, self.buffer = x.split(size), torch.empty_like(x[:size])

    def __len__(self):
        return len(self.parts)

    def __iter__(self):
        for part in self.parts:
            self.buffer.copy_(part)
            yield {"x": self.buffer}


@pytest.mark.parametrize("given", [iter, lambda source: source], ids=["generator", "sized"])
def test_a_source_may_fill_one_tensor_again(mlp, given):
    model, inputs = mlp
    source = given(OneTensor(inputs["x"], 4))
    answers = mx.Engine(model, mx.MaxProb(0.6)).stream(source, batch_size=4)
    got = mx.Prediction(*map(torch.cat, zip(*answers, strict=True)))
    same_answers(got, model.predict(mx.MaxProb(0.6), **inputs))


def test_empty_batches_have_empty_answers(mlp):
    model, inputs = mlp
    x = inputs["x"]
    for parts in ([x[:0]], [x[:0], x[:3], x[:0], x[3:5]], [x[:0], x[:0]]):
        got = mx.Engine(model, mx.Patience(1)).stream(parts)
        assert [len(answer.exit_B) for answer in got] == [len(part) for part in parts]


def test_a_policy_of_one_s_own_streams(mlp):
    model, inputs = mlp
    wanted = model.predict(Countdown(), **inputs)
    got = mx.Engine(model, Countdown()).stream(inputs["x"].split(7), batch_size=4)
    same_answers(mx.Prediction(*map(torch.cat, zip(*got, strict=True))), wanted)


@pytest.mark.parametrize(
    "own", [[mx.MaxProb(0.6)], [mx.MaxProb(0.6), mx.MaxProb(0.55), mx.Patience(2)]]
)
def test_deep_stages_of_a_stream_run_full(mlp, own):
    """Half of the rows leave at each exit; what is left of eight batches fills fewer."""
    model, _ = mlp
    spy = model.backbone = Spy(model.backbone)
    x = 3 * torch.randn(512, 6)
    each = [own[number % len(own)] for number in range(16)]
    left = [model.predict(p, part).exit_B for p, part in zip(each, x.split(32), strict=True)]
    staying = 512 - torch.cat(left).bincount(minlength=5).cumsum(0)
    spy.seen.clear()
    policy = own[0] if len(own) == 1 else each
    list(mx.Engine(model, mx.MaxProb(0.6)).stream(x.split(32), 32, window=16, policy=policy))
    here = [512, *staying[:-1].tolist()]
    for stage, rows in enumerate(here):
        sizes = [size for at, size in spy.seen if at == stage]
        assert sum(sizes) == rows
        assert sum(size >= 32 for size in sizes) >= len(sizes) - 1  # all full but the last
    assert here[1] < 512


# What is wrong


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
        same_answers(answer, mx.Prediction(*(part[3 * number : 3 * number + 3] for part in wanted)))
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
        same_answers(got, model.predict(mx.MaxProb(0.6), inputs["x"][:12]))


def test_a_nan_in_a_stream_is_named(mlp):
    model, inputs = mlp
    x = inputs["x"].clone()
    x[9, 0] = math.nan
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 9"):
        list(mx.Engine(model, mx.Patience(1)).stream(x.split(5)))


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


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("max-prob=0.9", "policy is an exit policy, such as .*; got 'max-prob=0.9'"),
        (0.9, "an iterable that gives each batch one, .*; got 0.9"),
        (mx.FixedExit(99), "must be within"),
        ([mx.MaxProb(0.9)] * 24, "the stream has 6 batches, and policy 24 items"),
    ],
)
def test_a_stream_s_policy_is_checked_when_it_is_asked_for(mlp, policy, message):
    model, inputs = mlp
    engine = mx.Engine(model, mx.Patience(1))
    for data in (inputs["x"].split(4), TensorDataset(inputs["x"], torch.zeros(24))):
        with pytest.raises(ValueError, match=message):
            engine.stream(data, batch_size=4, policy=policy)
    with pytest.raises(ValueError, match="a compiled engine keeps its policy"):
        mx.Engine(model, mx.Patience(1), compile=True).stream([inputs], policy=mx.Patience(2))


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize(
    ("last", "good", "message"),
    [
        ([], 5, "batch 5 of the stream: policy has ended"),
        ([mx.FixedExit(99)], 5, "batch 5 of the stream: .*must be within"),
        (["max-prob=0.9"], 5, "batch 5 of the stream: policy is an exit policy, .*'max-prob=0.9'"),
        ([[mx.MaxProb(0.9)] * 3], 5, "batch 5 of the stream: there are 4 rows, and 3 policies"),
        ([None, None], 6, "policy goes on behind the stream's 6 batches"),
    ],
)
def test_good_answers_come_before_a_policy_that_won_t_do(mlp, window, last, good, message):
    model, inputs = mlp
    policies = iter([*[mx.MaxProb(0.6)] * 5, *last])
    stream = mx.Engine(model, mx.Patience(1)).stream(
        inputs["x"].split(4), batch_size=4, window=window, policy=policies
    )
    answers, error = read_by(stream)
    assert len(answers) == good
    assert isinstance(error, ValueError)
    assert re.search(message, str(error))
