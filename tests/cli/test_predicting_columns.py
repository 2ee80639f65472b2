"""`multiexit predict`: which columns of a table are read, and what is a table at all."""

import json

import pytest
from answering import text_model, texts, tokenizer_in, written
from helpers import command

import multiexit as mx


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a model of texts and of one of pairs."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_in(place)
    for name in ("texts", "pairs"):
        model = text_model(tokenizer, pairs=name == "pairs")
        model.policy = mx.MaxProb(0.6)
        model.save_pretrained(place / name, tokenizer)
    return place


VALUES = {
    "id": [*"123456"],
    "label": ["good", "bad"] * 3,
    "short": [*"abcdef"],
    "long": [f"{text} saw the dog" for text in texts(6)],
    "chinese": [f"这部电影非常好看，我会向所有朋友推荐它，而且一看再看{i}。" * 3 for i in range(6)],
    "alike": ["the cat saw a dog and a dog saw the red house, not the fish"] * 6,
    "two": [f"{'extraordinarily' * 4} {n}" for n in range(6)],
    "object": [{"said": f"{text} saw the dog"} for text in texts(6)],
    "list": [[text, "saw the dog"] for text in texts(6)],
}


@pytest.mark.parametrize(
    ("kind", "names", "suffix", "read"),
    [
        ("texts", "id review", ".csv", "review"),
        ("texts", "label text", ".csv", "text"),
        ("texts", "headline:long text", ".csv", "text"),
        ("texts", "text Text", ".csv", "text"),
        ("texts", "name:short sentence", ".tsv", "sentence"),
        ("texts", "title body", ".csv", None),
        ("texts", "title:short summary:long", ".jsonl", None),
        ("texts", "title:short summary:chinese", ".csv", None),
        ("texts", "title:short summary:alike", ".csv", None),
        ("texts", "title summary:two", ".tsv", None),
        ("texts", "title:short summary:object", ".jsonl", None),
        ("texts", "title:short summary:list", ".parquet", None),
        ("texts", "title:chinese id", ".csv", "title"),
        ("texts", "id says", ".parquet", None),
        ("texts", "sentence1 sentence2", ".csv", None),
        ("pairs", "id sentence2 sentence1", ".tsv", "sentence1 sentence2"),
        ("pairs", "Premise Hypothesis label", ".tsv", "Premise Hypothesis"),
        ("pairs", "text_pair text", ".csv", "text text_pair"),
        ("pairs", "question1 question2 premise hypothesis", ".csv", None),
        ("pairs", "id text sentence", ".csv", None),
    ],
)
def test_columns_that_are_not_named_are_told_or_asked_for(
    kind, names, suffix, read, models, tmp_path
):
    columns = {}
    for place, (name, _, values) in enumerate(each.partition(":") for each in names.split()):
        columns[name] = VALUES.get(values or name) or texts(6, place)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    table = written(tmp_path / f"in{suffix}", rows)
    ended = command("predict", models / kind, table)
    if read is None:
        assert (ended.code, ended.out) == (2, "")
        assert (
            f"which of the columns {[*columns]} does the model read? Name it: --text" in ended.err
        )
        return
    assert ended.code == 0, ended.err
    assert f"{' and '.join(map(repr, read.split()))}\n" in ended.err
    options = zip(("--text", "--text-pair"), read.split(), strict=False)
    named = command("predict", models / kind, table, *(x for option in options for x in option))
    assert (named.code, named.out) == (0, ended.out)
    assert len(named.out.splitlines()) == len(rows)


@pytest.mark.parametrize(
    "start",
    [
        "sentence1\tsentence2\n",
        '"sentence1"\t"sentence2"\n',
        "Sentence1 \t sentence2\n",
        "\nsentence1\tsentence2\n",
        '\ufeff \r\n\r\n"Sentence1"\tsentence2\r\n',
    ],
)
def test_names_of_a_pair_are_found_as_tables_are_read(start, models, tmp_path):
    pairs = list(zip(texts(4), texts(4, 1), strict=True))
    lines = tmp_path / "lines.tsv"
    lines.write_text("".join(f"{one}\t{other}\n" for one, other in pairs))
    wanted = command("predict", models / "pairs", lines)
    table = tmp_path / "table.tsv"
    table.write_text(start + "".join(f'"{one}"\t"{other}"\n' for one, other in pairs))
    ended = command("predict", models / "pairs", table)
    assert (wanted.code, ended.code) == (0, 0), ended.err
    rows, answers = ([*map(json.loads, each.out.splitlines())] for each in (ended, wanted))
    assert [tuple(row.values())[:2] for row in rows] == pairs
    for row, answer in zip(rows, answers, strict=True):
        assert row["label"] == answer["label"]
        assert row["score"] == pytest.approx(answer["score"], abs=1e-5)
    table.write_text(start + "a cat\n")
    ended = command("predict", models / "pairs", table)
    place = f"table.tsv, line {start.count(chr(10)) + 1}: 1 fields, expected 2"
    assert (ended.code, ended.out, place in ended.err) == (2, "", True)


@pytest.mark.parametrize(
    ("kind", "row", "read"),
    [
        ("texts", {"tweet": "a red fish"}, ["tweet"]),
        ("texts", {"id": 3, "text": "a red fish"}, ["text"]),
        ("texts", {}, []),
        ("pairs", {"premise": "a cat", "hypothesis": "a dog"}, ["premise", "hypothesis"]),
    ],
)
def test_rows_in_json_are_no_lines_of_text(kind, row, read, models, tmp_path):
    line = json.dumps(row)
    options = "--text KEY --text-pair KEY" if kind == "pairs" else "--text KEY"
    text = "a red fish\tthe {dog}" if kind == "pairs" else "{a dog}"
    file = tmp_path / "rows.txt"
    file.write_text(f"{line}\n{text}\n")
    for words, stdin in ((), file.read_text()), ((file,), ""):
        ended = command("predict", models / kind, *words, stdin=stdin)
        assert (ended.code, ended.out) == (2, "")
        (said,) = ended.err.splitlines()
        assert "line 1: a row in JSON" in said
        assert f"on stdin name what is read of it, {options}; a file of such rows is" in said
        assert said.endswith("to be called .jsonl")
    ended = command("predict", models / kind, stdin=f"{text}\n{line}\n{text}\n")
    assert (ended.code, len(ended.out.splitlines())) == (2, 2)
    assert "line 2: a row in JSON" in ended.err
    if read:
        named = [x for each in zip(("--text", "--text-pair"), read, strict=False) for x in each]
        jsonl = file.with_suffix(".jsonl")
        jsonl.write_text(f"{line}\n")
        answered = command("predict", models / kind, jsonl, *named)
        assert (answered.code, len(answered.out.splitlines())) == (0, 1), answered.err
        assert answered.out == command("predict", models / kind, *named, stdin=line).out
