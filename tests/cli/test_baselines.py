"""`multiexit baseline`: each name gives a row of the paper's tables, and a model that runs."""

import pytest
from helpers import command

import multiexit as mx
from multiexit.evaluation import results
from multiexit.recipes import static


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("full", 6),
        ("first", 3),
        ("layerdrop", 3),
        ("headprune", 6),
        ("pkd", 3),
        ("theseus", 3),
        ("distilbert", 6),
    ],
)
def test_each_name_gives_a_row_of_the_table(name, layers, tiny_glue, tmp_path):
    encoder = tiny_glue / ("distilbert" if name == "distilbert" else "bert")
    words = ["--task", "sst2", "--backbone", encoder, "--data-dir", tiny_glue, "--max-steps", 1]
    words += ["--option", "layers=3"] * (layers == 3)
    words += ["--full", tiny_glue / "bert"] * (name == "distilbert")
    ended = command("baseline", name, *words, "--output", tmp_path / "run", "--no-progress")
    assert ended.code == 0, ended.err
    written = results.read_results(tmp_path / "run" / "results.json")
    (exit,), (row,) = written["exits"], written["policies"]
    assert exit["layers"] == layers
    assert exit["macs"] > 0
    assert exit["parameters"] > 0
    assert row["speedup_layers"] == 6 / layers
    assert row["speedup_time"] > 0
    assert (row["speedup_macs"] > 1) == (name not in ("full", "distilbert"))
    assert written["about"]["recipe"] == name
    assert (tmp_path / "run" / "examples.json").is_file()
    model = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model")
    assert model.cost().params_M[0] == exit["parameters"]
    again = command("baseline", name, *words, "--output", tmp_path / "run")
    assert again.code == 2
    assert "holds a run: --overwrite" in again.err
    again = command("tune", *words[:6], "--grid", "--output", tmp_path / "run")
    assert (again.code, "holds a run: name another" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("first", "--option", "layers=7"), "1..6"),
        (("layerdrop", "--option", "layers=0"), "1..6"),
        (("layerdrop", "--option", "rate=1.0"), "rate"),
        (("headprune", "--option", "share=0.9"), "0.750 at most"),
        (("pkd", "--option", "layers=1"), "2 layers or more"),
        (("pkd", "--option", "layers=7"), "1..6"),
        (("theseus", "--option", "layers=4"), "blocks of one size"),
        (("theseus", "--option", "rate=0.5"), "option"),
        (("second",), "theseus"),
        (("first", "--epochs", 1), "give one"),
        (("first", "--task", "digits"), "images"),
    ],
)
def test_what_cant_be_is_refused_before_any_training(
    words, message, tiny_glue, tmp_path, monkeypatch
):
    def trains(*_):
        raise AssertionError

    monkeypatch.setattr("multiexit.Trainer.fit", trains)
    usual = ["--backbone", tiny_glue / "bert", "--max-steps", 1]
    usual += ["--task", "sst2", "--data-dir", tiny_glue] * ("--task" not in words)
    ended = command("baseline", *words, *usual, "--output", tmp_path / "run")
    assert ended.code == 2, ended
    assert message in ended.err
    assert not (tmp_path / "run").exists()


def test_all_are_listed_with_their_options():
    said = command("recipes").out
    for name, make in static.BASELINES.items():
        assert make().name == name
        assert f"{name:<18} {make().summary} ({make().rows})" in said
    assert "--option layers=6, rate=0.2" in said
