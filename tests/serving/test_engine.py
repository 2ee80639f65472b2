"""The engine says what `predict` says, whatever is switched on, and runs less for it."""

import copy
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import chain, latency_table, same_answers
from test_folding import CHANGES, calibrate, there_and_back, through_numpy
from test_model import Spy

import multiexit as mx

POLICIES = [mx.MaxProb(0.6), mx.Entropy(0.5), mx.Patience(2), mx.MostConfident(0.7)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_one_batch_is_answered_as_by_predict(network, policy):
    model, inputs = network
    wanted = model.predict(policy, **inputs)
    assert len(wanted.exit_B.unique()) > 1
    same_answers(mx.Engine(model, policy).predict(**inputs), wanted)
    for latency in (latency_table(model, (1.0, 9.0), 0.0), latency_table(model, (1.0, 1.0), 5.0)):
        same_answers(mx.Engine(model, policy, latency=latency).predict(**inputs), wanted)


def test_rows_have_policies_and_last_exits_of_their_own(network):
    model, inputs = network
    engine, rows = mx.Engine(model, mx.MaxProb(0.6)), 24
    own = [POLICIES[row % 4] if row % 3 else mx.MaxProb(row / rows) for row in range(rows)]
    last = [row % model.num_exits for row in range(rows)]
    got = engine.predict(**inputs, policy=own)
    early = engine.predict(**inputs, policy=own, max_exit=last)
    for row, policy in enumerate(own):
        alone = model.predict(policy, **{name: x[row : row + 1] for name, x in inputs.items()})
        assert got.exit_B[row] == alone.exit_B[0]
        torch.testing.assert_close(got.logits_BC[row], alone.logits_BC[0], atol=1e-5, rtol=1e-4)
        assert early.exit_B[row] == min(int(alone.exit_B[0]), last[row])
    same_answers(
        engine.predict(**inputs, policy=mx.Patience(2)), model.predict(mx.Patience(2), **inputs)
    )
    assert engine.predict(**inputs, max_exit=0).exit_B.tolist() == [0] * rows
    for wrong, message in [
        ({"policy": own[:3]}, "24 rows, and 3 policies"),
        ({"policy": mx.FixedExit(99)}, "must be within"),
        ({"max_exit": 99}, "max_exit must be from 0 to"),
        ({"max_exit": 0.5}, "the index of an exit"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.predict(**inputs, **wrong)


@dataclass(frozen=True)
class Temperate(mx.ExitPolicy):
    """Its number meets logits [B, C]."""

    temperature: float

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        return state, (logits_BC / self.temperature).softmax(-1).amax(-1) >= 0.5


def test_rows_have_policies_of_a_class_of_one_s_own(network):
    """As many as classes, which a number for each row would be taken for."""
    model, inputs = network
    inputs = {name: x[:3] for name, x in inputs.items()}
    own = [Temperate(temperature) for temperature in (3.0, 1.0, 0.1)]
    assert model.num_classes == len(own)
    got = mx.Engine(model, own[0]).predict(**inputs, policy=own)
    for row, policy in enumerate(own):
        alone = model.predict(policy, **{name: x[row : row + 1] for name, x in inputs.items()})
        assert got.exit_B[row] == alone.exit_B[0]
    early = mx.Engine(model, own[0]).predict(**inputs, max_exit=1)
    wanted = model.predict(own[0], **inputs).exit_B.clamp(max=1)
    assert torch.equal(early.exit_B, wanted)


def test_the_model_s_own_policy_is_the_default(spied):
    model, _, inputs = spied
    model.policy = mx.FixedExit(2)
    assert mx.Engine(model).predict(**inputs).exit_B.tolist() == [2] * 6


# A model that changes


@pytest.mark.parametrize("kind", ["bert", "mlp"])
def test_an_engine_without_a_copy_follows_its_model(kind, request):
    model, inputs = request.getfixturevalue(kind)
    engine, policy = mx.Engine(model, mx.MaxProb(0.6)), mx.MaxProb(0.6)
    for change in CHANGES.values():
        change(model)
        same_answers(engine.predict(**inputs), model.predict(policy, **inputs))


def test_a_compiled_engine_follows_its_model():
    model, x, policy = chain(exits=2).eval(), 3 * torch.randn(8, 6), mx.MaxProb(0.6)
    engine = mx.Engine(model, policy, compile=True)
    engine.predict(x)
    for change in CHANGES.values():
        change(model)
        if change in (through_numpy, there_and_back, calibrate):
            same_answers(engine.predict(x), model.predict(policy, x))


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
    engine = mx.Engine(model, policy, latency=latency_table(model, (1.0, 9.0), 0.0))
    other = copied(engine)
    assert (other.policy, other.latency) == (policy, engine.latency)
    same_answers(other.predict(**inputs), engine.predict(**inputs))
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
    same_answers(engine.predict(**wide), model.predict(mx.Patience(1), **inputs))
    assert widths == [8, 9]  # six rows of 3 to 8 tokens, in a batch of 29, then of 9


def test_rows_are_dragged_along_where_dropping_them_costs_more(mlp):
    model, inputs = mlp
    spy = model.backbone = Spy(model.backbone)
    policy = mx.MaxProb(0.6)
    flat = mx.Engine(model, policy, latency=latency_table(model, (1.0, 1.0), 0.1))
    flat.predict(**inputs)
    assert {size for _, size in spy.seen} == {24}
    spy.seen.clear()
    steep = mx.Engine(model, policy, latency=latency_table(model, (1.0, 24.0), 0.1))
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
    mx.Engine(model, policy, latency=latency_table(model, (1.0, 24.0), drop)).predict(**inputs)
    assert [rows for _, rows in spy.seen] == sizes


def test_when_all_have_left_nothing_more_runs(mlp):
    model, inputs = mlp
    spy = model.backbone = Spy(model.backbone)
    flat = mx.Engine(model, mx.FixedExit(1), latency=latency_table(model, (1.0, 1.0), 9.0))
    flat.predict(**inputs)
    assert spy.seen == [(0, 24), (1, 24)]


# What it refuses


def test_a_table_from_elsewhere_is_refused(mlp):
    model, inputs = mlp
    latency = replace(latency_table(model, (1.0, 1.0), 0.0), machine="an abacus")
    with pytest.raises(ValueError, match=r"another machine \(an abacus"):
        mx.Engine(model, mx.Patience(1), latency=latency)
    model.latency = latency  # a folder that was copied: still serves, without the table
    with pytest.warns(UserWarning, match="another machine"):
        engine = mx.Engine(model, mx.Patience(1))
    same_answers(engine.predict(**inputs), model.predict(mx.Patience(1), **inputs))


def test_a_table_of_other_exits_is_refused(mlp):
    model, _ = mlp
    with pytest.raises(ValueError, match="has 2 exits, not 5"):
        mx.Engine(
            model, mx.Patience(1), latency=latency_table(model, (1.0, 1.0), 0.0).with_exits([1, 4])
        )


def test_bad_settings_are_named(mlp):
    model, inputs = mlp
    with pytest.raises(ValueError, match=r"needs a policy.*NoneType"):
        mx.Engine(model)
    engine = mx.Engine(model, mx.Patience(1))
    for wrong in ("max-prob=0.5", 5, [mx.Patience] * 24):
        with pytest.raises(ValueError, match=r"policy is an exit policy, such as MaxProb\(0.9\)"):
            engine.predict(**inputs, policy=wrong)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        list(engine.stream([inputs], batch_size=0))
    for wrong, message in (
        ({"batch_sizes": (4, 2)}, r"that rise from 1 on, got \(4, 2\)"),
        ({"batch_sizes": 4}, "that rise from 1 on, got 4"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"inputs": [1]}, "a tensor, or tensors by name"),
        ({"inputs": inputs["x"][:0]}, "a row or more"),
    ):
        with pytest.raises(ValueError, match=message):
            mx.profile(model, **wrong)
    assert mx.profile(model, inputs=inputs["x"], batch_sizes=[1], repeats=1).batch_sizes == (1,)
    with pytest.raises(ValueError, match="the network takes x"):
        list(engine.stream([{"x": inputs["x"]}, {"y": inputs["x"]}]))
    model.train()
    with pytest.raises(ValueError, match="train mode"):
        engine.predict(**inputs)
    with pytest.raises(ValueError, match="train mode"):
        list(engine.stream([inputs]))


def test_no_rows_give_no_answers(mlp):
    model, inputs = mlp
    engine = mx.Engine(model, mx.Patience(1))
    assert engine.predict(inputs["x"][:0]).logits_BC.shape == (0, 3)
    assert list(engine.stream([])) == []
