"""What a command can't do: exit code 2, one line on stderr, and no trace."""

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import command, written
from transformers import BertConfig, BertModel
from typer.main import get_command

import multiexit as mx
from multiexit.arguments import ELSEWHERE
from multiexit.cli import app


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


# Words


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
        ((*TRAIN, "--task", "mrpc", "--mixup", "0.2"), "--mixup mixes images, and these rows are"),
        ((*TRAIN, "--task", "digits", "--class-weights", "1,2"), "2 numbers, for 10 classes"),
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
        (
            (*TRAIN, "--task", "digits", "--model", "x"),
            "no option --model: did you mean --backbone",
        ),
        ((*TRAIN, "--train_file=a.csv"), "no option --train_file: did you mean --data?"),
        ((*TRAIN, "--task", "mrpc", "--backbone", "timm:resnet18"), "timm networks read images"),
        (("report", __file__), "is a file; report takes a run's folder"),
        (("recommend", "run"), "give one of --speedup, --max-loss, --milliseconds; got none"),
        (("evaluate", "nowhere/model"), "nowhere"),
        (("sweep", "nowhere/model"), "nowhere"),
        (("predict", "nowhere/model", "x.png"), "nowhere"),
    ],
)
def test_a_wrong_word_is_named_in_one_line(words, naming, tmp_path):
    one_line(refused(tmp_path, *words, naming=naming))


def test_options_of_other_tools_are_none_here_and_mean_some_that_are():
    options = {p.name for p in get_command(app).commands["train"].params}
    assert {*ELSEWHERE.values()} <= options
    assert not {*ELSEWHERE} & options


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


# Folders


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
        (("info", "alien"), "model_type 'nope', which this version of transformers doesn't know"),
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


def test_a_runs_folder_stands_for_its_model(tmp_path):
    mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2).save_pretrained(
        tmp_path / "run" / "model"
    )
    one_line(refused(tmp_path, "predict", tmp_path / "run", "x.png", naming="no policy of its own"))


def test_a_run_of_another_kind_in_the_folder_is_not_gone_on_with(digits, tmp_path):
    folder, _ = digits
    before = written(folder)
    words = ("train", "--task", "digits", "--epochs", 2, "--output", folder, "--resume")
    one_line(refused(tmp_path, *words, naming="epochs"))
    assert written(folder) == before


# Policies and inputs


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
        ("predict", "nowhere.csv"),
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


def test_a_line_without_its_second_sentence_is_named(mrpc, tmp_path):
    words = ("predict", mrpc[0] / "run" / "model")
    said = "line 2: this model reads sentence pairs, one tab between them; got 'red fish'"
    for size in (1, 32):
        stdin = "a cat\ta dog\nred fish\na dog\ta dog\n"
        ended = command(*words, "--batch-size", size, stdin=stdin)
        assert (ended.code, ended.out.count("\n")) == (2, 2)  # the others are answered
        assert ended.err == f"multiexit: {said}\n"
    one_line(refused(tmp_path, *words, stdin="a\tcat\tdog\n", naming="line 1: "))
    (tmp_path / "rows.txt").write_text("a cat\ta dog\nred fish\n")
    words = ("export", mrpc[0] / "run" / "model", "out", "--data", tmp_path / "rows.txt")
    one_line(refused(tmp_path, *words, naming=said))


# What can't be pushed is known before the run


@pytest.mark.parametrize(
    ("offline", "naming"), [(True, "HF_HUB_OFFLINE"), (False, "hf auth login")]
)
def test_a_push_that_must_fail_begins_no_run(offline, naming, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("multiexit.model.hub.get_token", lambda: None)
    words = (*TRAIN, "--task", "digits", "--push", "me/digits")
    one_line(refused(tmp_path, *words, naming=naming))


# Runs that have not ended, and folders that aren't to be written in


@pytest.mark.parametrize(
    "words",
    [
        ("info",),
        ("report",),
        ("predict", "-"),
        ("calibrate", "--speedup", "2"),
    ],
)
def test_a_run_without_a_model_yet(words, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    one_line(refused(tmp_path, words[0], run, *words[1:], naming="go on with it by --resume"))


@pytest.mark.parametrize(
    "words",
    [
        ("report",),
        ("calibrate", "--speedup", "2"),
        ("recommend", "--speedup", "2", "--write"),
        ("profile",),
    ],
)
def test_a_folder_that_is_not_to_be_written_in(words, digits, tmp_path, monkeypatch):
    folder, _ = digits
    before = written(folder)
    real = os.access
    writing = os.W_OK | os.X_OK
    monkeypatch.setattr("os.access", lambda path, mode: mode != writing and real(path, mode))
    one_line(refused(tmp_path, words[0], folder, *words[1:], naming="no permission to write in"))
    assert written(folder) == before
