"""What makes training fast changes nothing else: compiled, laid out otherwise, computed twice."""

import copy
from contextlib import closing
from functools import cache, partial

import pytest
import torch
from accelerate import Accelerator
from helpers import (
    OF_CLASSES,
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    fit,
    images,
    saved_state,
    tensors,
)
from safetensors.torch import load_file
from test_every_recipe import KINDS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Subset

import multiexit as mx
from multiexit.backbones.transformers import text_inputs
from multiexit.data.images import on_device
from multiexit.losses import matrix
from multiexit.recipes.static import LayerDrop
from multiexit.runtime import modes_kept
from multiexit.training.stepper import Stepper

aten = torch.ops.aten


# No step waits for the device


class NoOps(TorchDispatchMode):
    """Refuses what would wait for a GPU to know a value or a size."""

    BAD = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2)
    BY_MASK = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = func.overloadpacket
        assert kind not in self.BAD, f"{func} reads back from the device"
        masks = args[1] if kind in self.BY_MASK else []
        assert all(m is None or m.dtype != torch.bool for m in masks), f"{func} by a mask waits"
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Refuses what takes a tensor from the device; on a CPU some of it is no operation at all."""

    BAD = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        bad = [name for name in self.BAD if func is getattr(torch.Tensor, name)]
        assert not bad, f"{bad} reads back from the device"
        return func(*args, **(kwargs or {}))


def batches_of(kind, rows):
    order = iter(range(10**6))

    def draw():
        first = 4 * next(order) % (len(rows) - 4)
        numbers = range(first, first + 4)
        if kind == "images":
            return rows.__getitems__(numbers)
        return rows.collate([rows[row] for row in numbers])

    return draw


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "text") for name in OF_CLASSES] + [("leebert", "images")]
)
def test_no_step_reads_back_from_the_device(name, kind, monkeypatch):
    """On the CPU, so that what is looked at where that costs nothing is let be."""
    monkeypatch.setattr(matrix, "_check_arguments", lambda *_: None)
    monkeypatch.setattr(text_inputs, "_check_values", lambda *_: None)
    make, rows = KINDS[kind]
    recipe = mx.recipe(name)
    model, draw = make(recipe.head), batches_of(kind, rows())
    settings = config(optimizer="adamw", clip=1.0)
    for phase in recipe.phases:
        with (
            modes_kept(model),
            closing(Stepper(model, phase, settings, Accelerator(cpu=True))) as s,
        ):
            if phase.learner.looks_back:  # compares its first derivative with another
                s.step([draw()], lambda: [draw()], 3, 4)
            for step in (2, 3):  # an even and an odd one, the last of a cycle
                micro, second = [draw()], [draw()]
                with NoOps(), NoReading():
                    s.step(micro, lambda some=second: some, step, 4)


# Options: alone, and all together


def train(name, kind, **changes):
    make, rows = KINDS[kind]
    recipe = mx.recipe(name)
    model, data = make(recipe.head), rows()
    dev = None
    if recipe.finish is not None:
        dev = data.for_evaluation() if kind == "images" else data
    history = fit(model, recipe, config(max_steps=2, batch_size=4, lr=0.02, **changes), data, dev)
    return tensors(model), history


@cache
def plain(name):
    """On images, without options."""
    return train(name, "images")


def assert_close(one, other, tolerance=1e-4):
    (ours, history), (theirs, expected) = one, other
    assert ours.keys() == theirs.keys(), "names must not change"
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    losses_of = [[row["loss"] for row in h.steps] for h in (history, expected)]
    assert losses_of[0] == pytest.approx(losses_of[1], rel=10 * tolerance)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_stages_computed_twice_train_bit_for_bit_the_same(name):
    ours, history = train(name, "images", checkpoint_gradients=True)
    theirs, expected = plain(name)
    assert_same(ours, theirs)
    assert history.weights == expected.weights


def test_text_computed_twice_trains_bit_for_bit_the_same():
    assert_same(train("leebert", "text", checkpoint_gradients=True)[0], train("leebert", "text")[0])


@pytest.fixture
def quick_compiler(monkeypatch):
    """Everything of `torch.compile` but the slow last part, which makes machine code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("name", ["leebert", "romebert"])
def test_the_whole_pass_is_compiled_and_trains_the_same(name, quick_compiler):
    """With a learned Ω, with surgery, both with dropout, text being read at several lengths."""
    model = train(name, "text", compile=True)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_close(model, train(name, "text"))


ALL = {"compile": True, "channels_last": True, "checkpoint_gradients": True}


@pytest.mark.parametrize("changes", [{}, {"mixed_precision": "bf16", "accumulation": 2}])
def test_all_options_go_together(changes, quick_compiler, tmp_path):
    """bf16 rounds to 3 digits, and a compiled pass rounds at other places."""
    ours = train("leebert", "images", output=tmp_path, **ALL, **changes)
    theirs = train("leebert", "images", **changes)
    assert_close(ours, theirs, 2e-2 if changes else 1e-4)
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert_same(tensors(again), ours[0])
    for values in load_file(tmp_path / "model/model.safetensors"), saved_state(tmp_path)["model"]:
        assert not [name for name in values if "_orig_mod" in name]


def test_real_machine_code_trains_the_same():
    model, found = chain(exits=2), []
    for compile in (False, True):
        made = copy.deepcopy(model)
        fit(made, "leebert-uniform", config(max_steps=2, batch_size=20, compile=compile), Table())
        found.append(tensors(made))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_channels_last_trains_the_same(name):
    assert_close(train(name, "images", channels_last=True), plain(name), 1e-3)


def test_a_run_with_channels_last_goes_on_exactly(tmp_path):
    """Files keep no strides, which fused optimisers need alike in weights and their state."""

    def run(stop, output, resume=False):
        rows = Watched(images(), stop) if stop else images()
        settings = config(
            optimizer="adamw", channels_last=True, output=output, resume=resume, checkpoint_every=2
        )
        model = convnet()
        fit(model, "romebert", settings, rows)
        return tensors(model)

    whole = run(None, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(7, tmp_path / "parts")
    assert_same(run(None, tmp_path / "parts", resume=True), whole)


@pytest.mark.parametrize(
    ("model", "name", "options", "message"),
    [
        (chain, "joint", {"channels_last": True}, "channels_last is a layout of images"),
        (convnet, "leebert-hyper", {"compile": True}, "compile doesn't go with 'leebert-hyper'"),
        (convnet, "l2w-den", {"compile": True}, "compile doesn't go with 'l2w-den'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_start(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        mx.Trainer(model(), mx.recipe(name), config(**options))


def test_layers_drawn_by_chance_are_not_compiled():
    backbone = LayerDrop(KINDS["text"][0](None).backbone)
    model = mx.MultiExitModel(backbone, 3)
    with pytest.raises(ValueError, match="compile doesn't go with LayerDrop"):
        mx.Trainer(model, mx.recipes.joint(), config(compile=True))


# Images on a device


def test_images_are_made_on_the_device_and_drawn_as_on_the_cpu(monkeypatch):
    """A device that has shapes and types alone refuses what mixes it with the CPU."""
    data, drawn = images(), []
    there = on_device(Subset(data, range(5, 25)), torch.device("meta"))
    real = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a: drawn.append(real(*a)) or drawn[-1])
    torch.manual_seed(0)
    data.__getitems__([5, 6, 9])
    state = torch.get_rng_state()
    torch.manual_seed(0)
    x_BCHW, labels_B = there.__getitems__([0, 1, 4])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(drawn[:2], drawn[2:], strict=True))
    assert x_BCHW.device.type == labels_B.device.type == "meta"
    assert x_BCHW.shape == (3, 1, 8, 8)


def test_only_images_of_a_bearable_size_are_moved(monkeypatch):
    meta, table = torch.device("meta"), Table()
    assert on_device(table, meta) is table
    monkeypatch.setattr("multiexit.data.images.LARGEST", 40 * 64 - 1)
    data = images()
    assert on_device(data, meta) is data


# Ω's pass over B1


@pytest.mark.parametrize("learner", [mx.weights.CLO1, mx.weights.CLO2])
def test_the_loss_of_the_step_itself_differs_by_what_the_step_moved(learner):
    """Where Θ stands still, L_B1 before and after its step are one."""

    def weights(lr, fresh):
        recipe = mx.recipes.leebert(learner=learner(rho=1.0, fresh=fresh))
        return torch.tensor(
            [
                [[w or 0.0 for w in row] for row in W_MM]
                for _, W_MM in fit(chain(), recipe, config(lr=lr), Table()).weights
            ]
        )

    torch.testing.assert_close(weights(1e-9, True), weights(1e-9, False), atol=1e-4, rtol=0)
    assert (weights(0.5, True) - weights(0.5, False)).abs().max() > 1e-3
