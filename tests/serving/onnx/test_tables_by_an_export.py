"""`multiexit predict` by an export: tables and lines, as its classifier answers them."""

import csv
import json

import pytest
from answering import texts
from helpers import command, killed_behind

import multiexit as mx
from multiexit_runner.answering import WINDOWS


def test_a_table_is_answered_and_gone_on_with(exported_texts, tmp_path, monkeypatch):
    monkeypatch.setitem(WINDOWS, "text", 4)
    folder, rows = exported_texts[-1], texts(30, seed=2)
    (tmp_path / "in.csv").write_text("\n".join(["review", *rows, ""]))
    words = ("predict", folder, tmp_path / "in.csv", "--text", "review", "--batch-size", 2)
    ended = command(*words, "--output", tmp_path / "whole.csv")
    assert ended.code == 0, ended.err
    with (tmp_path / "whole.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    wanted = mx.Classifier.from_pretrained(folder)(rows)
    assert len({answer["exit"] for answer in wanted}) > 2
    for row, answer in zip(read, wanted, strict=True):
        assert (row["label"], row["exit"]) == (answer["label"], str(answer["exit"]))
        assert float(row["score"]) == pytest.approx(answer["score"], abs=1e-5)
    with killed_behind(2):
        command(*words, "--output", tmp_path / "out.csv")
    ended = command(*words, "--output", tmp_path / "out.csv", "--policy", "max-prob=0.9")
    assert (ended.code, "with policy max-prob=0.6" in ended.err) == (2, True)
    assert "16 rows were answered" in command(*words, "--output", tmp_path / "out.csv").err
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    ended = command(*words, "--output", tmp_path / "out.csv", "--policy", "patience=2")
    assert (ended.code, "these graphs hold the policy max-prob" in ended.err) == (2, True)


def test_lines_are_answered_as_by_its_classifier(exported_texts, tmp_path):
    folder, rows = exported_texts[-1], texts(9, seed=2)
    (tmp_path / "in.txt").write_text("\n".join([*rows[:4], " ", *rows[4:]]))
    ended = command("predict", folder, tmp_path / "in.txt", "--all-scores")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "line 5" in ended.err
    answers = [json.loads(line) for line in ended.out.splitlines()]
    wanted = mx.Classifier.from_pretrained(folder)(rows)
    for row, answer, text in zip(answers, wanted, rows, strict=True):
        assert (row["text"], row["label"], row["exit"]) == (text, answer["label"], answer["exit"])
        assert row["score"] == pytest.approx(answer["score"], abs=1e-5)
        assert row["scores"] == pytest.approx(answer["scores"], abs=1e-5)
