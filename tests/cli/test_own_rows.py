"""Rows for a model that was trained on its user's own: what is said of them, and refused."""

import json
import warnings

import pytest
import torch
from answering import text_model, tokenizer_in
from helpers import command
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

import multiexit as mx
from multiexit.data import load
from multiexit.data.own import loading
from multiexit.training import experiment


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


@pytest.mark.parametrize(
    ("words", "lr", "pool", "said"),
    [
        ((), 1e-4, "mean", "the learning rate 0.0001 (--lr) and at exits the mean over the tokens"),
        (("--lr", 1e-3), 1e-3, "mean", "chosen for texts of your own: at exits the mean"),
        (("--pool", "first", "--lr", 1e-3), 1e-3, "first", None),
    ],
)
def test_texts_of_ones_own_have_settings_that_suit_early_exits(run, words, lr, pool, said,
                                                               tiny_glue, tmp_path):  # fmt: skip
    typed = ("--data", run / "mine.csv", "--backbone", tiny_glue / "bert", "--max-steps", 2, *words)
    ended = command("train", *typed, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert (said or "") in ended.err
    assert ("chosen for texts" in ended.err) == bool(said)
    assert ended.out.splitlines()[-1].startswith(f"next: `multiexit report {tmp_path / 'run'}`")
    assert f"`multiexit calibrate {tmp_path / 'run'} --speedup 1.5`" in ended.out
    assert "\nmax-prob=0.525 " in ended.out
    model = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (model.pool, record["config"]["lr"]) == (pool, lr)
    again = command("train", "--config", tmp_path / "run" / "run.json", "--output", tmp_path / "2")
    assert again.code == 0, again.err
    ours, theirs = (mx.MultiExitModel.from_pretrained(tmp_path / name / "model") for name in
                    ("run", "2"))  # fmt: skip
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_a_profile_is_of_rows_as_long_as_ones_own(run, tmp_path, monkeypatch):
    measured = []

    def profile(model, inputs, **_):
        measured.append(inputs["input_ids"].shape[1])
        raise ValueError("far enough")

    monkeypatch.setattr("multiexit.serving.profiling.profile", profile)
    (run / "long.csv").write_text("text,label\n" + f"{'cat ' * 28},1\n" * 3)
    for words in ((), ("--data", run / "long.csv"), ("--tokens", 9)):
        assert "far enough" in command("profile", run / "run", *words).err
    own, long, typed = measured
    assert 4 < own < 12
    assert (long, typed) == (30, 9)
    both = command("profile", run / "run", "--tokens", 9, "--data", run / "long.csv")
    assert "give one" in both.err


def test_warnings_are_notes_said_once(run, tmp_path, monkeypatch):
    def load(*_):
        warnings.warn("batch_size=3 is\nlarge", stacklevel=1)
        warnings.warn("batch_size=3 is large", stacklevel=2)
        raise ValueError("far enough")

    monkeypatch.setattr("multiexit.cli.sources.load", load)
    for _ in range(2):
        ended = command("evaluate", run / "run", "--output", tmp_path)
        assert ended.code == 2
        assert ended.err == "multiexit: batch_size=3 is large\nmultiexit: far enough\n"


def test_a_wide_network_has_a_smaller_rate_and_one_that_pools_by_itself_keeps_that():
    shape = {
        "vocab_size": 9,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    bert = mx.wrap(BertModel(BertConfig(hidden_size=768, **shape)))
    assert experiment.suited("text", bert) == (5e-5, "mean")
    assert experiment.suited("mrpc", bert) == (None, None)
    bert.pool = "last"
    assert experiment.suited("text", bert) == (5e-5, None)


@pytest.mark.parametrize("name", ["first", "headprune", "pkd"])
def test_networks_without_early_exits_are_trained_on_rows_of_ones_own(
    name, run, tiny_glue, tmp_path
):
    typed = ("--data", run / "mine.csv", "--backbone", tiny_glue / "bert", "--max-steps", 1)
    typed += ("--option", "layers=3") * (name != "headprune")
    ended = command("baseline", name, *typed, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "chosen for texts of your own" in ended.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["policies"]) == 1
    ended = command("evaluate", tmp_path / "run", "--output", tmp_path / "judged")
    assert ended.code == 0, ended.err
    judged = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert judged["exits"][0]["scores"] == results["exits"][0]["scores"]


def test_baselines_refuse_rows_that_they_cannot_answer(run, tiny_glue, tmp_path):
    (run / "many.csv").write_text("text,a,b\n" + "".join(f"cat {n},1,{n % 2}\n" for n in range(20)))
    typed = ("--backbone", tiny_glue / "bert", "--output", tmp_path / "run")
    many = ("--data", run / "many.csv", "--text", "text", "--label", "a", "--label", "b")
    for words, message in ((many, "several labels"), ((), "give --task")):
        ended = command("baseline", "first", "--option", "layers=3", *words, *typed)
        assert ended.code == 2
        assert message in ended.err
        assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize(
    ("name", "columns", "count"),
    [
        ("new.csv", ("text", "label"), 20),
        ("new.tsv", ("text", "label"), 20),
        ("unlabelled.tsv", ("text", "n"), 20),
        ("pairs.tsv", ("label", "sentence1", "n", "sentence2"), 20),
        ("pairs.tsv", ("sentence2", "sentence1"), 20),
        ("pairs.tsv", ("one", "two"), 21),  # no pair is called so: lines
    ],
)
def test_what_a_table_is_compared_on_is_what_predict_reads(
    name, columns, count, run, tmp_path, monkeypatch
):
    given = {}

    def kept(model, output, policy, rows=None, **others):
        given["rows"] = rows
        raise ValueError("far enough")

    monkeypatch.setattr("multiexit.serving.onnx.export", kept)
    model, tokenizer = run / "run", AutoTokenizer.from_pretrained(run / "run" / "model")
    if name == "pairs.tsv":
        model, tokenizer = tmp_path / "pairs", tokenizer_in(tmp_path)
        text_model(tokenizer, pairs=True, classes=2).save_pretrained(model, tokenizer)
    values = {"text": "red cat", "sentence1": "a cat", "sentence2": "red fish", "label": "1"}
    row = [values.get(column, "dog") for column in columns]
    mark = "," if name == "new.csv" else "\t"
    (tmp_path / name).write_text("".join(mark.join(each) + "\n" for each in [columns, *20 * [row]]))
    ended = command("export", model, tmp_path / "onnx", "--data", tmp_path / name)
    assert "far enough" in ended.err, ended.err
    assert len(given["rows"]) == count
    read = ("text",) if name != "pairs.tsv" else ("sentence1", "sentence2")
    texts = [values[column] for column in read] if count == 20 else ["dog", "dog"]
    assert given["rows"][count - 1]["input_ids"].tolist() == tokenizer(*texts)["input_ids"]


@pytest.mark.parametrize("label", ["", "other"])
@pytest.mark.parametrize("int8", [False, True])
def test_export_reads_a_table_whose_labels_are_of_no_use(label, int8, run, tmp_path, monkeypatch):
    def kept(*_, rows, **others):
        raise ValueError(f"far enough, {len(rows)} rows")

    monkeypatch.setattr("multiexit.serving.onnx.export", kept)
    (tmp_path / "new.csv").write_text("text,label\n" + 8 * f"red cat,{label}\n")
    words = ("export", run / "run", tmp_path / "onnx", "--data", tmp_path / "new.csv")
    ended = command(*words, *["--int8"] * int8)
    assert ended.err.endswith("far enough, 8 rows\n"), ended.err
    assert ("the table's labels aren't used" in ended.err) == int8
    (tmp_path / "new.csv").write_text(f"text,label\n,{label}\n")
    ended = command(*words, *["--int8"] * int8)
    assert "an empty text" in ended.err
    assert "skip" not in ended.err


def test_a_table_that_export_cannot_read_says_what_it_needs(run, tmp_path):
    words = ("export", run / "run", tmp_path / "onnx")
    ended = command(*words, *(2 * ["--data", run / "new.csv"]))
    assert "one table at a time" in ended.err
    (tmp_path / "other.tsv").write_text("review\ta\nred cat\t1\n")
    ended = command(*words, "--data", tmp_path / "other.tsv")
    assert ended.err.endswith("does the model read? Call it 'text' there\n")
    tokenizer = tokenizer_in(tmp_path)
    text_model(tokenizer, pairs=True).save_pretrained(tmp_path / "pairs", tokenizer)
    (tmp_path / "lines.tsv").write_text("a\tcat\tdog\n")
    ended = command("export", tmp_path / "pairs", tmp_path / "onnx", "--data",
                    tmp_path / "lines.tsv")  # fmt: skip
    assert "one tab between them, or a table with training's columns; got" in ended.err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"id2label": {0: "pos", 1: "neg", 2: "neu"}},
            "(3 classes: pos, neg, neu) doesn't serve 2 classes",
        ),
        ({"num_labels": 1}, "(1 number) doesn't serve 2 classes"),
        (
            {"problem_type": "multi_label_classification", "id2label": {0: "0", 1: "1"}},
            "(2 labels, any number of them a row: 0, 1) doesn't serve 2 classes",
        ),
        ({"num_labels": 2}, None),
    ],
)
def test_a_network_whose_own_classifier_does_not_serve_is_said_to_lose_it(
    settings, said, run, tiny_glue, tmp_path, monkeypatch
):
    def trainer(*_):
        raise ValueError("far enough")

    config = BertConfig.from_pretrained(tiny_glue / "bert", **settings)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(tiny_glue / "bert").save_pretrained(tmp_path / "tuned")
    monkeypatch.setattr(experiment, "Trainer", trainer)
    words = ("train", "--data", run / "mine.csv", "--backbone", tmp_path / "tuned")
    ended = command(*words, "--output", tmp_path / "run")
    assert ended.err.endswith("far enough\n"), ended.err
    assert ("starts anew" in ended.err) == (said is not None)
    if said is not None:
        assert f"the network's own classifier {said}: the last exit starts anew\n" in ended.err


def test_texts_are_cut_to_what_the_network_takes_and_more_is_refused(
    run, tiny_glue, tmp_path, monkeypatch
):
    def trainer(model, *_):
        raise ValueError(f"far enough, {model.preprocessing['max_length']}")

    config = BertConfig.from_pretrained(tiny_glue / "bert", max_position_embeddings=16)
    BertModel(config).save_pretrained(tmp_path / "short")
    AutoTokenizer.from_pretrained(tiny_glue / "bert").save_pretrained(tmp_path / "short")
    (tmp_path / "long.csv").write_text("text,label\n" + f"{'cat ' * 28},1\ndog,0\n" * 20)
    monkeypatch.setattr(experiment, "Trainer", trainer)
    words = ("train", "--data", tmp_path / "long.csv", "--backbone", tmp_path / "short")
    words += ("--output", tmp_path / "run")
    ended = command(*words)
    said = f"texts are cut to 16 tokens, all that {tmp_path / 'short'} takes (--max-length)"
    assert said in ended.err
    assert ended.err.endswith("far enough, 16\n"), ended.err
    ended = command(*words, "--max-length", 12)
    assert ended.err.endswith("far enough, 12\n"), ended.err
    assert "all that" not in ended.err
    monkeypatch.setattr(loading, "_tokenised", lambda *_: pytest.fail("read"))
    refusal = f"--max-length 17: {tmp_path / 'short'} takes rows of 16 tokens at most: give no more"
    for other in (words, ("baseline", "first", *words[1:], "--option", "layers=1")):
        assert command(*other, "--max-length", 17).err.endswith(f"multiexit: {refusal}\n")


def test_a_table_on_stdin_is_not_taken_for_lines(run):
    table = (run / "new.csv").read_text()
    ended = command("predict", run / "run", stdin=table)
    assert (ended.code, ended.out) == (2, "")
    assert "line 1 names columns of training, 'text,label': give a table as a file" in ended.err
    assert command("predict", run / "run", stdin='"text"\t"label"\nred\t1\n').code == 2
    for line in ("text", "text, a label", "text,a fine film", "text, label", "text,label;text"):
        assert command("predict", run / "run", stdin=f"{line}\nred, cat\n").code == 0, line


def test_too_few_rows_to_select_the_epoch_by_are_refused_before_the_network_is_read(
    run, tiny_glue, tmp_path, monkeypatch
):
    (tmp_path / "few.csv").write_text(rows(0, 6))
    monkeypatch.setattr(experiment, "wrap", lambda *_: pytest.fail("read"))
    words = ["train", "--data", tmp_path / "few.csv", "--backbone", tiny_glue / "bert"]
    ended = command(*words, "--output", tmp_path / "out")
    assert ended.code == 2
    assert "--validation 0, which keeps the last epoch" in ended.err


def test_class_weights_that_do_not_fit_are_refused_once_labels_are_known(
    run, tiny_glue, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "_tokenised", lambda *_: pytest.fail("read"))
    words = ["train", "--data", run / "mine.csv", "--backbone", tiny_glue / "bert"]
    ended = command(*words, "--output", tmp_path / "run", "--class-weights", "1,2,3")
    assert ended.code == 2
    assert "--class-weights has 3 numbers, for 2 classes" in ended.err


def test_a_metric_is_refused_before_rows_are_read_and_else_remembered(
    run, tiny_glue, tmp_path, monkeypatch
):
    words = ["train", "--data", run / "mine.csv", "--backbone", tiny_glue / "bert"]
    words += ["--output", tmp_path / "run", "--max-steps", 1, "--metric"]
    with monkeypatch.context() as reading:
        reading.setattr(loading, "_tokenised", lambda *_: pytest.fail("read"))
        for wrong in ("r2", "micro_f1"):
            ended = command(*words, wrong)
            assert (ended.code, f"metric '{wrong}' can't judge 2 classes" in ended.err) == (2, True)
        assert "metric 'matthew': did you mean 'matthews'?" in command(*words, "matthew").err
    ended = command(*words, "matthews")
    assert ended.code == 0, ended.err
    model = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model")
    assert model.preprocessing["metric"] == "matthews"
    more = ["--data", run / "new.csv", "--output", tmp_path / "more"]
    assert command("evaluate", tmp_path / "run", *more).code == 0
    for folder in ("run", "more"):
        results = json.loads((tmp_path / folder / "results.json").read_text())
        assert results["metric"] == "matthews"
    tokenizer = AutoTokenizer.from_pretrained(tiny_glue / "bert")
    task = load(run / "new.csv", tokenizer, notes=lambda note: None)
    assert mx.collect(model, task.sets["validation"]).metric == "matthews"
    ended = command("calibrate", tmp_path / "run", "--table", "--policy", "max-prob")
    assert "accuracy lost ≤ (%)" in ended.out
    assert "More may be lost of the score, the Matthews' correlation" in ended.out


def test_a_run_remembers_that_bad_rows_were_left_out_and_where_its_rows_lay(tiny_glue, tmp_path):
    (tmp_path / "bad.csv").write_text(rows(0, 60) + ",1\n")
    run, table = tmp_path / "run", tmp_path / "bad.csv"
    words = ["train", "--data", table, "--backbone", tiny_glue / "bert", "--output", run]
    assert "an empty text" in command(*words).err
    ended = command(*words, "--skip-bad", "--max-steps", 1)
    assert ended.code == 0, ended.err
    assert command("evaluate", run).code == 0
    ended = command("calibrate", run, "--table", "--policy", "max-prob")
    assert ended.code == 0, ended.err
    ended = command("export", run, tmp_path / "onnx", "--int8", "--policy", "max-prob=0.9")
    assert (ended.code, "is measured in int8" in ended.err) == (0, True), ended.err
    table.rename(tmp_path / "moved.csv")
    words = ["export", run, "--int8", "--policy", "max-prob=0.9", "--agreement", 0]
    (tmp_path / "held.csv").write_text(rows(60, 100))
    ended = command(*words, tmp_path / "held", "--data", tmp_path / "held.csv")
    assert "is measured in int8, on 40 rows: held\n" in ended.err
    ended = command(*words[:-2], tmp_path / "none")
    assert "there any more" in ended.err
    assert "Rows with labels, a table that --data names, do too" in ended.err
    ended = command("evaluate", run)
    assert (ended.code, f"trained on {table}, which isn't there" in ended.err) == (2, True)


def test_rows_of_numbers_are_trained_by_recipes_that_serve_them_and_calibrated(
    tiny_glue, tmp_path, monkeypatch
):
    lines = [f"{'cat ' * (1 + n % 7)}the dog,{n % 10 + 0.5}" for n in range(60)]
    (tmp_path / "reg.csv").write_text("\n".join(["text,label", *lines, ""]))
    words = ["train", "--data", tmp_path / "reg.csv", "--backbone", tiny_glue / "bert"]
    words += ["--output", tmp_path / "run", "--max-steps", 1]
    with monkeypatch.context() as reading:
        reading.setattr(loading, "_tokenised", lambda *_: pytest.fail("read"))
        ended = command(*words, "--recipe", "joint")
    assert ended.code == 2
    assert "'joint' stops by entropy=0.3, which can't serve these rows" in ended.err
    assert ended.err.endswith("numbers (regression): give --recipe one of leebert, "
                              "leebert-group-dro, pabee, berxit\n")  # fmt: skip
    search = ("--data", tmp_path / "reg.csv", "--backbone", tiny_glue / "bert", "--max-steps", 1)
    search += ("--folds", 2, "--trials", 1, "--space", "lr=0.001", "--output", tmp_path / "search")
    assert "'joint' stops by" in command("tune", *search, "--recipe", "joint").err
    ended = command("tune", *search, "--recipe", "pabee")
    assert (ended.code, "1 of 1 trials; best so far" in ended.out) == (0, True), ended.err
    ended = command(*words, "--class-weights", "balanced")
    assert "--class-weights balanced needs one class a row" in ended.err
    ended = command(*words, "--recipe", "pabee")
    assert ended.code == 0, ended.err
    assert "5 of 48 training rows select the epoch" in ended.err
    ended = command("calibrate", tmp_path / "run", "--speedup", 1.5)
    assert ended.code == 0, ended.err
    assert "calibrated is its own policy, patience=4,0.9" in ended.err
    policy = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model").policy
    assert (type(policy), policy.tolerance) == (mx.Patience, 0.9)


def test_balanced_weights_make_classes_count_alike(tiny_glue, tmp_path):
    lines = [f"{'cat ' * (1 + n % 7)}the dog,{int(n % 5 == 0)}" for n in range(50)]
    (tmp_path / "rare.csv").write_text("\n".join(["text,label", *lines, ""]))
    words = ["train", "--data", tmp_path / "rare.csv", "--backbone", tiny_glue / "bert"]
    words += ["--output", tmp_path / "run", "--max-steps", 1, "--class-weights", "balanced"]
    ended = command(*words)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["class_weights"] == [40 / (2 * 32), 40 / (2 * 8)]
