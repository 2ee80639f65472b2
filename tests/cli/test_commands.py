"""The command line, as its users type it."""

import errno
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers import ROOT, assert_same, command
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

import multiexit as mx
from multiexit.cli import main
from multiexit.data.digits import load as load_digits
from multiexit.recipes import RECIPES
from multiexit.serving import raw_inputs
from multiexit.training import experiment

COMMANDS = ["demo", "train", "tune", "compare", "evaluate", "sweep", "predict", "recipes", "info"]
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "saw",
    "ate",
    "runs",
    "slept",
    "fish",
    "house",
    "quickly",
    "today",
    "not",
    "red",
    "blue",
    "old",
    "new",
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test asks the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def written(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the digits, one epoch."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    ended = command("train", "--task", "digits", "--epochs", 1, "--output", folder)
    assert ended.code == 0, ended.err
    return folder, ended


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory):
    """A tiny BERT with its tokenizer, a folder of MRPC's form, and a run of it."""
    place = tmp_path_factory.mktemp("mrpc")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (place / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape = BertConfig(vocab_size=len(vocabulary), intermediate_size=32, **sizes)
    BertModel(shape).save_pretrained(place / "bert")
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place / "bert")
    draw = random.Random(0)
    (place / "glue" / "MRPC").mkdir(parents=True)
    for split, rows in (("train", 48), ("dev", 16)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for row in range(rows):
            one = " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))
            two = one if row % 2 else " ".join(draw.choices(WORDS, k=6))
            lines.append(f"{row % 2}\t{row}\t{row}\t{one}\t{two}")
        (place / "glue" / "MRPC" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    ended = command(
        *("train", "--task", "mrpc", "--backbone", place / "bert", "--epochs", 2),
        *("--batch-size", 8, "--lr", 1e-3, "--recipe", "leebert", "--option", "temperature=2"),
        *("--data-dir", place / "glue", "--output", place / "run", "--checkpoint-every", 2),
    )
    assert ended.code == 0, ended.err
    return place, ended


# Without a model


def test_recipes_lists_every_method_with_its_paper():
    ended = command("recipes")
    assert ended.code == 0
    for name, make in RECIPES.items():
        assert f"\n{name} " in "\n" + ended.out
        assert f"{make().paper} ({make().year})" in ended.out


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Folders that transformers can't read, each in another way."""
    place = tmp_path_factory.mktemp("broken")
    shape = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    for name in ("empty", "alien", "bare", "torn", "other"):
        (place / name).mkdir()
    (place / "alien" / "config.json").write_text('{"model_type": "nope"}')
    BertModel(shape).save_pretrained(place / "bare")
    shape.save_pretrained(place / "torn")
    (place / "torn" / "tokenizer.json").write_text('{"model_type": "bert"}')
    shape.hidden_size = 16
    shape.save_pretrained(place / "other")
    shutil.copy(place / "bare" / "model.safetensors", place / "other")
    return place


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("info", "bert-base-uncasd"), "hub can't be reached.* What works: a hub name or folder"),
        (("info", "a b"), "no model 'a b': it is no folder, and can't be a name of the hub"),
        (("info", "empty"), "it has no config.json with a model_type"),
        (("info", "alien"), "can't stage a 'nope' model; of transformers, albert, bert"),
        (("info", "torn"), "no model '.*torn': .*no file named model.safetensors"),
        (("info", "other"), r"'.*other' don't fit: .* has the shape \[8\], .* it must be \[16\]"),
        (("predict", "nosuch/model", "x"), "no model 'nosuch/model': .*hub can't be reached"),
        (("predict", "a b", "x"), "no model 'a b': it is no folder, and can't be"),
        (("train", "bert-base-uncasd"), "no tokenizer for 'bert-base-uncasd': it is no folder, "),
        (("train", "bare"), "no tokenizer for '.*bare': the folder holds none: save it there"),
        (("train", "torn"), "no tokenizer for '.*torn': KeyError: 'added_tokens'"),
    ],
)
def test_what_the_libraries_cannot_read_is_refused_in_one_line(
    words, said, broken, tmp_path, caplog
):
    words = [str(broken / word) if (broken / word).is_dir() else word for word in words]
    if words[0] == "train":
        words = ["train", "--task", "mrpc", "--output", tmp_path / "run", "--backbone", words[1]]
    ended = command(*words)
    assert ended.code == 2
    assert re.fullmatch(f"(\rLoading weights.*\n)?multiexit: .*{said}.*\n", ended.err), ended.err
    assert caplog.text == ""


def test_info_counts_macs_and_parameters():
    ended = command("info", "cifar-resnet-56", "--classes", 10)
    assert ended.code == 0
    lines = ended.out.strip().splitlines()
    assert sum(line.split()[0].isdigit() for line in lines if line.strip()) == 27
    assert "125.5" in lines[-1]
    few = command("info", "cifar-resnet-20", "--exits", "0.5,1.0", "--head", "mixed-pool")
    assert few.code == 0
    assert sum(line.split()[0].isdigit() for line in few.out.splitlines() if line.strip()) == 2


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_an_example(name):
    ended = command(*([name] if name else []), "--help")
    assert ended.code == 0
    assert not ended.err
    if name:
        assert f"multiexit {name}" in ended.out
        assert "Example" in ended.out
    else:
        assert all(f" {other} " in ended.out for other in COMMANDS)


# Images


def test_training_reports_every_exit_and_many_policies(digits):
    folder, ended = digits
    assert {
        "history.json",
        "results.json",
        "results.png",
        "model/multiexit.json",
        "model/model.safetensors",
        "run.json",
    } <= written(folder)
    results = json.loads((folder / "results.json").read_text())
    assert len(results["exits"]) == 9
    assert "multiexit train --task digits" in json.dumps(results)
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "Patience" in ended.out or "patience" in ended.out
    settings = json.loads((folder / "model" / "multiexit.json").read_text())
    assert settings["labels"] == [str(digit) for digit in range(10)]
    assert settings["preprocessing"]["task"] == "digits"


def test_evaluating_gives_the_scores_of_training(digits, tmp_path):
    folder, _ = digits
    ended = command(
        *("evaluate", folder / "model", "--policy", "patience=2", "--policy", "max-prob=0.9"),
        *("--time-batch", 64, "--output", tmp_path),
    )
    assert ended.code == 0, ended.err
    one, two = (json.loads((path / "results.json").read_text()) for path in (folder, tmp_path))
    assert two["exits"] == one["exits"]
    assert [row["policy"]["class"] for row in two["policies"]] == ["Patience", "MaxProb"]
    assert all(row["speedup_time"] > 0 for row in two["policies"])
    outputs = mx.collect(mx.MultiExitModel.from_pretrained(folder / "model"), load_digits().test)
    wanted = mx.judge(outputs, mx.Patience(2))
    assert two["policies"][0]["score"] == pytest.approx(wanted.score)
    assert two["policies"][0]["speedup_macs"] == pytest.approx(wanted.speedup_macs)


@pytest.mark.parametrize(
    ("policy", "rows"),
    [("patience", 8), ("fixed", 9), ("entropy", 15), ("patient-confident", 75), ("margin", 15)],
)
def test_a_sweep_covers_the_whole_range(policy, rows, digits, tmp_path):
    ended = command("sweep", digits[0] / "model", "--policy", policy, "--output", tmp_path)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "results.json").read_text())
    layers = [row["mean_layers"] for row in results["policies"]]
    assert len(layers) == rows
    assert max(layers) == 9  # nobody leaves early
    assert min(layers) == 1 or policy == "patience"  # everyone does, at once
    assert (tmp_path / "results.png").exists()


@pytest.fixture
def pictures(tmp_path):
    """Ten digits of the test set as PNG files, and their inputs as the data set makes them."""
    test = load_digits().test
    files = []
    for row in range(10):
        pixels = test.images[row, 0].numpy()
        files.append(tmp_path / f"digit {row}.png")
        Image.fromarray(pixels).save(files[-1])
    return files, torch.stack([test[row][0] for row in range(10)])


def test_predicting_images_gives_one_json_line_each_in_order(digits, pictures):
    folder, _ = digits
    files, inputs = pictures
    words = ("predict", folder / "model", *files, "--policy", "max-prob=0.5")
    ended = command(*words)
    assert ended.code == 0, ended.err
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["file"] for answer in answers] == [str(path) for path in files]
    model = mx.MultiExitModel.from_pretrained(folder / "model")
    wanted = model.predict(mx.MaxProb(0.5), inputs)
    assert [answer["exit"] for answer in answers] == wanted.exit_B.tolist()
    assert len(set(wanted.exit_B.tolist())) > 1
    p_BC = wanted.logits_BC.softmax(-1)
    assert [int(answer["label"]) for answer in answers] == p_BC.argmax(-1).tolist()
    assert [a["confidence"] for a in answers] == pytest.approx(p_BC.amax(-1).tolist(), abs=1e-5)
    assert [a["layers"] for a in answers] == [a["exit"] + 1 for a in answers]
    smaller = command(*words, "--batch-size", 3).out.splitlines()  # sums are rounded otherwise
    assert [json.loads(line) for line in smaller] == [
        {**answer, "confidence": pytest.approx(answer["confidence"], abs=1e-5)}
        for answer in answers
    ]


def test_the_models_own_policy_is_the_default(digits, pictures):
    folder, _ = digits
    files, _ = pictures
    own = command("predict", folder / "model", *files)
    assert own.code == 0
    assert own.out == command("predict", folder / "model", *files, "--policy", "patience=4").out


def test_colour_and_other_sizes_are_taken_as_the_model_needs_them(digits, tmp_path):
    Image.new("RGB", (31, 17), (200, 10, 10)).save(tmp_path / "wide.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    ended = command("predict", digits[0] / "model", tmp_path / "wide.png", tmp_path / "clear.png")
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 2


def test_one_bad_image_among_many_is_one_line_and_the_others_are_answered(
    digits, pictures, tmp_path
):
    files, _ = pictures
    bad, missing = tmp_path / "bad.png", tmp_path / "missing.png"
    bad.write_bytes(files[0].read_bytes()[:40])
    given = [files[0], bad, *files[1:4], missing, *files[4:]]
    alone = command("predict", digits[0] / "model", *files)
    for size in (1, 2, 32):
        ended = command("predict", digits[0] / "model", *given, "--batch-size", size)
        assert (ended.code, len(ended.out.splitlines())) == (2, len(files))
        for one, two in zip(ended.out.splitlines(), alone.out.splitlines(), strict=True):
            got, wanted = json.loads(one), json.loads(two)
            assert got.pop("confidence") == pytest.approx(wanted.pop("confidence"), abs=1e-5)
            assert got == wanted
        first, second = ended.err.splitlines()
        assert (str(bad) in first, str(missing) in second) == (True, True)
    model = mx.MultiExitModel.from_pretrained(digits[0] / "model")
    rows = list(raw_inputs.predict_images(model, mx.Patience(2), given, 3))
    assert [row["file"] for row in rows] == [str(path) for path in given]
    assert [row["file"] for row in rows if "error" in row] == [str(bad), str(missing)]


def test_file_names_that_are_no_text_are_escaped(digits, pictures):
    odd = pictures[0][0].with_name("caf\udce9.png")
    odd.write_bytes(pictures[0][0].read_bytes())
    ended = command("predict", digits[0] / "model", odd)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["file"] == str(odd)
    assert ended.out.isascii()


# Text


def test_a_text_run_keeps_all_that_predicting_needs(mrpc):
    place, ended = mrpc
    files = written(place / "run")
    assert {"model/multiexit.json", "model/tokenizer.json", "results.json"} <= files
    results = json.loads((place / "run" / "results.json").read_text())
    assert len(results["exits"]) == 3
    assert {"accuracy", "f1", "score"} <= set(results["exits"][0]["scores"])
    history = mx.History.load(place / "run" / "history.json")
    assert len(history.epochs) == 2
    assert history.best is not None, "a tenth of train selects the epoch"
    assert history.weights
    assert "exit" in ended.out


def test_going_on_with_a_finished_run_only_reports(mrpc):
    place, _ = mrpc
    before = (place / "run" / "results.json").read_text()
    model = load_file(place / "run" / "model" / "model.safetensors")
    words = (
        *("train", "--task", "mrpc", "--backbone", place / "bert", "--epochs", 2),
        *("--batch-size", 8, "--lr", 1e-3, "--option", "temperature=2"),
        *("--data-dir", place / "glue", "--output", place / "run", "--resume"),
    )
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert_same(load_file(place / "run" / "model" / "model.safetensors"), model)
    after = json.loads((place / "run" / "results.json").read_text())
    assert after["exits"] == json.loads(before)["exits"]
    other = command(*words, "--seed", 5)
    assert other.code == 2
    assert "seed" in other.err


def test_a_model_without_its_checkpoint_still_evaluates(mrpc, tmp_path):
    place, _ = mrpc
    moved = place / "moved-bert"
    (place / "bert").rename(moved)
    try:
        ended = command(
            *("evaluate", place / "run" / "model", "--data-dir", place / "glue"),
            *("--output", tmp_path, "--policy", "patience=1"),
        )
    finally:
        moved.rename(place / "bert")
    assert ended.code == 0, ended.err
    one, two = (
        json.loads((path / "results.json").read_text()) for path in (place / "run", tmp_path)
    )
    assert two["exits"] == one["exits"]


LINES = [
    "the cat saw a dog\tthe cat saw a dog",
    "old house\ta new blue fish ate quickly today",
    "a cat\tnot a cat",
    "the dog runs\tthe dog slept",
    "red fish\tred fish",
]


def test_predicting_pairs_from_stdin(mrpc):
    place, _ = mrpc
    words = ("predict", place / "run" / "model", "--policy", "patience=1")
    ended = command(*words, stdin="\n".join(LINES) + "\n")
    assert ended.code == 0, ended.err
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["text"] for answer in answers] == LINES
    assert all(answer["label"] in ("not_equivalent", "equivalent") for answer in answers)
    assert all(0.5 <= answer["confidence"] <= 1 for answer in answers)
    for size in (1, 2, 5):  # what else is in the batch changes nothing
        other = command(*words, "--batch-size", size, stdin="\n".join(LINES) + "\n")
        again = [json.loads(line) for line in other.out.splitlines()]
        for one, two in zip(answers, again, strict=True):
            assert math.isclose(one.pop("confidence", 0), two.pop("confidence"), abs_tol=1e-4)
            assert one == two
        answers = [json.loads(line) for line in ended.out.splitlines()]


def test_a_line_without_its_second_sentence_is_named(mrpc, tmp_path):
    words = ("predict", mrpc[0] / "run" / "model")
    ended = command(*words, stdin="a cat\ta dog\nred fish\n")  # what came before is answered
    assert (ended.code, ended.out.count("\n"), "red fish" in ended.err) == (2, 1, True)
    one_line(ended.err)
    one_line(refused(tmp_path, *words, stdin="a\tcat\tdog\n", naming="tab"))


def test_predicting_pairs_is_what_training_reads(mrpc):
    """The same tokens as the data set makes: the scores of the dev set come out again."""
    place, _ = mrpc
    rows = (place / "glue" / "MRPC" / "dev.tsv").read_text().splitlines()[1:]
    fields = [row.split("\t") for row in rows]
    stdin = "".join(f"{one}\t{two}\n" for _, _, _, one, two in fields)
    ended = command("predict", place / "run" / "model", "--policy", "fixed=2", stdin=stdin)
    right = [
        json.loads(line)["label"] == ("not_equivalent", "equivalent")[int(row[0])]
        for line, row in zip(ended.out.splitlines(), fields, strict=True)
    ]
    results = json.loads((place / "run" / "results.json").read_text())
    assert sum(right) / len(right) == pytest.approx(results["exits"][2]["scores"]["accuracy"])


def test_a_file_of_lines_may_have_a_byte_order_mark_and_windows_line_ends(mrpc, tmp_path):
    place, _ = mrpc
    words = ("predict", place / "run" / "model")
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES[:4]).encode())
    ended = command(*words, tmp_path / "lines.txt")
    assert ended.code == 0, ended.err
    texts = [json.loads(line)["text"] for line in ended.out.splitlines()]
    assert texts == LINES[:4]
    assert ended.out == command(*words, stdin="\n".join(LINES[:4])).out
    assert command(*words, "-", stdin=LINES[0]).out == ended.out.splitlines(keepends=True)[0]


def test_no_lines_give_no_answers(mrpc):
    ended = command("predict", mrpc[0] / "run" / "model", stdin="")
    assert (ended.code, ended.out) == (0, "")


# What can't be done


def refused(tmp_path, *words, naming, stdin=""):
    """Exit code 2, one line on stderr, nothing on stdout, nothing written."""
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    here = Path.cwd()
    os.chdir(place)
    try:
        ended = command(*words, stdin=stdin)
    finally:
        os.chdir(here)
    assert ended.code == 2, ended
    assert naming in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert written(place) == set()
    return ended.err


def one_line(err):
    assert err.startswith("multiexit: ")
    assert err.count("\n") == 1, err


TRAIN = ("train", "--output", "run")


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        ((*TRAIN, "--task", "mnist"), "no task 'mnist'"),
        ((*TRAIN, "--task", "digits", "--recipe", "leeberd"), "no recipe 'leeberd'"),
        ((*TRAIN, "--task", "digits", "--option", "warmth=3"), "warmth"),
        ((*TRAIN, "--task", "digits", "--option", "temperature"), "NAME=VALUE"),
        ((*TRAIN, "--task", "digits", "--option", "temperature=0"), "temperature"),
        ((*TRAIN, "--task", "digits", "--option", "temperature=warm"), "temperature"),
        ((*TRAIN, "--task", "digits", "--option", "cycle=0"), "cycle"),
        ((*TRAIN, "--task", "digits", "--option", "topology=ring"), "ring"),
        ((*TRAIN, "--task", "digits", "--epochs", "0"), "epochs"),
        ((*TRAIN, "--task", "digits", "--lr", "nan"), "lr"),
        ((*TRAIN, "--task", "digits", "--mixed-precision", "fp4"), "fp4"),
        ((*TRAIN, "--task", "digits", "--schedule", "weak"), "weak"),
        ((*TRAIN, "--task", "digits", "--exits", "9,11"), "11"),
        ((*TRAIN, "--task", "digits", "--exits", "every"), "--exits"),
        ((*TRAIN, "--task", "digits", "--exits", "3,1"), "rise"),
        ((*TRAIN, "--task", "digits", "--head", "pointer"), "pointer"),
        ((*TRAIN, "--task", "digits", "--head", "attention"), "attention"),
        ((*TRAIN, "--task", "digits", "--pool", "max"), "max"),
        ((*TRAIN, "--task", "digits", "--backbone", "cifar-resnet-21"), "nearest is 20"),
        ((*TRAIN, "--task", "digits", "--weights", "none.safetensors"), "none.safetensors"),
        ((*TRAIN, "--task", "digits", "--validation", "2"), "must be a number in [0, 1)"),
        ((*TRAIN, "--task", "digits", "--tracker", "bogus"), "bogus"),
        (("info", "cifar-resnet-21"), "of depth 21, the nearest is 20"),
        (("info", "cifar-resnet-20", "--exits", "0"), "0"),
        (("evaluate", "nowhere/model"), "nowhere"),
        (("sweep", "nowhere/model"), "nowhere"),
        (("predict", "nowhere/model", "x.png"), "nowhere"),
    ],
)
def test_a_wrong_word_is_named_in_one_line(words, naming, tmp_path):
    one_line(refused(tmp_path, *words, naming=naming))


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--task", "digits"),
        ("train", *TRAIN[1:], "--task", "digits", "--epoch", "3"),
        ("train", *TRAIN[1:], "--task", "digits", "--epochs", "three"),
        ("demo", "--epochs", "0"),
        ("fly",),
    ],
)
def test_a_misused_option_is_shown(words, tmp_path):
    refused(tmp_path, *words, naming="rror")


def test_missing_text_data_says_where_it_was_looked_for(mrpc, tmp_path):
    place, _ = mrpc
    words = (*TRAIN, "--task", "mrpc", "--backbone", place / "bert")
    err = refused(
        tmp_path, *words, "--data-dir", tmp_path / "empty", naming=str(tmp_path / "empty")
    )
    assert "gluebenchmark.com" in err
    assert "MRPC" in err


def test_missing_images_say_where_they_were_looked_for(digits, tmp_path):
    here = ("--data-dir", tmp_path / "empty")
    for words in (
        (*TRAIN, "--task", "cifar10"),
        ("evaluate", digits[0] / "model", "--task", "cifar100"),
    ):
        err = refused(tmp_path, *words, *here, naming=str(tmp_path / "empty"))
        assert err.startswith(f"multiexit: {words[-1]}")


def test_a_backbone_that_is_none(mrpc, tmp_path):
    place, _ = mrpc
    words = (*TRAIN, "--task", "mrpc", "--data-dir", place / "glue", "--backbone")
    refused(tmp_path, *words, place / "glue", naming="glue")
    refused(tmp_path, *words, "nobody/nothing", naming="nobody/nothing")


@pytest.mark.parametrize("command_name", ["evaluate", "sweep", "predict"])
def test_a_folder_that_is_no_model(command_name, mrpc, tmp_path):
    folder = mrpc[0] / "bert"
    words = (command_name, folder, *(["x.png"] if command_name == "predict" else []))
    one_line(refused(tmp_path, *words, naming="not a saved MultiExitModel"))


def test_a_runs_folder_in_place_of_its_model(tmp_path):
    mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2).save_pretrained(
        tmp_path / "run" / "model"
    )
    hint = f"did you mean {tmp_path / 'run' / 'model'}?"
    one_line(refused(tmp_path, "predict", tmp_path / "run", "x.png", naming=hint))


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--policy", "luck=3"),
        ("evaluate", "--policy", "patience=0"),
        ("evaluate", "--policy", "patience=4.5"),
        ("evaluate", "--policy", "max-prob"),
        ("sweep", "--policy", "luck"),
        ("predict", "x.png", "--policy", "luck"),
        ("evaluate", "--task", "poetry"),
        ("predict",),
        ("predict", "nowhere.png"),
    ],
)
def test_what_a_model_can_not_do(words, digits, tmp_path):
    name, *rest = words
    naming = words[-1].partition("=")[0].removeprefix("--") if rest else "image files"
    one_line(refused(tmp_path, name, digits[0] / "model", *rest, naming=naming))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_image_is_named(content, digits, tmp_path):
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    one_line(refused(tmp_path, "predict", digits[0] / "model", file, naming=str(file)))


def test_an_image_cut_short_is_named(digits, tmp_path, pictures):
    whole = pictures[0][0].read_bytes()
    file = tmp_path / "cut.png"
    file.write_bytes(whole[: len(whole) // 2])
    one_line(refused(tmp_path, "predict", digits[0] / "model", file, naming=str(file)))


def test_text_that_is_not_utf_8_is_named(mrpc, tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("café\n".encode("latin-1"))
    one_line(refused(tmp_path, "predict", mrpc[0] / "run" / "model", file, naming=str(file)))
    missing = tmp_path / "missing.txt"
    one_line(refused(tmp_path, "predict", mrpc[0] / "run" / "model", missing, naming=str(missing)))


def test_a_run_of_another_kind_in_the_folder_is_not_gone_on_with(digits, tmp_path):
    folder, _ = digits
    before = written(folder)
    words = ("train", "--task", "digits", "--epochs", 2, "--output", folder, "--resume")
    one_line(refused(tmp_path, *words, naming="epochs"))
    assert written(folder) == before


# As a program


def run(*words, **more):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        **more,
    )


def test_the_program_itself_ends_with_its_code(tmp_path):
    done = run("-m", "multiexit.cli", *TRAIN, "--task", "mnist", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("multiexit: no task 'mnist'")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_importing_needs_none_of_the_heavy_libraries():
    heavy = ["datasets", "matplotlib", "pandas", "scipy.stats", "sklearn", "timm", "torchvision"]
    optional = ["onnxruntime", "optuna"]
    unwanted = [*heavy, "torch.distributed.fsdp", "torch._dynamo", *optional]
    code = (
        f"import sys, multiexit, multiexit.cli; print([m for m in {unwanted} if m in sys.modules])"
    )
    done = run("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_seed_fixes_the_whole_run(tmp_path):
    def weights(name, seed):
        torch.manual_seed(random.randrange(10**6))  # whatever was drawn before
        words = ["--task", "digits", "--max-steps", 2, "--seed", seed, "--output", tmp_path / name]
        assert command("train", *words).code == 0
        return load_file(tmp_path / name / "model" / "model.safetensors")

    first, again, other = weights("a", 3), weights("b", 3), weights("c", 4)
    assert_same(first, again)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("spelling", "name"), [("SST-2", "sst2"), ("CoLA", "cola"), ("Digits", "digits")]
)
def test_a_tasks_spelling_does_not_change_its_settings(spelling, name):
    assert experiment.config_for(spelling) == experiment.config_for(name)
    typed, plain = (experiment.recipe_for("leebert", task, {}) for task in (spelling, name))
    assert [repr(phase.learner) for phase in typed.phases] == [
        repr(phase.learner) for phase in plain.phases
    ]


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word():
    """`multiexit recipes | head -1`."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with (
        redirect_stdout(Closed()),
        redirect_stderr(io.StringIO()) as said,
        patch("sys.argv", ["multiexit", "recipes"]),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert ended.value.code == 1
    assert said.getvalue() == ""
