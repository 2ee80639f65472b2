"""Rows for a model that was trained on its user's own: what is said of them, and refused."""

import pytest
import torch
from helpers import command
from transformers import AutoTokenizer

import multiexit as mx
from multiexit.data import load


def rows(first: int, last: int) -> str:
    lines = [
        f"{'cat' if n % 2 else 'dog'} {'the ' * (1 + n % 7)}{n},{n % 2}" for n in range(first, last)
    ]
    return "\n".join(["text,label", *lines]) + "\n"


@pytest.fixture(scope="module")
def run(tiny_glue, tmp_path_factory):
    """A model, not trained in fact, that remembers a table with a fifth drawn for validation."""
    place = tmp_path_factory.mktemp("own")
    (place / "mine.csv").write_text(rows(0, 50))
    (place / "new.csv").write_text(rows(100, 120))
    tokenizer = AutoTokenizer.from_pretrained(tiny_glue / "bert")
    task = load(place / "mine.csv", tokenizer, notes=lambda note: None)
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.wrap(str(tiny_glue / "bert")), 2, labels=task.labels)
    model.preprocessing, model.policy = task.preprocessing, mx.Patience(2)
    model.save_pretrained(place / "run" / "model", tokenizer)
    return place


@pytest.mark.parametrize(("data", "learned"), [("mine", "40 of 50 rows of mine"), ("new", None)])
def test_rows_that_the_model_was_trained_on_are_counted(run, data, learned, tmp_path):
    for words in (["evaluate"], ["sweep", "--policy", "max-prob"]):
        ended = command(words[0], run / "run", *words[1:], "--data", run / f"{data}.csv",
                        "--output", tmp_path / words[0])  # fmt: skip
        assert ended.code == 0, ended.err
        assert ("among those that the model was trained on" in ended.err) == bool(learned)
        assert (learned or "") in ended.err


def test_where_it_cannot_be_told_that_is_said(run, tmp_path):
    (run / "mine.csv").rename(run / "away.csv")
    try:
        ended = command("evaluate", run / "run", "--data", run / "new.csv", "--output", tmp_path)
    finally:
        (run / "away.csv").rename(run / "mine.csv")
    assert ended.code == 0
    assert "can't be told" in ended.err


def test_a_folder_of_tasks_is_refused_beside_data_of_ones_own(run, tmp_path):
    ended = command("evaluate", run / "run", "--data-dir", run, "--output", tmp_path / "out")
    assert ended.code == 2
    assert "is of a task by its name" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_table_is_compared_on_by_its_columns(run, tmp_path, monkeypatch):
    given = {}

    def kept(model, output, policy, rows=None, **others):
        given["rows"] = rows
        raise ValueError("far enough")

    monkeypatch.setattr("multiexit.serving.onnx.export", kept)
    ended = command("export", run / "run", tmp_path / "onnx", "--data", run / "new.csv")
    assert ended.code == 2
    assert len(given["rows"]) == 20  # neither the heading nor the labels are texts
    ended = command("export", run / "run", tmp_path / "onnx", *(2 * ["--data", run / "new.csv"]))
    assert "one table at a time" in ended.err
