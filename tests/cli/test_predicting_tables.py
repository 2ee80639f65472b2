"""`multiexit predict` on a table: the same rows, with columns of answers."""

import csv
import json
import re
from decimal import Decimal

import numpy as np
import pyarrow.parquet
import pytest
from answering import LABELS, image_model, pictures, text_model, texts, tokenizer_in, written
from helpers import command
from starlette.testclient import TestClient

import multiexit as mx
from multiexit.cli import row_files
from multiexit.serving import service

ROWS = [{"id": str(i), "review": text, "stars": str(i % 5)} for i, text in enumerate(texts(11))]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of models of texts, pairs, several labels, numbers and images."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_in(place)
    made = {
        "texts": text_model(tokenizer),
        "pairs": text_model(tokenizer, pairs=True),
        "labels": text_model(tokenizer, "multi-label"),
        "numbers": text_model(tokenizer, "regression", classes=1),
        "tags": text_model(tokenizer, "token-classification"),
        "vectors": text_model(tokenizer, "embedding", classes=16),
    }
    for name, model in made.items():
        model.policy = mx.FixedExit(1) if name in ("numbers", "vectors") else mx.MaxProb(0.6)
        model.save_pretrained(place / name, tokenizer)
    images = image_model()
    images.policy = mx.MaxProb(0.6)
    images.save_pretrained(place / "images")
    return place


def read(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def checked(rows, answers, given=ROWS):
    assert len(rows) == len(given)
    for row, answer, before in zip(rows, answers, given, strict=True):
        assert {name: row[name] for name in before} == before
        assert row["label"] == answer["label"]
        assert float(row["score"]) == pytest.approx(answer["score"], abs=1e-5)
        assert (int(row["exit"]), int(row["layers"])) == (answer["exit"], answer["layers"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_comes_out_with_columns_added(suffix, models, tmp_path):
    answers = mx.Classifier.from_pretrained(models / "texts")([row["review"] for row in ROWS])
    table, words = written(tmp_path / f"in{suffix}", ROWS), ("predict", models / "texts")
    ended = command(*words, table, "--text", "review", "--output", tmp_path / f"out{suffix}")
    assert (ended.code, ended.out) == (0, ""), ended.err
    checked(read(tmp_path / f"out{suffix}"), answers)
    ended = command(*words, table, "--text", "review", "--batch-size", 2, "--all-scores")
    rows = [json.loads(line) for line in ended.out.splitlines()]
    checked(rows, answers)
    for row, answer in zip(rows, answers, strict=True):
        scores = {name: row[f"score_{name}"] for name in LABELS}
        assert scores == pytest.approx(answer["scores"], abs=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {f"in{suffix}", f"out{suffix}"}


def test_parquet_keeps_the_types_of_its_columns(models, tmp_path):
    columns = {
        "review": pyarrow.array([row["review"] for row in ROWS]).dictionary_encode(),
        "id": pyarrow.array(range(11), pyarrow.int8()),
        "weight": pyarrow.array([0.1] * 11, pyarrow.float32()),
        "gaps": pyarrow.array([None] * 11, pyarrow.string()),
        "day": pyarrow.array([1] * 11, pyarrow.date32()),
        "price": pyarrow.array([Decimal("1.50")] * 11),
        "raw": pyarrow.array([b"a"] * 11),
    }
    for names in ([*columns][:-1], [*columns]):  # a column of bytes is read in another way
        table = pyarrow.table({name: columns[name] for name in names})
        pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
        words = (tmp_path / "in.parquet", "--text", "review", "--output", tmp_path / "out.parquet")
        ended = command("predict", models / "texts", *words)
        assert ended.code == 0, ended.err
        found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
        assert found.select(names).schema.remove_metadata() == table.schema
        assert found.select(names).to_pylist() == table.to_pylist()


def test_json_lines_come_on_stdin_and_lines_of_text_as_before(models):
    answers = mx.Classifier.from_pretrained(models / "texts")([row["review"] for row in ROWS])
    stdin = "".join(json.dumps(row) + "\n" for row in ROWS)
    ended = command("predict", models / "texts", "--text", "review", stdin=stdin)
    assert ended.code == 0, ended.err
    checked([json.loads(line) for line in ended.out.splitlines()], answers)
    bad = stdin + "no json\n"
    ended = command("predict", models / "texts", "--text", "review", stdin=bad)
    assert (ended.code, len(ended.out.splitlines())) == (2, 11)
    assert "stdin, line 12: no JSON" in ended.err
    ended = command("predict", models / "texts", "--text", "review", "--skip-bad", stdin=bad)
    assert (ended.code, len(ended.out.splitlines())) == (0, 11)
    lines = "".join(row["review"] + "\n" for row in ROWS)
    ended = command("predict", models / "texts", "--all-scores", stdin=lines)
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["label"] for row in rows] == [answer["label"] for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        assert row["scores"] == pytest.approx(answer["scores"], abs=1e-5)


def test_columns_are_those_of_training_and_names_that_clash_get_a_prefix(models, tmp_path):
    model = mx.MultiExitModel.from_pretrained(models / "texts")
    model.preprocessing |= {"data": {"text": "review", "label": ["label"]}}
    model.save_pretrained(tmp_path / "model", tokenizer_in(tmp_path))
    table = written(tmp_path / "in.csv", [{**row, "label": "good"} for row in ROWS])
    other = written(tmp_path / "other.csv", [{"text": row["review"]} for row in ROWS])
    ended = command("predict", tmp_path / "model", other)
    assert (ended.code, ended.out) == (2, "")
    assert "has no column 'review', as in training: which of the columns ['text'] does" in ended.err
    assert "Name it: --text …" in ended.err
    ended = command("predict", tmp_path / "model", table)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    answers = mx.Classifier(model, tokenizer_in(tmp_path))([row["review"] for row in ROWS])
    assert [row["label"] for row in rows] == ["good"] * 11
    assert [row["predicted_label"] for row in rows] == [answer["label"] for answer in answers]
    assert "begin with predicted_" in ended.err
    model.preprocessing["data"]["data"] = "/home/me/reviews.csv"
    mx.export(model, tmp_path / "export", tokenizer=tokenizer_in(tmp_path))
    assert "/home/me" not in (tmp_path / "export" / "export.json").read_text()
    exported = command("predict", tmp_path / "export", table)
    assert exported.code == 0, exported.err
    told = [json.loads(line)["predicted_label"] for line in exported.out.splitlines()]
    assert told == [row["predicted_label"] for row in rows]
    late = written(tmp_path / "late.jsonl", [*ROWS, {**ROWS[0], "exit": 3}])
    ended = command("predict", tmp_path / "model", late, "--output", tmp_path / "out.csv")
    assert ended.code == 0, ended.err
    assert [row["exit"] for row in read(tmp_path / "out.csv")] == [""] * 11 + ["3"]
    assert {row["predicted_exit"] for row in read(tmp_path / "out.csv")} <= {*"0123"}
    stdin = "".join(json.dumps(row) + "\n" for row in [*ROWS, {**ROWS[0], "exit": 3}])
    ended = command("predict", tmp_path / "model", "--text", "review", stdin=stdin)
    assert "stdin, line 12: a column 'exit' that the first row lacks" in ended.err


def test_other_problems_and_pairs(models, tmp_path):
    table = written(tmp_path / "in.csv", [{**row, "other": "a cat"} for row in ROWS])
    out = tmp_path / "out.csv"
    for name, more, columns in [
        ("pairs", ("--text-pair", "other"), ["label", "score", "exit", "layers"]),
        ("labels", (), ["labels", "exit", "layers"]),
        ("numbers", (), ["value", "exit", "layers"]),
        ("tags", (), ["words", "labels", "scores", "exit", "layers"]),
        ("vectors", (), ["vector", "exit", "layers"]),
    ]:
        words = ("predict", models / name, table, "--text", "review", *more, "--output", out)
        ended = command(*words)
        assert ended.code == 0, ended.err
        assert list(read(out)[0])[4:] == columns
        ended = command(*words, "--all-scores")
        assert ended.code == (0 if name in ("pairs", "labels") else 2)
    ended = command("predict", models / "labels", table, "--text", "review", "--output", out)
    answers = mx.Classifier.from_pretrained(models / "labels")([row["review"] for row in ROWS])
    assert [json.loads(row["labels"]) for row in read(out)] == [a["labels"] for a in answers]
    lines = command("predict", models / "labels", stdin="".join(f"{r['review']}\n" for r in ROWS))
    for line, answer in zip(map(json.loads, lines.out.splitlines()), answers, strict=True):
        of_labels = {name: answer["scores"][name] for name in answer["labels"]}
        assert (line["labels"], line["scores"]) == (
            [*of_labels],
            pytest.approx(of_labels, abs=1e-5),
        )


@pytest.mark.parametrize("name", ["texts", "labels", "tags"])
def test_probabilities_have_six_digits_wherever_they_are_written(name, models, tmp_path):
    rows = [row["review"] for row in ROWS]
    added = () if name == "tags" else ("--all-scores",)
    lines = command("predict", models / name, *added, stdin="\n".join(rows))
    table = written(tmp_path / "in.csv", ROWS)
    columns = command("predict", models / name, table, "--text", "review", *added)
    inputs = [row.split() for row in rows] if name == "tags" else rows
    with TestClient(service(models / name).app) as client:
        served = client.post("/predict", json={"inputs": inputs}).json()["answers"]
    for answers in (*(map(json.loads, each.out.splitlines()) for each in (lines, columns)), served):
        told = [value for answer in answers for key, value in answer.items() if "score" in key]
        text = json.dumps(told)
        assert text == json.dumps(json.loads(text, parse_float=lambda p: float(f"{float(p):.6g}")))
        assert len(re.findall(r"0\.\d{6}", text)) >= len(rows)


def test_images_in_a_table(models, tmp_path):
    rows = []
    for number, image in enumerate(pictures(7)):
        image.save(tmp_path / f"{number}.png")
        rows.append({"file": str(tmp_path / f"{number}.png"), "n": number})
    answers = mx.Classifier.from_pretrained(models / "images")(pictures(7))
    table, words = written(tmp_path / "in.jsonl", rows), ("predict", models / "images")
    ended = command(*words, table, "--image", "file", "--batch-size", 2)
    checked([json.loads(line) for line in ended.out.splitlines()], answers, rows)
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "0.png").read_bytes()[:50])
    table = written(tmp_path / "bad.csv", [*rows[:3], {"file": str(broken), "n": 3}, *rows[3:]])
    out = tmp_path / "out.parquet"
    ended = command(*words, table, "--image", "file", "--output", out)
    assert (ended.code, out.exists()) == (2, False)
    assert "bad.csv, line 5: can't read" in ended.err
    ended = command(*words, table, "--image", "file", "--output", out, "--skip-bad")
    assert ended.code == 0, ended.err
    checked(read(out), answers, [{**row, "n": str(row["n"])} for row in rows])
    (aside,) = read(tmp_path / "out.skipped.jsonl")
    assert aside["place"].endswith("bad.csv, line 5")


def test_parquet_is_written_in_row_groups_of_one_type(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "GROUP", 3)
    rows = [{"a": None, "b": n, "c": []} for n in range(3)]
    rows += [{"a": "x", "b": 0.5 * n, "c": ["u"]} for n in range(5)]
    row_files.write(tmp_path / "out.parquet", list("abc"), iter(rows))
    assert pyarrow.parquet.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3
    assert read(tmp_path / "out.parquet") == rows
    mixed = [*rows, {"a": 3, "b": 1, "c": []}]
    with pytest.raises(ValueError, match="can't be parquet"):
        row_files.write(tmp_path / "mixed.parquet", list("abc"), iter(mixed))
    row_files.write(tmp_path / "none.parquet", list("abc"), iter([]))
    assert read(tmp_path / "none.parquet") == []
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "none.parquet"}


def test_what_will_not_do_is_refused_and_leaves_nothing(models, tmp_path):
    table, out = written(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    gaps = written(tmp_path / "gaps.csv", [*ROWS[:2], {**ROWS[0], "review": " "}, *ROWS[2:]])
    odd = [{"id": row["id"], "says": row["review"]} for row in ROWS]
    commas = written(tmp_path / "odd.csv", odd)
    tabs = written(tmp_path / "odd.tsv", odd)  # no lines of text, each with its label
    blank = tmp_path / "blank.csv"
    blank.write_text("text\ngood film\n\nbad\n\n\n")
    files = {path.name for path in tmp_path.iterdir()}
    text = ("--text", "review")
    for words, message in [
        ((table, "--text", "reviw"), "no column 'reviw': did you mean 'review'?"),
        ((tmp_path / "four.csv", *text), "no such file: '"),
        (("a fine film",), "no such file: 'a fine film'; for one text: echo 'a fine film' | multi"),
        ((tmp_path,), "is a folder, no regular file, and "),
        ((commas,), "which of the columns ['id', 'says'] does the model read? Name it: --text …"),
        ((tabs,), "Name it: --text …"),
        ((table, *text, "--text-pair", "id"), "reads single texts"),
        ((table, "--image", "review"), "reads single texts"),
        ((gaps, *text, "--output", out), "line 4: an empty review"),
        (
            (blank, "--text", "text"),
            "line 3: an empty text, ''. Mend them, or go on without them by --skip-bad",
        ),
        ((table, *text, "--output", tmp_path / "out.xlsx"), ".csv, .tsv, .jsonl, .parquet"),
        ((table, *text, "--output", table), "the table that is read"),
        ((table, *text, "--output", tmp_path / "no" / "out.csv"), "no folder"),
        ((table, gaps, *text), "one table at a time"),
        (("--output", out), "--output"),
        (("--skip-bad",), "--skip-bad"),
    ]:
        ended = command("predict", models / "texts", *words)
        assert (ended.code, ended.out) == (2, ""), words
        assert message in ended.err, ended.err
        assert len(ended.err.splitlines()) <= 2
    assert {path.name for path in tmp_path.iterdir()} == files
    assert np.array_equal(read(table), ROWS)
    named, guessed = (command("predict", models / "texts", table, *more) for more in (text, ()))
    assert (guessed.code, guessed.out) == (0, named.out)
    assert "the model reads column 'review'" in guessed.err
    ended = command("predict", models / "texts", blank, "--text", "text", "--skip-bad")
    assert [json.loads(line)["text"] for line in ended.out.splitlines()] == ["good film", "bad"]
    assert "line 3: an empty text" in ended.err
