"""`multiexit calibrate`: what it saves, what it leaves alone, what it says, what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Table, chain, command, linear_chain
from torch.utils.data import TensorDataset

import multiexit as mx
from multiexit.cli import calibrating
from multiexit.data import tasks
from multiexit.data.batches import in_order
from multiexit.evaluation import exit_losses
from multiexit.model.latency import machine_of
from multiexit_runner import Runner

ROWS, QUARTER = 359, 89  # of the digits' test set
DEFAULTS = {
    **dict.fromkeys(("speedup", "score", "milliseconds", "risk", "budget")),
    **{"by": "layers", "batch_size": 1, "confidence": 0.9, "loss": "disagreement"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model of the digits, whose exits agree with the last ever more often."""
    torch.manual_seed(0)
    task = tasks.load("digits")
    model = mx.MultiExitModel(mx.cifar_resnet(20, in_channels=1, size=8), 10, exits=[0, 4, 8])
    model.preprocessing = task.preprocessing
    config = mx.TrainConfig(epochs=2, batch_size=64, lr=0.05, optimizer="sgd", progress=False)
    mx.Trainer(model, mx.recipe("joint"), config).fit(task.train)
    model.policy = mx.Patience(2)
    folder = tmp_path_factory.mktemp("digits") / "model"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("kept as it is")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy to calibrate in."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def collected(folder: Path) -> mx.Outputs:
    model = mx.MultiExitModel.from_pretrained(folder)
    return mx.collect(model, tasks.load("digits").sets["test"])


def settings_of(files: dict[str, bytes]) -> dict:
    settings = json.loads(files["multiexit.json"])
    del settings["policy"]
    return settings


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--speedup", 1.5), {"speedup": 1.5}),
        (("--speedup", 1.2, "--by", "macs", "--policy", "entropy"), {"speedup": 1.2, "by": "macs"}),
        (("--score", 0.3, "--policy", "patience"), {"score": 0.3}),
        (("--risk", 0.1, "--confidence", 0.8), {"risk": 0.1, "confidence": 0.8}),
        (
            ("--risk", 0.1, "--confidence", 0.8, "--loss", "brier"),
            {"risk": 0.1, "confidence": 0.8, "loss": "brier"},
        ),
    ],
)
def test_the_policy_is_set_and_nothing_else(words, wanted, folder):
    before, outputs = contents(folder), collected(folder)
    ended = command("calibrate", folder, *words, "--share", 0.25, "--seed", 3)
    assert ended.code == 0, ended.err
    kind = {"entropy": mx.Entropy, "patience": mx.Patience}.get(str(words[-1]), mx.MaxProb)
    ours, rest = outputs.split(0.25, 3)
    expected = mx.calibrate(ours, kind, **wanted)
    saved = mx.MultiExitModel.from_pretrained(folder).policy
    assert saved == expected
    assert saved.certificate == expected.certificate
    after = contents(folder)
    assert settings_of(after) == settings_of(before)
    assert {n for n in before if before[n] != after.get(n)} == {"multiexit.json"}
    assert set(after) == set(before)
    assert f"{QUARTER} rows calibrate, {ROWS - QUARTER} others judge" in ended.out
    row = mx.judge(rest, saved)
    for figure in (100 * row.score, 100 * mx.exit_scores(rest)[-1]["accuracy"]):
        assert f"{figure:.2f}" in ended.out
    assert f"{row.speedup_layers:.2f}×" in ended.out
    if saved.certificate is not None:
        lost = 100 * exit_losses.realised(rest, saved, saved.certificate.loss)
        bound = "on new rows like these it is at most 10 % on average, with confidence 0.8"
        assert f"{lost:.2f} %; {bound}" in ended.out


def test_evaluating_leaves_the_calibration_rows_out(folder, tmp_path):
    assert command("calibrate", folder, "--risk", 0.1, "--share", 0.25).code == 0
    own = command("evaluate", folder, "--output", tmp_path / "own")
    assert own.code == 0, own.err
    assert f"left out: {QUARTER} rows that the policy was calibrated on" in own.out
    results = json.loads((tmp_path / "own" / "results.json").read_text())
    assert results["examples"] == ROWS - QUARTER
    policy = mx.MultiExitModel.from_pretrained(folder).policy
    _, rest = collected(folder).split(0.25, 0)
    assert results["policies"][0]["score"] == mx.judge(rest, policy).score
    other = command("evaluate", folder, "--policy", "patience=1", "--output", tmp_path / "other")
    assert "left out" not in other.out
    assert json.loads((tmp_path / "other" / "results.json").read_text())["examples"] == ROWS


def test_rows_that_repeat_do_not_judge_either(tmp_path, capsys):
    twice = Table(100)
    rows = TensorDataset(twice.x.repeat(2, 1), twice.labels.repeat(2))
    task = tasks.TaskData("table", None, {"dev": rows}, 3, "accuracy", None)
    model = chain()
    model.save_pretrained(tmp_path)
    calibrating.run(model, tmp_path, task, mx.MaxProb, {**DEFAULTS, "risk": 0.2})
    used = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:100] % 100
    others = 2 * (100 - len(used.unique()))
    assert f"100 rows calibrate, {others} others judge" in capsys.readouterr().out


def test_other_numbers_of_a_policy_can_stay(folder):
    words = ("calibrate", folder, "--policy", "patient-confident=0.2,2", "--speedup", 1.01)
    ended = command(*words)
    assert ended.code == 0, ended.err
    policy = mx.MultiExitModel.from_pretrained(folder).policy
    ours, _ = collected(folder).split(0.5, 0)
    assert policy == mx.calibrate(ours, mx.PatientConfident(0.2, 2), speedup=1.01)
    assert policy.patience == 2


def test_a_budget_sets_a_threshold_per_exit(folder):
    ours, _ = collected(folder).split(0.5, 0)
    before = mx.MultiExitModel.from_pretrained(folder).policy
    ended = command("calibrate", folder, "--budget", 1.5)
    assert ended.code == 0, ended.err
    policy = mx.MultiExitModel.from_pretrained(folder).policy
    now, was = (mx.policies.registry.policy_name(each) for each in (policy, before))
    assert f"with the policy {now} (was {was})\n" in ended.out
    assert policy == mx.budgeted(ours, 1.5)
    assert policy.certificate is None


def test_temperatures_have_rows_of_their_own(folder):
    """Half of the share, so that the bound's rows are new to the model; none of them judges."""
    before = collected(folder)
    ended = command("calibrate", folder, "--risk", 0.2, "--temperatures")
    assert ended.code == 0, ended.err
    wanted = mx.MultiExitModel.from_pretrained(folder)
    wanted.temperature_M.fill_(1.0)
    share, rest = before.split(0.5, 0)
    fitting, _ = share.split(0.5, 0)
    mx.fit_temperatures(wanted, fitting)
    saved = mx.MultiExitModel.from_pretrained(folder)
    assert torch.allclose(saved.temperature_M, wanted.temperature_M)
    fitted = ", ".join(f"{temperature:.3g}" for temperature in saved.temperature_M.tolist())
    wrote = f"written: {folder / 'model.safetensors'}, with the exits' temperatures {fitted}\n"
    assert wrote in ended.out
    assert f"written: {folder / 'multiexit.json'}, with the policy max-prob=" in ended.out
    after = collected(folder)
    _, calibrating = after.split(0.5, 0)[0].split(0.5, 0)
    assert saved.policy == mx.calibrate(calibrating, mx.MaxProb, risk=0.2)
    certificate = saved.policy.certificate
    assert certificate.rows == len(calibrating.labels_B) == 90
    assert after.without(certificate).labels_B.tolist() == rest.labels_B.tolist()


def test_milliseconds_go_by_the_models_own_table(folder):
    model = mx.MultiExitModel.from_pretrained(folder)
    each = ((2.0, 4.0),) * 3
    none = ((0.0, 0.0),) * 3
    here = machine_of(model)
    model.latency = mx.Latency(here, (1, 8), (0.0, 0.0), each, none, (0.0, 0.0), (6.0, 12.0))
    model.save_pretrained(folder)
    ended = command("calibrate", folder, "--milliseconds", 4, "--policy", "fixed")
    assert ended.code == 0, ended.err
    assert f"a batch of 1: 4 ms, 6 ms without early exits ({here})" in ended.out
    again = mx.MultiExitModel.from_pretrained(folder)
    assert (again.policy, again.latency) == (mx.FixedExit(1), model.latency)
    words = ("calibrate", folder, "--policy", "fixed", "--batch-size", 8)
    assert command(*words, "--milliseconds", 4.5).code == 0
    assert mx.MultiExitModel.from_pretrained(folder).policy == mx.FixedExit(0)
    assert command(*words, "--speedup", 1.4, "--by", "time").code == 0
    assert mx.MultiExitModel.from_pretrained(folder).policy == mx.FixedExit(1)
    model.latency = replace(model.latency, machine="an abacus")
    model.save_pretrained(folder)
    refused = command(*words, "--milliseconds", 4.5)
    assert refused.code == 2
    assert "another machine (an abacus" in refused.err


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        ((), "one target"),
        (("--speedup", 2, "--risk", 0.1), "got --speedup and --risk"),
        (("--budget", 2, "--score", 0.5), "got --budget and --score"),
        (("--budget", 2, "--policy", "entropy"), "a budget sets thresholds of max-prob"),
        (("--budget", 500), "can't be spent"),
        (("--speedup", 0), "speedup must be above 0"),
        (("--speedup", 0.5), "speedup is 1 without early exits"),
        (("--speedup", "nan"), "--speedup must be a finite number"),
        (("--score", -5), r"score must be a number in \[0, 1\], got -5"),
        (("--score", 1.1), r"score must be a number in \[0, 1\], got 1.1"),
        (("--milliseconds", -1), "milliseconds must be above 0"),
        (("--budget", -1), "--budget must be above 0"),
        (("--speedup", 2, "--share", 0), r"share must be a number in \(0, 1\), got 0"),
        (("--speedup", 2, "--loss", "accuracy"), "--loss goes with --risk"),
        (("--score", 0.5, "--confidence", 0.9), "--confidence goes with --risk"),
        (("--budget", 2, "--by", "macs"), "--by goes with --speedup or --score"),
        (("--risk", 0.1, "--by", "layers"), "--by goes with --speedup or --score"),
        (("--speedup", 2, "--batch-size", 1), "--batch-size goes with --milliseconds or --by time"),
        (("--speedup", 2, "--speedup", 3), "--speedup is given 2 times"),
        (("--risk", 0.1, "--loss", "acuracy"), "did you mean 'accuracy'"),
        (("--speedup", 2, "--by", "layer"), "did you mean 'layers'"),
        (("--speedup", 2, "--policy", "max-probe"), "did you mean 'max-prob'"),
        (("--speedup", 2, "--data-dir", "data"), "--data-dir data is for .* no effect for digits"),
        (("--speedup", 2, "--by", "steps"), "'steps'"),
        (("--speedup", 2, "--by", "time"), "multiexit profile"),
        (("--milliseconds", 3), "multiexit profile"),
        (("--risk", 0.001), "179 rows can't certify a risk of 0.001: .* takes 2302 rows"),
        (("--risk", 0.02, "--temperatures"), "90 rows can't certify a risk of 0.02"),
        (("--risk", 2), r"risk must be a number in \(0, 1\), got 2"),
        (("--risk", 0.1, "--confidence", 1), "confidence must be a number in"),
        (("--risk", 0.1, "--loss", "f1"), "no loss 'f1'"),
        (("--speedup", 2, "--share", 1), r"share must be a number in \(0, 1\), got 1"),
        (("--speedup", 2, "--share", 0.001), "a share of 0.001 of 359 rows leaves one of"),
        (("--speedup", 2, "--policy", "luck"), "no policy 'luck'"),
        (("--speedup", 2, "--policy", "patient-confident"), "2 numbers to choose"),
    ],
)
def test_what_is_wrong_is_refused_before_the_model_runs(words, naming, folder, monkeypatch):
    monkeypatch.setattr("multiexit.cli.calibrating.collect", None)
    before = contents(folder)
    ended = command("calibrate", folder, *words)
    assert ended.code == 2
    assert re.search(naming, ended.err)
    assert (ended.err.count("\n"), ended.out) == (1, "")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("target", "temperatures", "message"),
    [
        ("budget", False, r"a budget needs at least 2 classes, got 1; .*use Patience\(.*a speedup"),
        ("risk", False, r"a bounded risk needs at least 2 classes, got 1; .*use Patience\(.*score"),
        ("speedup", True, "--temperatures needs at least 2 classes, got 1; .*use Patience"),
        ("speedup", False, "MaxProb needs at least 2 classes, got 1; .*use Patience"),
    ],
)
def test_what_goes_by_confidence_is_refused_for_regression(
    target, temperatures, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("multiexit.cli.calibrating.collect", None)
    policy = mx.Patience(1, 0.1) if temperatures else mx.MaxProb
    task = replace(tasks.load("digits"), sets={"test": range(40)})
    wanted = {**DEFAULTS, target: 1.5, "loss": None}
    if target == "risk":
        wanted = {**DEFAULTS, "risk": 0.3}
    with pytest.raises(ValueError, match=message):
        calibrating.run(
            linear_chain(classes=1), tmp_path, task, policy, wanted, temperatures=temperatures
        )


@pytest.mark.parametrize("words", [("--speedup", 40), ("--score", 1)])
def test_what_no_setting_reaches_leaves_the_model_as_it_was(words, folder):
    before = contents(folder)
    ended = command("calibrate", folder, *words)
    assert ended.code == 2
    assert "no setting of max-prob" in ended.err
    assert contents(folder) == before


def test_a_full_disk_leaves_the_model_as_it_was(folder, monkeypatch):
    before = contents(folder)

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    ended = command("calibrate", folder, "--speedup", 1.2)
    assert ended.code == 2
    assert "No space left" in ended.err
    assert contents(folder) == before


def test_help_has_an_example():
    ended = command("calibrate", "--help")
    assert ended.code == 0
    assert "multiexit calibrate runs/mrpc --policy" in ended.out


def test_a_table_is_kept_and_the_policy_stays(folder):
    before = contents(folder)
    ended = command("calibrate", folder, "--table", "--confidence", 0.8)
    assert ended.code == 0, ended.err
    model = mx.MultiExitModel.from_pretrained(folder)
    assert model.calibration == mx.calibration_table(collected(folder), mx.MaxProb, confidence=0.8)
    assert model.policy == mx.Patience(2)
    after = contents(folder)
    assert {n for n in before if before[n] != after.get(n)} == {"multiexit.json"}
    assert f"(test), {ROWS} rows" in ended.out
    assert "max-prob=1.009 (no row leaves early)" in ended.out
    assert "stops by patience=2, which is of another kind than this table" in ended.out
    for words, message in [
        (("--speedup", 2), "--speedup has no effect beside --table"),
        (("--share", 0.5), "--share has no effect"),
        (("--temperatures",), "--temperatures has no effect"),
        (("--confidence", 1), "--confidence"),
        (("--policy", "patient-confident"), "2 numbers to choose"),
    ]:
        ended = command("calibrate", folder, "--table", *words)
        assert (ended.code, message in ended.err) == (2, True), ended.err
    assert contents(folder) == after


@pytest.mark.usefixtures("onnx_operators")
def test_an_export_in_int8_has_its_own_table(folder, tmp_path_factory):
    """Its figures, and the bounds, are those of its own answers; another policy's table stays."""
    assert command("calibrate", folder, "--table", "--confidence", 0.8).code == 0
    model, out = mx.MultiExitModel.from_pretrained(folder), tmp_path_factory.mktemp("exports")
    words = ("export", folder, out / "int8", "--int8", "--task", "digits", "--agreement", 0)
    ended = command(*words, "--policy", "max-prob=0.5")
    assert ended.code == 0, ended.err
    assert f"table is measured in int8, on {ROWS} rows: digits (test)" in ended.err
    runner = Runner(out / "int8")
    rows = list(in_order(tasks.load("digits").sets["test"], 64))
    logits_MBC = np.concatenate([runner.forward(images.numpy()) for images, _ in rows], 1)
    labels_B = torch.cat([labels for _, labels in rows])
    outputs = mx.Outputs(torch.from_numpy(logits_MBC), labels_B, model.cost())
    table = mx.CalibrationTable.from_json(runner.settings["calibration"])
    assert table == replace(
        mx.calibration_table(outputs, mx.MaxProb, confidence=0.8), precision="int8"
    )
    assert table.settings != model.calibration.settings
    assert "rows in int8" in command("info", out / "int8").out
    words = ("export", folder, out / "other", "--int8", "--task", "digits", "--agreement", 0)
    assert "this export has no targets" in command(*words, "--policy", "patience=1").out
    held = Runner(out / "other").settings["calibration"]
    assert {row["loss_bound"] for row in held["settings"]} == {None}
    assert held["precision"] == "float32"
