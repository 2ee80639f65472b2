"""The search: its queue, its folds, its command."""

import importlib
import inspect
import itertools
import json
import multiprocessing
import shlex
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from helpers import Table, command, images
from hypothesis import given, settings
from hypothesis import strategies as st

import multiexit as mx
from multiexit.cli import training
from multiexit.data import tasks
from multiexit.data.splits import fold
from multiexit.training import experiment, presets
from multiexit.training.search import crossval
from multiexit.training.search.queue import Tuning, tune
from multiexit.training.search.space import Choices, Range, grid

SPACE = {"x": Choices((0, 1, 2)), "y": Choices((1, 10))}
SAMPLED = {"x": Range(0.0, 1.0), "n": Range(1, 64, log=True), "kind": Choices(("a", "b"))}


def score(setting, fold):
    return 1.0 / (1 + abs(setting["x"] - 1)) + setting["y"] / 100 + fold / 1000


class Judged:
    """A judge that remembers what it was asked."""

    def __init__(self, judge=lambda setting, fold: 0.5, stop=None, error=KeyboardInterrupt):
        self.judge, self.stop, self.error, self.asked = judge, stop, error, []

    def __call__(self, setting, fold):
        if len(self.asked) == self.stop:
            raise self.error
        self.asked.append((setting, fold))
        return self.judge(setting, fold)


def settings_of(found: Tuning) -> list:
    return [trial.setting for trial in found.trials]


# The queue


def test_a_grid_tries_every_combination_once_and_finds_the_best(tmp_path):
    judge = Judged(score)
    found = tune(judge, SPACE, tmp_path, folds=2, sampler="grid")
    every = [{"x": x, "y": y} for x in (0, 1, 2) for y in (1, 10)]
    key = str
    assert sorted(settings_of(found), key=key) == sorted(every, key=key)
    assert sorted(judge.asked, key=key) == sorted([(s, f) for s in every for f in (0, 1)], key=key)
    assert found.best.setting == {"x": 1, "y": 10}
    for trial in found.trials:
        both = [score(trial.setting, fold) for fold in (0, 1)]
        assert trial.folds == tuple(both)
        assert trial.score == pytest.approx(sum(both) / 2)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_seed_fixes_the_search_wherever_it_was_stopped(sampler, tmp_path):
    def search(name, judge, trials=12 if sampler == "tpe" else 6):  # TPE's first 10 are random
        return tune(judge, SAMPLED, tmp_path / name, trials=trials, sampler=sampler, seed=3)

    def judge(setting, fold):
        return setting["x"] - setting["n"] / 64

    whole = search("whole", judge)
    search("more", judge, trials=5)  # a budget may grow
    assert settings_of(search("more", judge)) == settings_of(whole)
    assert all(0 <= s["x"] <= 1 and 1 <= s["n"] <= 64 for s in settings_of(whole))
    assert all(type(s["n"]) is int and s["kind"] in ("a", "b") for s in settings_of(whole))
    assert len({s["x"] for s in settings_of(whole)}) == len(whole.trials)


def test_an_interrupted_trial_goes_on_after_its_last_fold(tmp_path):
    first = Judged(score, stop=4)
    with pytest.raises(KeyboardInterrupt):
        tune(first, SPACE, tmp_path, folds=3, sampler="grid")
    second = Judged(score)
    found = tune(second, SPACE, tmp_path, folds=3, sampler="grid")
    every = [(setting, fold) for setting in grid(SPACE) for fold in range(3)]
    assert sorted(first.asked + second.asked, key=str) == sorted(every, key=str)
    assert all(len(trial.folds) == 3 for trial in found.trials)
    untouched = Judged(score)
    assert tune(untouched, SPACE, tmp_path, folds=3, sampler="grid") == found
    assert untouched.asked == []


@pytest.mark.parametrize("ends", [float("nan"), FloatingPointError("exit 2, step 7")])
def test_what_diverges_has_failed_and_the_search_goes_on(ends, tmp_path):
    def judge(setting, fold):
        if setting["x"] == 1 and isinstance(ends, Exception):
            raise ends
        return ends if setting["x"] == 1 else score(setting, fold)

    found = tune(judge, SPACE, tmp_path, sampler="grid")
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert [trial.setting["x"] for trial in failed] == [1, 1]
    assert all(("exit 2" if isinstance(ends, Exception) else "nan") in t.error for t in failed)
    assert found.best.setting["x"] != 1
    assert tune(judge, SPACE, tmp_path, sampler="grid") == found


def test_a_wrong_word_ends_the_search_and_is_tried_again(tmp_path):
    with pytest.raises(ValueError, match="typo"):
        tune(Judged(stop=0, error=ValueError("typo")), SPACE, tmp_path, sampler="grid")
    found = tune(Judged(score), SPACE, tmp_path, sampler="grid")
    assert {trial.state for trial in found.trials} == {"done"}


@pytest.mark.parametrize(
    ("changed", "naming"),
    [
        ({"space": {}}, "empty"),
        ({"space": {"x": Range(0, 1)}, "sampler": "grid"}, "x is a range"),
        ({"sampler": "luck"}, "tpe, random, grid"),
        ({"trials": 0}, "0"),
        ({"folds": 0}, "0"),
        ({"folds": 1.5}, "folds must be a whole number, got 1.5"),
        ({"folds": True}, "folds must be a whole number, got True"),
        ({"trials": "2"}, "trials must be a whole number, got '2'"),
        ({"storage": "nonsense"}, "database"),
        ({"storage": "sqlite"}, "database"),
    ],
)
def test_a_wrong_search_is_refused_before_it_starts(changed, naming, tmp_path):
    judge = Judged()
    with pytest.raises(ValueError, match=naming):
        tune(**{"judge": judge, "space": SPACE, "output": tmp_path, **changed})
    assert judge.asked == []


def test_another_search_in_the_folder_is_refused(tmp_path):
    tune(score, SPACE, tmp_path, trials=1, about={"task": "rte", "exits": (1, 2)})
    tune(score, SPACE, tmp_path, trials=1, about={"task": "rte", "exits": (1, 2)})
    with pytest.raises(ValueError, match="task \\('rte' there, 'mrpc' here\\)"):
        tune(score, SPACE, tmp_path, trials=1, about={"task": "mrpc", "exits": (1, 2)})
    with pytest.raises(ValueError, match="seed"):
        tune(score, SPACE, tmp_path, seed=1, about={"task": "rte", "exits": (1, 2)})


@pytest.mark.parametrize("name", ["~", "a?b", "a%3Fb#c", "a{b}"])
def test_everything_of_a_search_lies_in_its_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    output = f"{name}/search"
    tune(score, SPACE, output, trials=1)
    assert [path.name for path in tmp_path.iterdir()] == ["home" if name == "~" else name]
    (held,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert held == tmp_path / ("home" if name == "~" else name) / "search" / "study.db"
    held.unlink()
    with closing(sqlite3.connect(held)) as opened:
        opened.execute("CREATE TABLE notes (text)")
    with pytest.raises(ValueError, match="another program, with notes"):
        tune(score, SPACE, output, trials=1)


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_range_that_is_none(ends):
    with pytest.raises(ValueError, match="low to high"):
        Range(*ends)
    with pytest.raises(ValueError, match="above 0"):
        Range(0, 1, log=True)
    with pytest.raises(ValueError, match="at least one"):
        Choices(())


def work(folder, name, workers, seconds):
    """Search until nothing is left; from the first trial on, once all workers have one."""

    def judge(setting, fold):
        (folder / f"{name}.at-work").touch()
        while len(list(folder.glob("*.at-work"))) < workers:
            time.sleep(0.02)
        with (folder / f"{name}.judged").open("a") as file:
            file.write(f"{setting['x']}\n")
        time.sleep(seconds)
        return setting["x"]

    found = tune(judge, {"x": Choices(tuple(range(9)))}, folder, sampler="grid")
    assert found.best.setting == {"x": 8}
    assert all(trial.state == "done" for trial in found.trials)


def test_processes_share_the_trials_and_take_over_from_a_dead_one(tmp_path, monkeypatch):
    module = importlib.import_module("multiexit.training.search.database")
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    monkeypatch.setattr(module, "GRACE", 4)
    start = multiprocessing.get_context("fork").Process  # as spawning imports everything anew
    sleeps = {"dying": 600, "one": 0.1, "other": 0.1}
    workers = {
        name: start(target=work, args=(tmp_path, name, len(sleeps), seconds))
        for name, seconds in sleeps.items()
    }
    for process in workers.values():
        process.start()
    while not (tmp_path / "dying.judged").exists():
        assert workers["dying"].is_alive()
        time.sleep(0.02)
    workers["dying"].kill()
    for process in workers.values():
        process.join(120)
    assert [workers[name].exitcode for name in ("one", "other")] == [0, 0]
    judged = {name: (tmp_path / f"{name}.judged").read_text().split() for name in workers}
    assert judged["one"]
    assert judged["other"]
    assert sorted(map(int, judged["one"] + judged["other"])) == list(range(9))  # each once


# The folds


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(10, 60),
    classes=st.integers(1, 4),
    folds=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_the_folds_partition_the_training_set(rows, classes, folds, seed):
    data = images(rows)
    data.labels = torch.arange(rows) % classes
    held_of = [fold(data, index, folds, seed) for index in range(folds)]
    whole = sorted(image.tolist() for image in data.images.flatten(1))
    parts = [sorted(i.tolist() for i in held.images.flatten(1)) for _, held in held_of]
    assert sorted(itertools.chain.from_iterable(parts)) == whole
    for (rest, held), part in zip(held_of, parts, strict=True):
        others = [image.tolist() for image in rest.images.flatten(1)]
        assert sorted(others + part) == whole
        for label in range(classes):
            of_class = int((data.labels == label).sum())
            assert abs(int((held.labels == label).sum()) - of_class / folds) < 1
        assert rest.augment
        assert not held.augment
    again, _ = fold(data, 0, folds, seed)
    assert torch.equal(again.images, held_of[0][0].images)


def test_one_fold_is_a_fifth_and_regression_is_cut_plainly():
    data = images(40)
    rest, held = fold(data, 0, 1)
    assert (len(rest), len(held)) == (32, 8)
    data.labels = torch.rand(40)
    parts = torch.cat([fold(data, index, 4)[1].labels for index in range(4)])
    assert torch.equal(parts.sort().values, data.labels.sort().values)
    for wrong in ((4, 4), (-1, 4), (0, 0), (0, 41)):
        with pytest.raises(ValueError, match="no fold"):
            fold(data, *wrong)


# Training in folds


class Unread(Table):
    """A set that nobody may look at."""

    def __len__(self):
        raise AssertionError("a reported set was read")

    __getitem__ = __len__


def quick(**changes):
    return replace(experiment.config_for("digits"), max_steps=2, progress=False, **changes)


def test_a_setting_is_judged_inside_train_as_by_hand():
    digits = tasks.load("digits")
    sealed = replace(digits, sets={"test": Unread()})
    judge = crossval.judge(sealed, "leebert", {"temperature": 2.0}, quick(), 3, exits=4)
    scored = judge({"lr": 0.05, "option.cycle": 2}, 1)

    rest, held = fold(digits.train, 1, 3, seed=0)
    torch.manual_seed(0)
    backbone = mx.wrap("cifar-resnet-20", in_channels=1, size=8)
    torch.manual_seed(0)
    model = mx.MultiExitModel(backbone, 10, exits=4)
    recipe = mx.recipes.leebert(temperature=2.0, cycle=2)
    mx.Trainer(model, recipe, quick(lr=0.05)).fit(rest)
    x, labels = held.collate(held.__getitems__(range(len(held))))
    with torch.no_grad():
        answers_MB = model.eval()(x).argmax(-1)
    assert scored == pytest.approx(float((answers_MB == labels).double().mean()))


def test_the_papers_grid():
    every = crossval.paper_grid("leebert", "mrpc")
    assert every == crossval.SEARCHED
    assert len(grid(every)) == 3 * 4 * 4 * 3
    assert set(crossval.paper_grid("joint", "mrpc")) == {"batch_size", "lr"}
    assert set(crossval.paper_grid("leebert-slo", "mrpc")) == {"batch_size", "lr", "omega_lr"}
    for row in presets.TABLE_3.values():  # which was found on this grid
        found = {"option.cycle" if k == "cycle" else k: v for k, v in row._asdict().items()}
        assert found in grid(every)


def test_every_name_of_a_setting_is_a_word_of_train():
    words = inspect.signature(training.train).parameters
    assert set(crossval.FIELDS) <= set(words)


# The command


def test_a_search_from_end_to_end(tmp_path):
    words = (
        *("tune", "--task", "digits", "--output", tmp_path, "--trials", 2, "--folds", 2),
        *("--space", "lr=0.01..0.2:log", "--space", "option.cycle=1,2", "--space", "omega-lr=1e-3"),
        *("--exits", 4, "--max-steps", 2, "--option", "temperature=2", "--seed", 1),
    )
    ended = command(*words)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "tuning.json").read_text())
    trials = results["trials"]
    assert [trial["state"] for trial in trials] == ["done", "done"]
    for trial in trials:
        assert set(trial["setting"]) == {"lr", "option.cycle", "omega_lr"}
        assert trial["score"] == pytest.approx(sum(trial["folds"]) / 2)
    assert results["best"] == max(trials, key=lambda trial: trial["score"])
    assert results["train"] == ended.out.splitlines()[-1]
    best = results["best"]["setting"]
    program, *train = shlex.split(results["train"])
    assert program == "multiexit"
    for word in (
        *("temperature=2", f"cycle={best['option.cycle']}", f"--lr {best['lr']}", "--exits 4"),
        *("--omega-lr 0.001", "--max-steps 2", "--seed 1"),
    ):
        assert word in results["train"]
    trained = command(*train)
    assert trained.code == 0, trained.err
    again = command(*words)
    assert again.code == 0
    assert json.loads((tmp_path / "tuning.json").read_text()) == results


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        ((), "--space NAME=VALUES"),
        (("--grid",), "digits is images"),
        (("--space", "lx=1,2"), "lx"),
        (("--space", "option.cycel=1,2"), "option.cycle"),
        (("--space", "lr"), "NAME=VALUE"),
        (("--space", "lr=a..b"), "LOW..HIGH"),
        (("--space", "lr=1..2:cubic"), "LOW..HIGH"),
        (("--space", "lr=2..1"), "2..1"),
        (("--space", "lr=0.1,-1"), "-1"),
        (("--space", "batch_size=8,many"), "many"),
        (("--space", "option.cycle=0..4"), "0"),
        (("--space", "lr=0.1..0.2", "--sampler", "grid"), "lr is a range"),
        (("--space", "lr=0.1,0.2", "--recipe", "luck"), "luck"),
        (("--space", "lr=0.1,0.2", "--exits", "every"), "--exits"),
    ],
)
def test_a_wrong_word_is_named_in_one_line(words, naming, tmp_path):
    ended = command("tune", "--task", "digits", "--output", tmp_path / "search", *words)
    assert ended.code == 2
    assert naming in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "search" / "study.db").exists()


def test_databases_and_studies_of_other_programs_are_left_alone(tmp_path):
    import optuna

    words = ("tune", "--task", "digits", "--space", "weight_decay=0.1,0.2", "--output")
    notes = tmp_path / "notes.db"
    with sqlite3.connect(notes) as opened:
        opened.execute("CREATE TABLE notes (text)")
    opened.close()
    bytes_before = notes.read_bytes()
    ended = command(*words, tmp_path / "a", "--storage", f"sqlite:///{notes}")
    assert (ended.code, "another program, with notes" in ended.err) == (2, True)
    assert notes.read_bytes() == bytes_before
    for name, direction, trials in (("b", "maximize", 1), ("c", "minimize", 0)):
        url = f"sqlite:///{tmp_path / name}.db"
        study = optuna.create_study(storage=url, study_name=name, direction=direction)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
        ended = command(*words, tmp_path / name, "--storage", url)
        assert (ended.code, "of another program" in ended.err) == (2, True)
        assert (tmp_path / name).exists() is False
        assert len(study.trials) == trials


def test_without_optuna_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = ("--task", "digits", "--space", "lr=0.1,0.2", "--output", tmp_path)
    ended = command("tune", *words)
    assert (ended.code, "multiexit-torch[tune]" in ended.err) == (2, True)
