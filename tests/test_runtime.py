"""What is frozen stays as it is, whatever trains; what looks at a model leaves no trace."""

import random
from contextlib import suppress

import pytest
import torch
from helpers import (
    CLASSES,
    OF_CLASSES,
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
)
from torch import nn
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit.recipes import static
from multiexit.runtime import train_mode
from multiexit.serving import speedup


def bert(exits="all"):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    return mx.MultiExitModel(
        mx.wrap(BertModel(BertConfig(**sizes, num_attention_heads=2))), CLASSES, exits
    )


def state_of(model):
    """Every submodule's mode, and what is frozen."""
    modes = [m.training for m in model.modules()]
    return modes, [p.requires_grad for p in model.parameters()]


def mixed(model):
    """Every submodule in a mode of its own, but the model itself in evaluation."""
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 1
    return model


# Frozen is frozen


def normed(dropout=0.5):
    """Convolutions with BatchNorm, with and without weights of its own, and dropout."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(
            nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1),
            nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Dropout(dropout)),
        )
        for i in range(3)
    ]
    return mx.wrap(nn.Sequential(*stages), input_shape=(1, 8, 8))


def freeze_some(model, draw):
    """Freeze modules at random; the names of parameters and buffers that have to stay."""
    modules = [(n, m) for n, m in model.named_modules() if n and any(True for _ in m.parameters())]
    chosen = draw.sample(modules, draw.randint(1, 6))
    for _, module in chosen:
        module.requires_grad_(False)
    under = tuple(f"{name}." for name, _ in chosen)
    return {name for name in model.state_dict() if name.startswith(under)}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_frozen_parts_stay_to_the_last_bit_under_every_recipe(name):
    draw, ran = random.Random(name), 0
    while ran < 4:
        recipe = mx.recipe(name)
        head = "linear" if recipe.head in (None, "own-pooler", "attention") else recipe.head
        model = mx.MultiExitModel(normed(), CLASSES, head=head)
        frozen, before = freeze_some(model, draw), dict(model.state_dict())
        before = {key: value.clone() for key, value in before.items()}
        found = state_of(model)
        try:
            trainer = mx.Trainer(model, recipe, config(max_steps=2, weight_decay=0.1))
        except ValueError as error:
            assert "none of that to train" in str(error)  # noqa: PT017 (the draw froze all of it)
            continue
        trainer.fit(images(), images(12, augment=False))
        after, ran = model.state_dict(), ran + 1
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert not {key for key in moved & frozen if not key.endswith("vote.on")}
        assert moved - frozen
        assert state_of(model) == found


def test_a_trunk_that_the_user_froze_has_no_dropout():
    def losses(dropout):
        model = chain(dropout=dropout)
        model.backbone.requires_grad_(False)
        settings = config(lr=1e-9, batch_size=40, epochs=1)
        return fit(model, "joint", settings, Table()).steps[0]["own_M"]

    assert losses(0.9) == losses(0.0)


def test_a_part_of_a_part_is_frozen_alone():
    """By hand: what train mode is for each module."""
    net = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Dropout()),
        nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())),
        nn.Dropout(),
    )
    net[0].requires_grad_(False)
    net[1][1].requires_grad_(False)
    train_mode(net.eval())
    modes = {name: module.training for name, module in net.named_modules()}
    assert [name for name, training in modes.items() if training] == ["", "1", "1.0", "2"]
    train_mode(nn.Sequential(nn.Dropout()))  # nothing to freeze: it trains


@pytest.mark.parametrize("stop", [1, None])
def test_flags_and_modes_are_as_before_the_fit(stop):
    model = mixed(convnet())
    model.backbone.stage_module(1).requires_grad_(False)
    before = state_of(model)
    train = Watched(images(), stop)
    recipe = mx.recipe("deebert")
    if stop is None:
        fit(model, recipe, config(max_steps=2), train)
    else:
        with pytest.raises(Stopped):
            fit(model, recipe, config(max_steps=9), train)
    assert state_of(model) == before


# Looking at a model


def breaking(model):
    """The last stage that runs raises."""

    def hook(*_):
        raise Stopped

    return model.backbone.stage_module(model.exits[-1]).register_forward_hook(hook)


LOOKS = {
    "collect": lambda model, rows: mx.collect(model, rows),
    "measured_speedup": lambda model, rows: speedup.measured_speedup(
        model, mx.Patience(1), rows, rows=4, repeats=1
    ),
    "cost": lambda model, rows: model.cost(),
    "profile": lambda model, rows: mx.profile(model, batch_sizes=(1,), repeats=1),
    "trainer": lambda model, rows: mx.Trainer(model, mx.recipe("leebert"), config()),
    "berxit's trainer": lambda model, rows: mx.Trainer(model, mx.recipe("joint"), config()),
    "keep_exits": lambda model, rows: mx.keep_exits(model, [0, model.num_exits - 1]).cost(),
    "single_exit": lambda model, rows: static.single_exit(model).cost(),
    "fractions of compute": lambda model, rows: mx.MultiExitModel(
        model.backbone, CLASSES, [0.5, 1.0]
    ),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", ["images", "text"])
def test_every_submodule_has_its_own_mode_back(look, kind):
    model, rows = (convnet(), images()) if kind == "images" else (bert(), Text())
    before = state_of(mixed(model))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    LOOKS[look](model, rows)
    assert state_of(model) == before
    assert_same(model.state_dict(), weights)
    handle = breaking(model)
    with suppress(Stopped):  # where anything runs
        LOOKS[look](model, rows)
    handle.remove()
    assert state_of(model) == before


def test_head_importance_gives_modes_back():
    model = mixed(bert(exits=[2]))
    before = state_of(model)
    static.head_importance(model, Text())
    assert state_of(model) == before
    handle = breaking(model)
    with pytest.raises(Stopped):
        static.head_importance(model, Text())
    handle.remove()
    assert state_of(model) == before


def test_wrapping_gives_modes_back():
    stages = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()) for _ in range(3)]
    net = mixed(nn.Sequential(*stages))
    before = state_of(net)
    mx.wrap(net)
    assert state_of(net) == before
    with pytest.raises(ValueError, match="don't run as a chain"):
        mx.wrap(net, input_shape=(7,))
    assert state_of(net) == before


def test_a_teacher_keeps_its_modes():
    teacher = mixed(bert(exits=[2]))
    before = state_of(teacher)
    student = mx.MultiExitModel(static.first_layers(teacher.backbone, 2), CLASSES)
    fit(student, static.pkd(teacher, layers=2), config(max_steps=1), Text())
    assert state_of(teacher) == before
