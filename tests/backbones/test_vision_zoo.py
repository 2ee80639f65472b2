"""Every family of timm and torchvision is wrapped as its own forward computes, or refused."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from vision_zoo import CLASSES, SLOW, torchvision_names, zoo

import multiexit as mx

NO_GRAPH = "its forward can't be followed"
BESIDE = "in fewer than two places one tensor alone leads to the next block"
REFUSED = {
    "timm/crossvit": NO_GRAPH,  # two branches, resized to each other
    "timm/efficientvim": "for the last time, .*% of the compute is done",
    "timm/gemma4_vit": BESIDE,  # positions, worked out once for all blocks
    "timm/nasnet": BESIDE,  # a cell reads the two before it
    "timm/pnasnet": BESIDE,
    "timm/qwen3_vit": BESIDE,
    "timm/vision_transformer_sam": NO_GRAPH,
}
TABLES = Path(__file__).parents[2] / "docs" / "results" / "vision"
SHARES = {"timm": 0.9, "torchvision": 1.0}


def wrapped(key):
    if key not in zoo():
        pytest.skip("not in this version of the library")
    entry = zoo()[key]
    network = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return network, mx.wrap(network, input_shape=entry.input_shape), entry


@pytest.mark.parametrize("key", [key for key in REFUSED if key not in SLOW])
def test_these_are_refused_with_the_reason_and_what_would_work(key):
    with pytest.raises(ValueError, match=REFUSED[key]) as refusal:
        wrapped(key)
    assert "stages=[…]" in str(refusal.value)


@pytest.mark.parametrize("library", SHARES)
def test_nearly_all_families_are_wrapped(library):
    keys = [key for key in zoo() if zoo()[key].library == library]
    assert sum(key not in REFUSED for key in keys) >= SHARES[library] * len(keys)


@pytest.mark.parametrize("key", [k for k in zoo() if k not in REFUSED and k not in SLOW])
def test_rows_answer_as_alone_and_the_last_exit_as_the_network(key):
    network, backbone, entry = wrapped(key)
    model = mx.MultiExitModel(backbone, CLASSES).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.heads[:-1].parameters():
            p.normal_()
    x = torch.randn(3, *entry.input_shape)
    policy = mx.MaxProb(0.6)
    with torch.no_grad():
        logits_MBC, theirs_BC = model(x), network(x)
    together, alone = model.predict(policy, x), [model.predict(policy, row[None]) for row in x]
    assert torch.equal(logits_MBC[-1], theirs_BC)
    assert together.exit_B.tolist() == mx.simulate(policy, logits_MBC).tolist()
    assert together.exit_B.tolist() == [int(prediction.exit_B) for prediction in alone]
    for row, prediction in enumerate(alone):
        torch.testing.assert_close(
            together.logits_BC[row], prediction.logits_BC[0], rtol=1e-3, atol=1e-3
        )


def test_the_documentation_lists_the_same_families():
    rows = json.loads((TABLES / "each-family.json").read_text(encoding="utf-8"))["rows"]
    refused = {f"{row['library']}/{row['family']}" for row in rows if row["stages"] == "refused"}
    assert refused == REFUSED.keys()
    assert {row["difference"] for row in rows if row["stages"] != "refused"} == {"0"}
    listed = {row["network"] for row in rows if row["library"] == "torchvision"}
    assert listed <= set(torchvision_names())
