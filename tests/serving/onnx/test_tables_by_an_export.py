"""`multiexit predict` by an export: tables, as its classifier answers them."""

import csv

import pytest
from answering import texts
from helpers import command, killed_behind

import multiexit as mx


def test_a_table_is_answered_and_gone_on_with(exported_texts, tmp_path):
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
    assert (ended.code, "with policy {'threshold': 0.6}" in ended.err) == (2, True)
    assert "16 rows were answered" in command(*words, "--output", tmp_path / "out.csv").err
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    ended = command(*words, "--output", tmp_path / "out.csv", "--policy", "patience=2")
    assert (ended.code, "these graphs hold the policy max-prob" in ended.err) == (2, True)


def test_lines_of_text_are_not_for_an_export(exported_texts):
    ended = command("predict", exported_texts[-1], stdin="the cat\n")
    assert ended.code == 2
    assert "is an export, which answers tables here: name a column by --text" in ended.err
