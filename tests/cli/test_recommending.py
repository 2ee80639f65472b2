"""`multiexit recommend`: what it says is true of the rows that judged, and what it stores."""

import re

import pytest
import torch
from helpers import command

import multiexit as mx
from multiexit.data import tasks
from multiexit.evaluation.recommendation import recommend


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a model of the digits."""
    torch.manual_seed(0)
    task = tasks.load("digits")
    model = mx.MultiExitModel(mx.cifar_resnet(20, in_channels=1, size=8), 10, exits=[0, 4, 8])
    model.preprocessing = task.preprocessing
    config = mx.TrainConfig(epochs=1, batch_size=64, lr=0.05, optimizer="sgd", progress=False)
    mx.Trainer(model, mx.recipe("joint"), config).fit(task.train)
    model.policy = mx.Patience(2)
    folder = tmp_path_factory.mktemp("digits")
    model.save_pretrained(folder / "model")
    return folder


def test_what_is_said_and_stored(run):
    outputs = mx.collect(
        mx.MultiExitModel.from_pretrained(run / "model"), tasks.load("digits").sets["test"]
    )
    advice = recommend(outputs, speedup=1.4, own=mx.Patience(2), seed=3)
    before = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    ended = command("recommend", run, "--speedup", 1.4, "--seed", 3)
    assert ended.code == 0, ended.err
    assert {path.name: path.read_bytes() for path in (run / "model").iterdir()} == before
    low, high = advice.interval
    row, full = advice.row, advice.full
    assert (
        f"On {advice.rows_judged} held-out rows that gets {100 * row.score:.1f} % right "
        f"(full network {100 * full.score:.1f} %, difference {100 * advice.difference:+.1f} "
        f"points, 95 % between {100 * low:+.1f} and {100 * high:+.1f})"
    ) in ended.out
    assert f"It runs {row.mean_layers:.1f} of 9 layers" in ended.out
    assert re.search(rf"^{advice.rows_chosen} other rows chose it", ended.out, re.MULTILINE)
    assert "--write" in ended.out
    choosing = mx.judge(outputs.split(0.5, 3)[0], mx.FixedExit(2))
    full_row = [line.split() for line in ended.out.splitlines() if line.startswith("fixed=2 ")][-1]
    assert full_row[1] == f"{100 * choosing.score:.2f}"
    scores = [row["score"] for row in mx.exit_scores(outputs)]
    behind = 100 * (scores[-1] - scores[0])
    advised = f"the first exit is {behind:.1f} points below the last one"
    assert (advised in ended.out and "--recipe leebert-group-dro" in ended.out) == (behind >= 5)
    ended = command("recommend", run / "model", "--speedup", 1.4, "--seed", 3, "--write")
    assert ended.code == 0, ended.err
    assert "(was patience=2)\n" in ended.out
    assert mx.MultiExitModel.from_pretrained(run / "model").policy == row.policy


def test_what_loses_more_than_allowed_is_not_proposed(run):
    outputs = mx.collect(
        mx.MultiExitModel.from_pretrained(run / "model"), tasks.load("digits").sets["test"]
    )
    advice = recommend(outputs, max_loss=0.01, own=mx.Patience(2), share=0.03)
    assert advice.interval[1] < -0.01  # few rows chose it
    ended = command("recommend", run, "--max-loss", 1, "--share", 0.03, "--task", "digits")
    assert ended.code == 0, ended.err
    assert "it loses more than the 1 point that you allow" in ended.out
    assert "--write" not in ended.out
    next_step = re.search(r"^next: `multiexit (calibrate .* --risk .*)` ", ended.out, re.MULTILINE)
    assert next_step is not None
    assert command(*next_step[1].split()).code == 0


def test_milliseconds_ask_for_a_table(run):
    ended = command("recommend", run, "--milliseconds", 5)
    assert ended.code == 2
    assert "multiexit profile" in ended.err


def test_points_that_are_less_than_a_row_were_meant_as_a_share(run, monkeypatch):
    monkeypatch.setattr("multiexit.evaluation.outputs.collect", None)  # before the model runs
    ended = command("recommend", run, "--max-loss", 0.005)
    assert ended.code == 2
    assert "--max-loss is in points, and 0.005 is less than one row" in ended.err
    assert "did you mean 0.5? 0 is no loss at all" in ended.err
