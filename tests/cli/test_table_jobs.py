"""`multiexit predict` of a table into a file: killed anywhere, started again, the same file."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet
import pytest
from answering import image_model, pictures, text_model, texts, tokenizer_in
from helpers import ROOT, Killed, command, killed_behind

import multiexit as mx
from multiexit.cli import part_file, row_files, rows_done, table_job
from multiexit.cli.table_rows import TableRows
from multiexit_runner.answering import WINDOWS

ROWS = [{"id": n, "review": text} for n, text in enumerate(texts(38))]
SIZE = 8
"""Rows of a part, of four batches of 2."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setitem(WINDOWS, "text", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tokenizer = tokenizer_in(place)
    model = text_model(tokenizer)
    model.policy = mx.MaxProb(0.6)
    model.save_pretrained(place / "saved", tokenizer)
    return place / "saved"


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def predict(model, table, out, *more, code=0):
    words = ("--text", "review", "--batch-size", 2, "--output", out)
    ended = command("predict", model, table, *words, *more)
    assert ended.code == code, ended.err
    return ended.err


def parts_of(monkeypatch, model, table, out) -> bytes:
    """What the part file holds when all rows are answered, and the output isn't there yet."""

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(row_files, "write", kill)
        with pytest.raises(Killed):
            predict(model, table, out)
    assert not out.exists()
    part = out.with_name(out.name + ".part")
    data = part.read_bytes()
    part.unlink()
    return data


@pytest.fixture
def answered(monkeypatch):
    """The rows that went through the model."""
    rows, inner = [], table_job.classified

    def counted(classify, values, *more):
        rows.extend(values)
        return inner(classify, values, *more)

    monkeypatch.setattr(table_job, "classified", counted)
    return rows


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_wherever_it_was_killed_the_file_is_the_same_and_no_row_is_answered_twice(
    suffix, model, tmp_path, monkeypatch, answered
):
    table = write(tmp_path / "in.csv")
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    predict(model, table, whole)
    data = parts_of(monkeypatch, model, table, out)
    ends = [n + 1 for n, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 1 + -(-len(ROWS) // SIZE)
    cuts = [0, 7, ends[0], ends[0] + 9, ends[2] - 1, ends[2], ends[-2] + 40, len(data)]
    for cut in cuts:
        out.with_name(out.name + ".part").write_bytes(data[:cut])
        answered.clear()
        said = predict(model, table, out)
        there = min(len(ROWS), SIZE * max(0, sum(end <= cut for end in ends) - 1))
        assert answered == [row["review"] for row in ROWS[there:]]
        assert (f"{there} rows were answered" in said) == bool(there)
        assert out.read_bytes() == whole.read_bytes()
        out.unlink()
        assert {path.name for path in tmp_path.iterdir()} == {"in.csv", whole.name}


def test_a_killed_process_leaves_no_file_but_its_parts(model, tmp_path):
    table = write(tmp_path / "in.parquet")
    predict(model, table, tmp_path / "whole.parquet")
    code = """
import os, signal, sys
from multiexit import cli
from multiexit.cli.part_file import PartFile
from multiexit_runner.answering import WINDOWS
WINDOWS["text"] = 4
add, added = PartFile.add, []
def killed(parts, part):
    if len(added) == 3:
        parts._file.write(b'["half of a')
        parts._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    added.append(add(parts, part))
PartFile.add = killed
cli.main()
"""
    out = tmp_path / "out.parquet"
    words = ["predict", model, table, "--text", "review", "--batch-size", "2", "--output", out]
    words = [sys.executable, "-c", code, *map(str, words)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"in.parquet", "whole.parquet", "out.parquet.part"}
    assert "24 rows were answered by an earlier command" in predict(model, table, out)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_rows_behind_those_answered_may_change_and_come(model, tmp_path, monkeypatch):
    out, table = tmp_path / "out.csv", write(tmp_path / "in.csv")
    data = parts_of(monkeypatch, model, table, out)
    later = [*ROWS[: 3 * SIZE], *({"id": n, "review": "a red cat"} for n in range(9))]
    later[2] = {**later[2], "id": "other"}  # which the model doesn't read
    write(table, later)
    predict(model, table, tmp_path / "whole.csv")
    lines = data.splitlines(keepends=True)
    (tmp_path / "out.csv.part").write_bytes(b"".join(lines[:4]))
    assert "24 rows were answered" in predict(model, table, out)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_answers_of_another_job_are_refused(model, tmp_path, monkeypatch):
    out, table = tmp_path / "out.csv", write(tmp_path / "in.csv")
    part = tmp_path / "out.csv.part"
    part.write_bytes(data := parts_of(monkeypatch, model, table, out))
    other = tmp_path / "other"
    shutil.copytree(model, other)
    changed = mx.MultiExitModel.from_pretrained(other)
    changed.policy = mx.MaxProb(0.7)
    changed.save_pretrained(other)
    for words, message in [
        ((other,), "of another model"),
        ((model, "--policy", "max-prob=0.7"), "with policy max-prob=0.6, which is max-prob=0.7"),
        ((model, "--batch-size", 3), "with --batch-size 2, which is 3 now"),
        ((model, "--all-scores"), "with columns"),
    ]:
        given = ("--text", "review", "--output", out)
        batch = () if "--batch-size" in words else ("--batch-size", 2)
        ended = command("predict", words[0], table, *given, *batch, *words[1:])
        assert ended.code == 2
        assert message in ended.err
        assert f"{part}" in ended.err
        assert "remove it to begin anew" in ended.err
        assert part.read_bytes() == data
    write(table, [*ROWS[:11], {**ROWS[11], "review": "the fish"}, *ROWS[12:]])
    said = predict(model, table, out, code=2)
    assert "the rows from" in said
    assert "in.csv, line 10 on have changed since they were answered: remove" in said
    write(table, ROWS[:-1])
    assert "have changed since" in predict(model, table, out, code=2)
    part.write_bytes(b"part of a download\n")
    assert "out.csv.part is of another kind" in predict(model, table, out, code=2)
    assert part.read_bytes() == b"part of a download\n"
    assert not out.exists()


def test_a_table_that_changes_while_it_is_answered_is_noticed(model, tmp_path, monkeypatch):
    out, table = tmp_path / "out.csv", write(tmp_path / "in.csv")
    inner = row_files.write

    def late(*args):
        write(table, [*ROWS, ROWS[0]])
        inner(*args)

    monkeypatch.setattr(row_files, "write", late)
    assert "have changed since they were answered" in predict(model, table, out, code=2)
    assert not out.exists()


def test_how_many_rows_are_answered_is_told_of_what_takes_long(model, tmp_path, monkeypatch):
    table = write(tmp_path / "in.csv")
    assert " rows" not in predict(model, table, tmp_path / "quick.csv")
    monkeypatch.setattr(rows_done, "PAUSE", 0)
    told = [
        line for line in predict(model, table, tmp_path / "out.csv").splitlines() if "/s" in line
    ]
    assert [line.split()[1] for line in told] == [f"{n}/38" for n in (8, 16, 24, 32)]
    assert told[0].startswith("predict: 8/38 rows, ")
    assert told[0].endswith(" left")
    stdin = "".join(json.dumps(row) + "\n" for row in ROWS)
    ended = command(
        "predict", model, "--text", "review", "--output", tmp_path / "3.csv", stdin=stdin
    )
    assert "predict: 38 rows, " in ended.err


def test_two_commands_do_not_write_one_file(model, tmp_path):
    out, table = tmp_path / "out.csv", write(tmp_path / "in.csv")
    with part_file.kept(out, {}):
        said = predict(model, table, out, code=2)
    assert "out.csv.part is being written by another command" in said


def test_a_part_file_that_another_command_removes_before_it_is_held_is_made_anew(
    tmp_path, monkeypatch
):
    part, lock, ends = tmp_path / "out.csv.part", part_file.fcntl.flock, [True]

    def flock(file, how):
        if ends and ends.pop():
            part.unlink()
        lock(file, how)

    monkeypatch.setattr(part_file.fcntl, "flock", flock)
    with part_file.kept(tmp_path / "out.csv", {}) as parts:
        parts.add(part_file.Part("", []))
        assert len(part.read_bytes().splitlines()) == 2
    assert not part.exists()


def test_few_rows_are_held_at_a_time(model, tmp_path, monkeypatch):
    """A part's, while they are answered and while they are written."""
    read, done, passes = [0], [0], []
    inner_read, classified, inner_write = TableRows.read, table_job.classified, row_files.write

    def counted(rows, bad):
        for each in inner_read(rows, bad):
            read[0] += 1
            yield each

    def answered(classify, values, *more):
        assert read[0] - done[0] <= SIZE
        done[0] += len(values)
        return classified(classify, values, *more)

    def write_all(path, columns, rows, types):
        passes.append(done[0])
        read[0] = done[0] = 0

        def watched():
            for row in rows:
                assert read[0] - done[0] <= SIZE
                done[0] += 1
                yield row

        inner_write(path, columns, watched(), types)
        passes.append(done[0])

    table = write(tmp_path / "in.csv")
    monkeypatch.setattr(TableRows, "check", lambda rows: None)
    monkeypatch.setattr(TableRows, "read", counted)
    monkeypatch.setattr(table_job, "classified", answered)
    monkeypatch.setattr(row_files, "write", write_all)
    predict(model, table, tmp_path / "out.csv")
    assert passes == [len(ROWS)] * 2


def test_an_image_that_was_mended_is_gone_on_with_and_one_that_was_answered_is_not(tmp_path):
    images = image_model()
    images.policy = mx.MaxProb(0.6)
    images.save_pretrained(tmp_path / "model")
    lines = ["file"]
    for number, image in enumerate(pictures(20)):
        image.save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png")
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    words = ("predict", tmp_path / "model", tmp_path / "in.csv", "--image", "file")
    words = (*words, "--batch-size", 2, "--output")
    assert command(*words, tmp_path / "whole.csv").code == 0
    sound = (tmp_path / "17.png").read_bytes()
    (tmp_path / "17.png").write_bytes(sound[:50])
    ended = command(*words, tmp_path / "out.csv")
    assert ended.code == 2
    assert "16 rows are kept in" in ended.err
    assert "in.csv, line 19: can't read" in ended.err
    (tmp_path / "17.png").write_bytes(sound)
    part = (tmp_path / "out.csv.part").read_bytes()
    ended = command(*words, tmp_path / "out.csv")
    assert "16 rows were answered" in ended.err
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    (tmp_path / "out.csv.part").write_bytes(part)
    os.utime(tmp_path / "9.png", (1, 1))
    ended = command(*words, tmp_path / "out.csv")
    assert (ended.code, "in.csv, line 10 on have changed" in ended.err) == (2, True)


def test_rows_left_out_are_told_as_without_a_stop(model, tmp_path):
    rows = [*ROWS[:5], {"id": 5, "review": " "}, *ROWS[5:30], {"id": 6, "review": ""}, *ROWS[30:]]
    table = write(tmp_path / "in.csv", rows)
    predict(model, table, tmp_path / "whole.csv", "--skip-bad")
    with killed_behind(2):
        predict(model, table, tmp_path / "out.csv", "--skip-bad")
    said = predict(model, table, tmp_path / "out.csv", "--skip-bad")
    assert "2 rows left out, written to" in said
    for name in (".csv", ".skipped.jsonl"):
        out, whole = tmp_path / f"out{name}", tmp_path / f"whole{name}"
        assert out.read_bytes() == whole.read_bytes()


def test_what_the_classifier_says_of_an_input_names_its_row(model, tmp_path):
    long = {"id": 0, "review": "cat " * 40}
    table = write(tmp_path / "in.csv", [*ROWS[:19], long, *ROWS[19:]])
    said = predict(model, table, tmp_path / "out.csv")
    assert "in.csv, line 21 fills all 16 tokens" in said
