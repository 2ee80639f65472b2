"""What makes training fast changes nothing else: compiled, laid out otherwise, computed twice."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from helpers import assert_same, config, fit, tensors
from test_recipes import KINDS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import multiexit as mx
from multiexit import losses, recipes
from multiexit.stepper import Stepper

aten = torch.ops.aten


# No step waits for the device


class NoOps(TorchDispatchMode):
    """Refuses what would wait for a GPU to know a value or a size."""

    BAD = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2}
    BY_MASK = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = func.overloadpacket
        assert kind not in self.BAD, f"{func} reads back from the device"
        masks = args[1] if kind in self.BY_MASK else []
        assert all(m is None or m.dtype != torch.bool for m in masks), f"{func} by a mask waits"
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Refuses what takes a tensor from the device; on a CPU some of it is no operation at all."""

    BAD = {
        getattr(torch.Tensor, name)
        for name in ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__")
    }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in self.BAD, f"{func} reads back from the device"
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_no_step_reads_back_from_the_device(name, kind, monkeypatch):
    """On the CPU, so that labels, which are looked at where that costs nothing, are let be."""
    monkeypatch.setattr(losses, "check_labels", lambda *_: None)
    make, rows = KINDS[kind]
    recipe = mx.recipe(name)
    model, draw = make(recipe.head), batches_of(kind, rows())
    settings = config(optimizer="adamw", clip=1.0)
    for phase in recipe.phases:
        stepper = Stepper(model, phase, settings, Accelerator(cpu=True))
        steps = [([draw(), draw()], draw()) for _ in range(4)]
        for step, (micro, second) in enumerate(steps):
            with NoOps(), NoReading():
                stepper.step(micro, lambda some=second: some, step, 4)
        stepper.close()
