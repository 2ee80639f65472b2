"""A model that keeps some of its exits."""

import pytest
import torch
from helpers import chain, latency_table

import multiexit as mx


def test_kept_exits_say_what_they_said(network):
    model, inputs = network
    before = torch.random.get_rng_state()
    some = mx.keep_exits(model, [1, 4])
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(some(**inputs), model(**inputs)[[1, 4]])
    assert some.num_exits == 2
    assert next(some.backbone.parameters()) is next(model.backbone.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_kept_exits_have_the_model_s_precision(dtype):
    model = chain().to(dtype).eval()
    model.temperature_M.fill_(1.1)
    some = mx.keep_exits(model, [1])
    assert some.temperature_M.dtype == dtype
    assert torch.equal(some.temperature_M, model.temperature_M[[1]])


def test_kept_exits_survive_a_folder(mlp, tmp_path):
    model, inputs = mlp
    model.policy, model.latency = mx.Patience(2), latency_table(model, (1.0, 2.0), 0.0)
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


def test_exits_that_can_t_be_kept_are_named(mlp):
    model, _ = mlp
    for wrong in ([], [3, 1], [1, 1], [5], [-1], [0.0], "0", 1):
        with pytest.raises(ValueError, match=r"rise within 0\.\.4"):
            mx.keep_exits(model, wrong)
    with pytest.raises(ValueError, match="CascadedHead reads"):
        mx.keep_exits(chain(head="linear+cascade"), [0, 3])
