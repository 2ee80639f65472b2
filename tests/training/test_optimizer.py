"""The learning rate of every step, and what decays."""

import math

import pytest
import torch
import transformers
from helpers import (
    CLASSES,
    Stopped,
    Table,
    Text,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    fit,
    images,
    tensors,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit.training.optimizer import build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"schedule": "constant"}, [2.0] * 10),
        ({"schedule": "linear"}, [2 - 0.2 * i for i in range(10)]),
        (
            {"schedule": "linear", "warmup": 0.2},
            [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25],
        ),
        ({"schedule": "cosine"}, [1 + math.cos(math.pi * i / 10) for i in range(10)]),
        ({"schedule": "step"}, [2.0] * 5 + [0.2] * 3 + [0.02] * 2),
        ({"schedule": "step", "milestones": (0.3,)}, [2.0] * 3 + [0.2] * 7),
        ({"schedule": "constant", "warmup": 0.5}, [0.4, 0.8, 1.2, 1.6, 2.0] + [2.0] * 5),
    ],
)
def test_the_learning_rate_at_every_step(changes, wanted):
    settings = config(lr=2.0, **changes)
    assert [learning_rate(settings, step, 10) for step in range(10)] == pytest.approx(wanted)
    settings = config(lr=2e-9, batch_size=8, **changes)
    history = fit(chain(), "joint", settings, Table())
    assert [row["lr"] for row in history.steps] == pytest.approx([1e-9 * rate for rate in wanted])


@given(
    schedule=st.sampled_from(["linear", "cosine", "step", "constant"]),
    warmup=st.floats(0, 0.99),
    steps=st.integers(1, 300),
)
@hypothesis_settings(deadline=None, max_examples=80)
def test_rates_rise_once_and_then_never(schedule, warmup, steps):
    settings = config(lr=3.0, schedule=schedule, warmup=warmup)
    rates = [learning_rate(settings, step, steps) for step in range(steps)]
    assert all(0 < rate <= 3.0 for rate in rates)
    warm = int(warmup * steps)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


def test_decay_spares_biases_and_norms():
    model = convnet()
    before = tensors(model)
    # A gradient of next to nothing moves Adam by lr at most; decay by lr·decay·p.
    settings = config(optimizer="adamw", lr=1e-4, weight_decay=5000.0, max_steps=1)
    fit(model, "joint", settings, images())
    for name, now in model.named_parameters():
        decayed = now.detach() - before[name] * (0.5 if now.ndim > 1 else 1.0)
        assert decayed.abs().max() <= 1.01e-4, name


def test_a_parameter_s_first_gradient_may_come_at_any_step():
    settings = config(lr=0.1, momentum=0.9, weight_decay=0.1)
    ours, plain = ([torch.nn.Parameter(torch.ones(3)) for _ in range(3)] for _ in range(2))
    fused = build_optimizer(ours, settings)
    loops = torch.optim.SGD(plain, 0.1, 0.9, weight_decay=0.1, foreach=False)
    for reached in ([0], [1], [], [0, 1, 2], [2]):
        for ps, optimizer in ((ours, fused), (plain, loops)):
            optimizer.zero_grad()
            for index in reached:
                ps[index].grad = torch.tensor([1.0, -2.0, 3.0]) * (index + 1)
            optimizer.step()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", {"power": 2.0, "lr_end": 0.1}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {"timescale": 7}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_warmup_with_min_lr", {"min_lr": 0.2}),
        ("warmup_stable_decay", {"num_decay_steps": 5}),
    ],
)
def test_schedules_of_transformers_are_what_its_own_loop_has(schedule, options):
    """Its loop steps optimiser and scheduler in turn."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
    scheduler = transformers.get_scheduler(schedule, optimizer, 4, 20, options)
    wanted = []
    for _ in range(20):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    changes = {"schedule": schedule, "schedule_options": options, "warmup": 0.2, "max_steps": 20}
    history = fit(chain(), "joint", config(lr=0.5, **changes), Table())
    assert [row["lr"] for row in history.steps] == wanted


def test_options_of_schedules_are_looked_at_first():
    for schedule, options, said in (
        ("polynomial", {"powr": 2}, r"has the options \['lr_end', 'power'\], got \['powr'\]"),
        ("polynomial", {"power": "x"}, "can't be used"),
        ("cosine_with_min_lr", {}, "min_lr"),
        ("linear", {"power": 2}, "has no options"),
        ("polynomial", 2, "values by name"),
        ("reduce_lr_on_plateau", {}, "must be one of"),
        ("polynomial", {"lr_end": -1.0}, "rates below 0"),
    ):
        with pytest.raises(ValueError, match=said):
            config(schedule=schedule, schedule_options=options)


def bert():
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=60, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    network = transformers.BertModel(shape)
    return mx.MultiExitModel(mx.wrap(network), CLASSES, exits=[0, 2])


def stage_of(model, name):
    """The stage that a parameter is in by its name; -1 before all, None behind."""
    by_name = {"embeddings": -1, "stem": -1, "heads": None}
    for stage in range(model.backbone.num_stages):
        module = model.backbone.stage_module(stage)
        by_name |= {id(p): stage for p in module.parameters()}
    parameter = dict(model.named_parameters())[name]
    places = [place for key, place in by_name.items() if isinstance(key, str) and key in name]
    return by_name.get(id(parameter), places[0] if places else None)


@pytest.mark.parametrize("make", [chain, bert, lambda: convnet(dropout=0.0, exits=[0, 2])])
def test_layer_decay_lowers_the_rate_stage_by_stage(make):
    """A step of SGD moves each parameter by its own rate times the same gradient."""
    rows = Text() if make is bert else Table() if make is chain else images(augment=False)

    def moves(**changes):
        model = make()
        before = tensors(model)
        fit(model, "joint", config(lr=0.5, max_steps=1, **changes), rows)
        return model, {name: now - before[name] for name, now in model.named_parameters()}

    (model, plain), (_, decayed) = moves(), moves(layer_decay=0.5)
    stages = model.exits[-1] + 1
    moved = set()
    for name in plain:
        stage = stage_of(model, name)
        factor = 1.0 if stage is None else 0.5 ** (stages - 1 - stage)
        torch.testing.assert_close(
            decayed[name], plain[name] * factor, atol=2e-7, rtol=1e-4, msg=name
        )
        if plain[name].any():
            moved.add(stage)
    assert moved >= {0, stages - 1, None, *([-1] if make is bert else [])}


def test_layer_decay_is_resumed_and_goes_with_adam_and_hypergradients(tmp_path):
    settings = {"layer_decay": 0.8, "optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1}
    whole, cut = chain(), chain()
    fit(whole, "leebert-hyper", config(**settings), Table())
    with pytest.raises(Stopped):
        fit(cut, "leebert-hyper", config(output=tmp_path, checkpoint_every=1, **settings),
            Watched(Table(), stop=4))  # fmt: skip
    resumed = chain(seed=5)
    fit(resumed, "leebert-hyper", config(output=tmp_path, checkpoint_every=1, resume=True,
                                         **settings), Table())  # fmt: skip
    assert_same(tensors(whole), tensors(resumed))


def test_stages_that_share_weights_have_one_rate():
    shape = transformers.AlbertConfig(
        vocab_size=60, embedding_size=8, hidden_size=8, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    model = mx.MultiExitModel(mx.wrap(transformers.AlbertModel(shape)), CLASSES)
    with pytest.raises(ValueError, match="share their parameters"):
        fit(model, "joint", config(layer_decay=0.9), Text())
    with pytest.raises(ValueError, match=r"layer_decay must be a number in \(0, 1\), got 1"):
        config(layer_decay=1)
