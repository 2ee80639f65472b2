"""`multiexit truncate`: an exit as a network of transformers or timm, on the disk."""

import shutil

import pytest
import timm
import torch
from helpers import command, written
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import multiexit as mx


def test_an_exit_is_written_as_other_tools_load_it(mrpc, tmp_path):
    run = mrpc[0] / "run"
    for folder in (run, run / "model"):
        output = tmp_path / folder.name
        ended = command("truncate", folder, 1, "--output", output)
        assert ended.code == 0, ended.err
        assert ended.out == f"{output}: a BertForSequenceClassification of 2 of 3 stages\n"
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= written(output)
        assert "multiexit.json" not in written(output)
    network = AutoModelForSequenceClassification.from_pretrained(output).eval()
    rows = AutoTokenizer.from_pretrained(output)(
        ["the cat saw a dog", "a fish"], ["not the dog", "old"], return_tensors="pt", padding=True
    )
    model = mx.MultiExitModel.from_pretrained(run / "model")
    wanted_BC = model.predict(mx.FixedExit(1), **rows).logits_BC
    with torch.no_grad():
        torch.testing.assert_close(network(**rows).logits, wanted_BC)


def test_a_model_without_a_tokenizer_says_so(mrpc, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(mrpc[0] / "run" / "model", folder)
    for path in folder.glob("*token*"):
        path.unlink()
    ended = command("truncate", folder, 0, "--output", tmp_path / "cut")
    assert ended.code == 0, ended.err
    assert f"{folder} has no tokenizer: save one" in ended.out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("model", 3), "one of 0..2; got 3"),
        (("nowhere", 1), "no model"),
        (("model", "x"), "valid integer"),
    ],
)
def test_what_isnt_there_is_named(words, reason, mrpc, tmp_path):
    folder, exit = words
    ended = command("truncate", mrpc[0] / "run" / folder, exit, "--output", tmp_path / "cut")
    assert ended.code == 2
    assert reason in ended.err
    assert written(tmp_path) == set()


def test_an_exit_of_timm_is_written_as_timm_loads_it(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3)
    model = mx.MultiExitModel(mx.wrap(network), 2, labels=["cat", "dog"]).eval()
    how = {"kind": "image", "shape": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    model.preprocessing = how
    model.save_pretrained(tmp_path / "model")
    ended = command("truncate", tmp_path / "model", 1, "--output", tmp_path / "cut")
    assert ended.code == 0, ended.err
    assert ended.out == f"{tmp_path / 'cut'}: a VisionTransformer of 2 of 3 stages\n"
    assert written(tmp_path / "cut") == {"config.json", "model.safetensors"}
    again = timm.create_model(f"local-dir:{tmp_path / 'cut'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted_BC = model.predict(mx.FixedExit(1), x).logits_BC
        torch.testing.assert_close(again(x), wanted_BC)
    assert tuple(again.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert list(again.pretrained_cfg["label_names"]) == ["cat", "dog"]


def test_an_exit_that_fits_no_class_is_refused_with_what_else_there_is(digits, tmp_path):
    ended = command("truncate", digits[0], 1, "--output", tmp_path / "cut")
    assert ended.code == 2
    assert "exit 1 fits no class of a library: only networks of transformers and timm" in ended.err
    assert "multiexit.keep_exits(model, [1])" in ended.err
    assert written(tmp_path) == set()


def test_a_folder_that_is_there_stays(mrpc, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    ended = command("truncate", mrpc[0] / "run", 1, "--output", tmp_path)
    assert (ended.code, written(tmp_path)) == (2, {"note.txt"})
    assert f"{tmp_path} exists already" in ended.err
    ended = command("truncate", mrpc[0] / "run", 1, "--output", tmp_path / "note.txt" / "cut")
    assert ended.code == 2
    assert "note.txt is no folder" in ended.err
