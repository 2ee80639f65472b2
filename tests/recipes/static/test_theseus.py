"""BERT-of-Theseus: the predecessor at rate 0, the successor at 1, and what is trained between."""

from dataclasses import replace

import pytest
import torch
from encoders import MAKE, STILL, assert_saves, batch, bert, count_runs, on
from helpers import Text, assert_same, config, fit, tensors

import multiexit as mx
from multiexit.recipes import static


@pytest.mark.parametrize("kind", ["bert", "albert", "albert of 3 groups", "distilbert"])
def test_theseus_runs_the_predecessor_at_0_and_the_successor_at_1(kind):
    inputs, _ = batch()
    predecessor = MAKE[kind]().eval()
    ship = static.Theseus(predecessor, 3)
    for module in ship.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for p in ship.layers.parameters():
            p.add_(0.1 * torch.randn_like(p))
        old = predecessor.features(**inputs)[1::2]
        new = ship.successor.eval().features(**inputs)
        ship.train()
        for p in (0.0, 1.0):
            ship.rate = p
            wanted = new if p else old
            for one, other in zip(ship.features(**inputs), wanted, strict=True):
                torch.testing.assert_close(one, other)
        ship.rate = 0.0
        for one, other in zip(ship.eval().features(**inputs), new, strict=True):
            torch.testing.assert_close(one, other)


def test_theseus_replaces_the_right_share():
    inputs, _ = batch(2)
    ship = static.Theseus(bert(**STILL), 3).train()
    ship.rate = 0.4
    with torch.no_grad():
        runs = count_runs(ship.successor, lambda: [ship.features(**inputs) for _ in range(200)])
    assert sum(runs) / 600 == pytest.approx(0.4, abs=0.08)


def test_theseus_trains_the_successors_layers_alone(tmp_path):
    predecessor = on(bert())
    model = static.single_exit(predecessor, static.Theseus(predecessor.backbone, 3))
    before, old = tensors(model), tensors(predecessor)
    (frozen,) = model.backbone._predecessor
    frozen_before = tensors(frozen)
    rates = []
    recipe = static.theseus(base=0.25, reach=0.5)
    recipe = replace(
        recipe,
        phases=tuple(
            replace(
                phase,
                before_step=lambda m, t, f=phase.before_step: (
                    f(m, t),
                    rates.append(m.backbone.rate),
                ),
            )
            for phase in recipe.phases
        ),
    )
    fit(model, recipe, config(max_steps=4, lr=0.05, output=tmp_path), Text())
    assert rates == [0.25, 0.625, 1.0, 1.0, *[1.0] * 4]
    assert_same(tensors(predecessor), old)
    assert_same(tensors(frozen), frozen_before)
    assert all(p.grad is None for p in frozen.parameters())
    after = dict(model.named_parameters())
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.startswith("backbone.layers.")}
    inputs, _ = batch()
    plain = static.successor(model).eval()
    assert torch.equal(plain(**inputs), model.eval()(**inputs))
    assert_saves(plain, tmp_path / "plain")
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert again.backbone.num_stages == 3


def test_theseus_steps_where_nothing_was_replaced():
    predecessor = on(bert())
    model = static.single_exit(predecessor, static.Theseus(predecessor.backbone, 2))
    recipe = static.theseus(base=0.0)
    first = replace(recipe, phases=(replace(recipe.phases[0], before_step=_never),))
    before = tensors(model)
    fit(model, first, config(max_steps=2), Text())
    assert_same(tensors(model), before)  # gradients of 0, not none


def _never(model, progress):
    model.backbone.rate = 0.0


def test_theseus_refuses():
    with pytest.raises(ValueError, match="blocks of one size"):
        static.Theseus(bert(), 4)
    with pytest.raises(ValueError, match=r"1\.\.6"):
        static.Theseus(bert(), 0)
    with pytest.raises(ValueError, match=r"base must be a number in \[0, 1\]"):
        static.theseus(base=1.1)
    for reach in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"reach must be a number in \(0, 1\], got"):
            static.theseus(reach=reach)
    with pytest.raises(ValueError, match="Theseus"):
        static.successor(on(bert()))
    with pytest.raises(ValueError, match=r"\.successor"):
        static.keep_layers(static.Theseus(bert(), 3), [0])
