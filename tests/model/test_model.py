"""The model: which exits it has, and that stopping really skips work."""

import math
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import multiexit as mx
from multiexit.model.placement import resolve_exits


class Spy(mx.Backbone):
    """Another backbone that notes which stage sees how many rows."""

    def __init__(self, inner: mx.Backbone):
        super().__init__(inner.feature_shapes, inner.head, inner.pool)
        self.inner = inner
        self.seen: list[tuple[int, int]] = []
        self.training = inner.training

    def start(self, *args, **inputs):
        return self.inner.start(*args, **inputs)

    def stage(self, carry, index):
        carry, feature = self.inner.stage(carry, index)
        self.seen.append((index, len(feature)))
        return carry, feature

    def stage_module(self, index):
        return self.inner.stage_module(index)

    def example_inputs(self, batch=1):
        return self.inner.example_inputs(batch)


@dataclass(frozen=True)
class Countdown(mx.ExitPolicy):
    """A row leaves at the exit whose index is the largest logit's class at the first exit."""

    def init(self, logits_BC):
        return {"left": logits_BC.argmax(-1)}

    def step(self, state, logits_BC):
        return {"left": state["left"] - 1}, state["left"] == 0


class Count(nn.Module):
    """Logits of exit m: row b of the feature is (b, …); the class of the first exit is b % C."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, feature):
        return nn.functional.one_hot(feature[:, 0].long() % self.num_classes, self.num_classes) + (
            0.01 * feature[:, 1:2]
        )


class Add(nn.Module):
    """Feature (b, m): the second number counts the stages."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x + self.one * torch.tensor([0.0, 1.0])


@pytest.fixture
def spied():
    """Six stages with exits after 0, 2, 3 and 5; row b leaves at exit b % 4 under Countdown."""
    backbone = Spy(mx.wrap(nn.Sequential(*(Add() for _ in range(6))), input_shape=(2,)))
    model = mx.MultiExitModel(backbone, 4, exits=[0, 2, 3, 5], head=lambda shape, K: Count(K))
    model.eval()
    backbone.seen.clear()
    return model, backbone


def rows(numbers: list[int]) -> torch.Tensor:
    return torch.tensor([[float(n), 0.0] for n in numbers])


def test_layers_behind_an_exit_run_for_the_rows_that_stay_alone(spied):
    model, backbone = spied
    numbers = [3, 0, 1, 2, 0, 1, 7]  # leave at exits 3 0 1 2 0 1 3
    answers, exit_B = model.predict(Countdown(), rows(numbers))
    assert exit_B.tolist() == [3, 0, 1, 2, 0, 1, 3]
    assert backbone.seen == [(0, 7), (1, 5), (2, 5), (3, 3), (4, 2), (5, 2)]
    # Rows come back in their order, with the logits of the exit where each left.
    depth = [6, 1, 3, 4, 1, 3, 6]
    wanted = torch.eye(4)[[n % 4 for n in numbers]] + 0.01 * torch.tensor(depth).unsqueeze(1)
    torch.testing.assert_close(answers, wanted)


@pytest.mark.parametrize("exit", [0, 1, 2, 3])
def test_when_all_have_left_nothing_more_runs(spied, exit):
    model, backbone = spied
    _, exit_B = model.predict(Countdown(), rows([exit] * 5))
    assert exit_B.tolist() == [exit] * 5
    assert backbone.seen == [(stage, 5) for stage in range(model.exits[exit] + 1)]


def test_all_leave_at_the_first_exit(network):
    model, inputs = network
    answers, exit_B = model.predict(mx.FixedExit(0), **inputs)
    with torch.no_grad():
        torch.testing.assert_close(answers, model(**inputs)[0])
    assert exit_B.tolist() == [0] * 24


def test_a_patient_policy_runs_each_stage_once(network):
    model, inputs = network
    spy = Spy(model.backbone)
    spied = mx.MultiExitModel(spy, 3)
    spied.heads = model.heads
    spy.seen.clear()
    answers, exit_B = spied.eval().predict(mx.Entropy(0.0), **inputs)
    assert spy.seen == [(stage, 24) for stage in range(spy.num_stages)]
    assert exit_B.tolist() == [model.num_exits - 1] * 24
    with torch.no_grad():
        assert torch.equal(answers, model(**inputs)[-1])


def test_forward_gives_every_exit_and_no_stage_behind_the_last(spied):
    _model, backbone = spied
    shorter = mx.MultiExitModel(backbone, 4, exits=[1, 3], head=lambda shape, K: Count(K))
    assert not backbone.overwritten  # looked for before stages are counted
    backbone.seen.clear()
    assert shorter(rows([0, 1, 2])).shape == (2, 3, 4)
    assert backbone.seen == [(stage, 3) for stage in range(4)]


def test_the_full_network_is_the_last_exit_alone(network):
    model, inputs = network
    with torch.no_grad():
        assert torch.equal(model.full(**inputs), model(**inputs)[-1])


def test_some_exits_say_the_same_as_all(make_backbone, text):
    backbone, inputs = make_backbone("bert"), text(4)
    every = mx.MultiExitModel(backbone, 3).eval()
    some = mx.MultiExitModel(backbone, 3, exits=[1, 4]).eval()
    some.heads = nn.ModuleList([every.heads[1], every.heads[4]])
    with torch.no_grad():
        assert torch.equal(some(**inputs), every(**inputs)[[1, 4]])


# What predict refuses, and what it takes


def test_train_mode_is_refused(mlp):
    model, inputs = mlp
    with pytest.raises(ValueError, match=r"train mode would.* call model.eval\(\) first"):
        model.train().predict(mx.Entropy(0.5), **inputs)
    engine = mx.Engine(model.eval(), mx.Entropy(0.5))
    for part, name in ((model.backbone, "backbone"), (model.heads[2], r"heads\.2")):
        part.train()
        for predict in (engine.predict, partial(model.predict, mx.Entropy(0.5))):
            with pytest.raises(ValueError, match=f"train mode of its part {name} would be random"):
                predict(**inputs)
        model.eval()


def test_no_rows_give_no_answers(network):
    model, inputs = network
    nothing = {key: value[:0] for key, value in inputs.items()}
    answers, exit_B = model.predict(mx.Entropy(0.5), **nothing)
    assert answers.shape == (0, 3)
    assert exit_B.shape == (0,)
    assert exit_B.dtype == torch.int64


def test_no_input_at_all_is_refused(mlp):
    with pytest.raises(ValueError, match="at least one input tensor"):
        mlp[0].predict(mx.Entropy(0.5))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("policy", [mx.Entropy(0.5), mx.Patience(2), mx.FixedExit(1)], ids=repr)
def test_logits_that_are_no_numbers_are_named(mlp, bad, policy):
    model, inputs = mlp
    with torch.no_grad():
        model.heads[1].linear.bias[2] = bad
        model.heads[2].linear.bias.fill_(bad)
        model.heads[3].linear.bias.fill_(bad)
        model.heads[4].linear.bias.fill_(bad)
    with pytest.raises(ValueError, match=r"exit \d gave NaN or infinite logits for row \d+"):
        model.predict(policy, **inputs)


def test_the_row_of_a_nan_input_is_right(mlp):
    model, inputs = mlp
    x = inputs["x"].clone()
    x[7, 2] = math.nan
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 7"):
        model.predict(mx.FixedExit(1), x)


def test_a_nan_on_the_way_is_named_by_the_row_s_place_in_the_batch(spied):
    model, _ = spied

    def poison(feature):  # at the exit after the third stage, rows 5 and 6
        bad = (feature[:, :1] >= 6) & (feature[:, 1:] == 3)
        return Count(4)(feature) + torch.where(bad, math.nan, 0.0)

    for head in model.heads:
        head.module.forward = poison
    numbers = [0, 4, 0, 2, 4, 6, 7]  # four rows leave before
    with pytest.raises(ValueError, match="exit 1 gave NaN or infinite logits for row 5"):
        model.predict(Countdown(), rows(numbers))


@pytest.mark.parametrize("threshold", [0.99, 0.997])
def test_half_precision_decides_as_stored_logits_do(threshold):
    chain = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)))
    model = mx.MultiExitModel(mx.wrap(chain), 3).eval()
    with torch.no_grad():
        model.heads[0].linear.weight.mul_(20)
    model, x = model.to(torch.bfloat16), (3 * torch.randn(400, 6)).to(torch.bfloat16)
    with torch.no_grad():
        logits_MBC = model(x)
    exit_B = model.predict(mx.MaxProb(threshold), x).exit_B
    assert torch.equal(exit_B, mx.simulate(mx.MaxProb(threshold), logits_MBC.float()))
    coarse_B = logits_MBC[0].softmax(-1).amax(-1) >= threshold  # what bf16 alone would say
    assert (coarse_B != (exit_B == 0)).any()


def test_predict_leaves_no_graph_and_takes_positional_inputs(mlp):
    model, inputs = mlp
    by_name = model.predict(mx.Patience(1), **inputs)
    by_place = model.predict(mx.Patience(1), inputs["x"])
    assert torch.equal(by_name.logits_BC, by_place.logits_BC)
    assert not by_name.logits_BC.requires_grad


def test_the_number_of_rows_is_the_batch_of_any_input(bert):
    model, inputs = bert
    positions = torch.arange(9).expand(1, 9)
    shared = {"position_ids": positions, **inputs}  # one row of positions for all
    got = model.predict(mx.Patience(1), **shared)
    wanted = model.predict(mx.Patience(1), **inputs)
    assert torch.equal(got.exit_B, wanted.exit_B)


# Exits


FORMS = [
    ("all", (0, 1, 2, 3, 4)),
    ([4], (4,)),
    ([0, 2, 4], (0, 2, 4)),
    ((1, 3), (1, 3)),
    (range(1, 5), (1, 2, 3, 4)),
    (np.array([0, 3]), (0, 3)),
    (1, (0, 1, 2, 3, 4)),
    (2, (0, 2, 4)),
    (3, (1, 4)),
    (5, (4,)),
    ([0.2, 0.4, 1.0], (0, 1, 4)),
    ([0.21, 0.79, 0.81], (1, 3, 4)),
    ([1e-9], (0,)),
]


@pytest.mark.parametrize(("exits", "wanted"), FORMS, ids=str)
def test_exits_in_every_form(exits, wanted, make_backbone):
    backbone = make_backbone("mlp")  # five stages of equal cost
    assert resolve_exits(exits, backbone) == wanted
    model = mx.MultiExitModel(backbone, 3, exits=exits).eval()
    assert model.exits == wanted
    assert model.num_exits == len(wanted)
    assert model(torch.zeros(2, 6)).shape == (len(wanted), 2, 3)


def test_fractions_count_compute_not_stages():
    widths = [4, 4, 4, 40, 40]  # MACs 16, 16, 16, 160, 1600
    layers = [nn.Linear(a, b) for a, b in zip([4, *widths], widths, strict=False)]
    backbone = mx.wrap(nn.Sequential(*layers))
    assert resolve_exits([16 / 1808, 48 / 1808, 0.1, 0.5], backbone) == (0, 2, 3, 4)


BAD = [
    ([], "exits must be"),
    ((), "exits must be"),
    ("some", "exits must be.*'some'"),
    (None, "exits must be"),
    (2.5, "exits must be"),
    (True, "exits must be"),
    ([True, False], "exits must be"),
    (["a"], "exits must be"),
    ([1, 0.5], "exits must be"),
    (0, "every 0 stages"),
    (-1, "every -1 stages"),
    (6, r"every 6 stages: must be 1\.\.5"),
    ([5], r"\[5\] are out of range.*0\.\.4"),
    ([-1], r"\[-1\] are out of range"),
    ([2, 1], r"rise and not repeat; got stages \[2, 1\]"),
    ([2, 2], "rise and not repeat"),
    ([0.0, 1.0], r"in \(0, 1\], got 0.0"),
    ([0.5, 1.5], r"in \(0, 1\], got 1.5"),
    ([math.nan], r"in \(0, 1\], got nan"),
    ([0.81, 0.9], "rise and not repeat"),
]


@pytest.mark.parametrize(("exits", "message"), BAD, ids=str)
def test_bad_exits_are_named(exits, message, make_backbone):
    with pytest.raises(ValueError, match=message):
        mx.MultiExitModel(make_backbone("mlp"), 3, exits=exits)


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, "2"])
def test_bad_class_counts_are_named(num_classes, make_backbone):
    with pytest.raises(ValueError, match="num_classes must be"):
        mx.MultiExitModel(make_backbone("mlp"), num_classes)


def test_label_names_fit_the_classes(make_backbone):
    with pytest.raises(ValueError, match="2 label names for 3 classes"):
        mx.MultiExitModel(make_backbone("mlp"), 3, labels=["no", "yes"])


def test_a_bare_module_is_refused():
    with pytest.raises(ValueError, match=r"got Linear: call multiexit.wrap"):
        mx.MultiExitModel(nn.Linear(2, 2), 3)  # type: ignore[arg-type]


class Two(nn.Linear):
    """A head that gives its feature too."""

    def forward(self, feature):
        return super().forward(feature), feature


def test_a_head_that_gives_more_than_logits_is_refused(make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 3, head=lambda shape, C: Two(shape[0], C))
    (x,) = model.example_inputs().values()
    with pytest.raises(ValueError, match=r"exit 0 gives a tuple; .*it must give \(1, 3\)"):
        model.eval()(x)


def test_inputs_that_the_network_does_not_take_are_refused_by_name(mlp):
    model, inputs = mlp
    with pytest.raises(ValueError, match=r"takes x, not max_exit: it goes with .*Engine"):
        model.predict(mx.Entropy(0.5), **inputs, max_exit=1)
    with pytest.raises(ValueError, match=r"takes x, not mask$"):
        model.predict(mx.Entropy(0.5), **inputs, mask=None)


def test_a_half_precision_backbone_gets_heads_of_its_kind(make_backbone, text):
    model = mx.MultiExitModel(make_backbone("bert").bfloat16(), 3).eval()
    assert model(**text(3)).dtype == torch.bfloat16
    assert model.predict(mx.Patience(1), **text(3)).exit_B.shape == (3,)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (({"input_ids": torch.ones(2, 3)},), r"got dict: pass a batch's entries by name"),
        ((["a fine film"],), r"got list: tokenise texts first"),
        (([[0.0] * 8],), r"got list: make tensors of numbers, torch.tensor\(x\)"),
        (
            (np.zeros((1, 3, 32, 32)),),
            r"got ndarray: make tensors .*torch.from_numpy\(x\)",
        ),
    ],
)
def test_inputs_that_are_no_tensors_are_named(args, message):
    model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2).eval()
    for answer in (model, partial(model.predict, mx.Patience(1))):
        with pytest.raises(ValueError, match=message):
            answer(*args)


@pytest.mark.parametrize(
    ("args", "inputs", "message"),
    [
        (1, {"scale": 2}, "takes x alone, not scale: what else its own forward takes has its def"),
        (1, {"labels": torch.ones(1)}, "takes x alone, not labels: labels are for training"),
        (2, {}, "takes one input, x; got 2"),
    ],
)
def test_a_network_of_one_input_names_others(args, inputs, message):
    model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2).eval()
    with pytest.raises(ValueError, match=message):
        model(*[torch.zeros(1, 3, 32, 32)] * args, **inputs)


@pytest.mark.parametrize(
    ("policy", "said"), [("patience=1", "'patience=1'"), (mx.Patience, "class")]
)
def test_what_is_no_policy_is_named(policy, said):
    model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2).eval()
    with pytest.raises(ValueError, match=f"takes a policy first, .* got .*{said}"):
        model.predict(policy, torch.zeros(1, 3, 32, 32))


def test_a_policy_that_is_none_is_not_saved(tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2)
    for model.policy in ("patience=1", mx.FixedExit(99)):
        with pytest.raises(ValueError, match=r"a policy is wanted|99"):
            model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "multiexit.json").exists()


def test_without_a_number_of_classes_a_model_has_its_networks_own():
    stages = [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)]
    chain = nn.Sequential(*stages)
    model = mx.MultiExitModel(mx.wrap(chain, stages=["0", "1"], classifier="2")).eval()
    x = torch.randn(4, 8)
    assert model.num_classes == 5
    assert torch.equal(model(x)[-1], chain(x))
    with pytest.raises(ValueError, match="say num_classes: the network has no head of its own"):
        mx.MultiExitModel(mx.wrap(nn.Sequential(*stages[:2])))


def test_a_head_that_is_taken_for_a_stage_is_warned_of(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"last stage gives 3 numbers.*starts anew behind it"):
        model = mx.MultiExitModel(mx.wrap(net), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.MultiExitModel(mx.wrap(net), 3, head="linear")
        mx.MultiExitModel(mx.wrap(net), 3, exits=[0])
        mx.MultiExitModel(mx.wrap(net), 4)
        own = mx.MultiExitModel(mx.wrap(net, stages=["0", "1"], classifier="2"), 3).eval()
    x = torch.randn(2, 8)
    assert torch.equal(own(x)[-1], net(x))
    with pytest.warns(UserWarning, match="must pass backbone="):
        model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.MultiExitModel.from_pretrained(tmp_path, backbone=mx.wrap(net))
