"""The command line, as its users type it."""

import errno
import io
import json
import os
import random
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest
import torch
import typer.main
from helpers import ROOT, assert_same, command, written
from safetensors.torch import load_file

import multiexit as mx
from multiexit.cli import app, main
from multiexit.data.digits import load as load_digits
from multiexit.recipes import RECIPES
from multiexit.training import experiment

COMMANDS = [
    *("demo", "train", "tune", "compare", "evaluate", "sweep", "predict", "truncate"),
    *("recipes", "info"),
]


# Without a model


def test_recipes_lists_every_method_with_its_paper():
    ended = command("recipes")
    assert ended.code == 0
    for name, make in RECIPES.items():
        assert f"\n{name} " in "\n" + ended.out
        assert f"{make().paper} ({make().year})" in ended.out


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
    before = (tmp_path / "results.json").read_bytes()
    for words in (["evaluate"], ["sweep", "--policy", "fixed"]):
        again = command(words[0], folder / "model", *words[1:], "--output", tmp_path)
        assert again.code == 2
        assert again.err.strip() == (
            f"multiexit: {tmp_path} holds results: --overwrite replaces them; or name another "
            "output"
        )
    assert (tmp_path / "results.json").read_bytes() == before
    again = command("sweep", folder / "model", "--policy", "fixed", "--output", tmp_path,
                    "--overwrite")  # fmt: skip
    assert again.code == 0, again.err
    for told in (False, True):  # beside the model
        again = command("sweep", folder / "model", "--policy", "fixed")
        assert again.code == 0, again.err
        assert ("will be replaced" in again.err) == told


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
    done = run("-m", "multiexit.cli", "train", "--output", "run", "--task", "mnist", cwd=tmp_path)
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
    ("words", "kept"),
    [(["--max-steps", 2], None), (["--max-steps", 2, "--early-stopping", 3], 3), ([], 2)],
)
def test_all_steps_that_were_asked_for_are_taken(words, kept, tmp_path, tiny_glue):
    words = ["--data-dir", tiny_glue, "--backbone", tiny_glue / "bert", *words]
    ended = command("train", "--task", "sst2", *words, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["early_stopping"] == kept


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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    commands = typer.main.get_command(app).commands
    silent = [p.name for p in commands[name].params if not p.help]
    assert silent == []


def test_the_options_of_training_stand_under_headings():
    ended = command("train", "--help")
    headings = ["Data:", "Method:", "Network:", "Training:", "Speed and memory:", "Run:"]
    assert [line for line in ended.out.splitlines() if line in headings] == headings
