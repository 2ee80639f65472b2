"""A run's folder: what may be begun in it, what a finished run keeps, and one run at a time."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from helpers import (
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    command,
    config,
    fit,
    saved_state,
    tensors,
)

import multiexit as mx
import multiexit_runner as mx_runner
from multiexit.training import trainer
from multiexit.training.records import checkpoint, run_folder


def contents(folder):
    """Every file of a folder with its bytes."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run(folder, model=None, recipe="joint", train=None, dev=None, **changes):
    settings = config(output=folder, **{"epochs": 2, **changes})
    return fit(model or chain(), recipe, settings, train or Table(), dev)


# A folder that holds a run


@pytest.mark.parametrize("dev", [None, Table(8, seed=1)])
def test_a_second_run_is_refused_and_changes_nothing(dev, tmp_path):
    run(tmp_path, dev=dev)
    before = contents(tmp_path)
    model = chain()
    weights = tensors(model)
    with pytest.raises(ValueError, match=r"holds a run: resume=True.*overwrite=True"):
        run(tmp_path, model, seed=7)
    assert contents(tmp_path) == before
    assert_same(tensors(model), weights)


def test_overwriting_leaves_nothing_of_the_run_before(tmp_path):
    run(tmp_path, epochs=3, recipe="deebert", dev=Table(8, seed=1))
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    other, alone = chain(), chain()
    run(tmp_path, other, epochs=1, overwrite=True)
    run(tmp_path / "alone", alone, epochs=1)
    assert_same(tensors(other), tensors(alone))
    there = {name for name in contents(tmp_path) if not name.startswith("alone")}
    assert there - {"notes.txt"} == {*contents(tmp_path / "alone")}
    assert "resumed" not in json.loads((tmp_path / "run.json").read_text())


def test_a_run_that_saved_nothing_is_in_nobodys_way(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, train=Watched(Table(), 1))
    run(tmp_path)
    assert len(json.loads((tmp_path / "history.json").read_text())["epochs"]) == 2


def a_file(folder):
    (folder / "there").write_text("a file")
    return folder / "there"


def in_a_file(folder):
    return a_file(folder) / "inside" / "it"


def dangling(folder):
    (folder / "link").symlink_to(folder / "nowhere" / "at all")
    return folder / "link"


@pytest.mark.parametrize("place", [a_file, in_a_file, dangling])
def test_a_place_that_can_be_no_folder_is_refused(place, tmp_path):
    output = place(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        run(output)
    assert contents(tmp_path) == before


def test_a_place_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="no permission to write"):
        run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_saved_model_is_no_place_for_a_run(tmp_path):
    chain().save_pretrained(tmp_path / "model")
    before = contents(tmp_path)
    for changes in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="is a saved model, and no run's folder"):
            run(tmp_path / "model", **changes)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)],
    ids=["fifo", "folder", "link"],
)
def test_a_lock_that_is_no_file_is_named(make, tmp_path):
    make(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock is a run's lock, and no regular file"):
        run(tmp_path)
    assert os.path.lexists(tmp_path / ".lock")


def test_the_home_folder_s_sign_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = chain()
    run("~/run", model, epochs=1)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    model.save_pretrained("~/saved")
    loaded = mx.MultiExitModel.from_pretrained("~/saved", chain(seed=9).backbone)
    assert_same(tensors(loaded), tensors(model))
    for refused in (
        lambda: mx.export(loaded.eval(), "~/saved", mx.FixedExit(0)),
        lambda: mx_runner.Runner("~/saved"),
    ):
        with pytest.raises((ValueError, FileExistsError), match=str(tmp_path / "saved")):
            refused()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("output", ["", "  ", b"run", 3, "a\0b"])
def test_an_output_that_names_nothing_is_refused(output):
    with pytest.raises(ValueError, match="output is the name of a folder"):
        config(output=output)


def test_ways_to_begin_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="set one"):
        config(output=tmp_path, resume=True, overwrite=True)
    with pytest.raises(ValueError, match="overwrite=True needs output="):
        config(overwrite=True)


# Resuming


def test_resuming_where_there_is_nothing_yet_is_said(tmp_path, capsys):
    """What a queue of jobs that always resumes begins with."""
    run(tmp_path / "new", resume=True)
    assert "the run starts anew" in capsys.readouterr().err
    with pytest.raises(Stopped):
        run(tmp_path / "other", resume=True, train=Watched(Table(), 1))
    capsys.readouterr()
    run(tmp_path / "other", resume=True)
    assert "the run starts anew" in capsys.readouterr().err


@pytest.mark.parametrize("filled", [False, True])
def test_resuming_where_no_run_can_be_is_refused(filled, tmp_path):
    if filled:
        (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    said = "holds no run" if filled else "is empty"
    with pytest.raises(ValueError, match=rf"{said}, so there is nothing that resume=True"):
        run(tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_model_without_checkpoints_is_not_resumed(tmp_path):
    chain().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="without checkpoints"):
        run(tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds a run"):
        run(tmp_path)


@pytest.mark.parametrize("dev", [None, Table(8, seed=1)])
def test_a_finished_run_keeps_what_was_saved_with_it(dev, tmp_path, capsys):
    model = chain()
    history = run(tmp_path, model, dev=dev)
    model.policy = mx.MaxProb(0.123).with_certificate(
        mx.Certificate("accuracy", 0.1, 0.9, 100, 0.05, keys=None if dev is None else (1, 2))
    )
    model.temperature_M.copy_(torch.linspace(0.5, 2.0, model.num_exits))
    model.latency = mx.profile(model.eval(), batch_sizes=(1,), repeats=1)
    model.save_pretrained(tmp_path / "model")
    before = contents(tmp_path / "model")
    other = chain(seed=9)
    assert run(tmp_path, other, dev=dev, resume=True) == history
    assert "is complete, and stays as it is" in capsys.readouterr().err
    assert contents(tmp_path / "model") == before
    assert_same(tensors(other), tensors(model))
    assert (other.policy, other.latency) == (model.policy, model.latency)
    assert other.policy.certificate == model.policy.certificate


def test_a_run_that_was_stopped_before_its_end_is_finished(tmp_path, monkeypatch):
    """Behind the last checkpoint, before the calibrated model was saved."""
    dev, wanted, mine = Table(8, seed=1), chain(), chain()
    stop = Event()

    def finish(model, outputs):
        if stop.is_set():
            raise Stopped
        model.policy = mx.MaxProb(0.77)

    recipe = replace(mx.recipe("leebert"), finish=finish)
    run(tmp_path / "whole", wanted, recipe, dev=dev)
    stop.set()
    with pytest.raises(Stopped):
        run(tmp_path / "parts", mine, recipe, dev=dev)
    stop.clear()
    mine = chain(seed=9)
    run(tmp_path / "parts", mine, recipe, dev=dev, resume=True)
    assert mine.policy == wanted.policy == mx.MaxProb(0.77)
    assert_same(tensors(mine), tensors(wanted))
    stop.set()  # a finished run isn't ended a second time
    again = chain(seed=9)
    run(tmp_path / "parts", again, recipe, dev=dev, resume=True)
    assert again.policy == mx.MaxProb(0.77)


def test_a_finished_run_whose_model_is_damaged_is_made_again(tmp_path):
    model = chain()
    run(tmp_path, model)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="made again"):
        run(tmp_path, chain(seed=9), resume=True)
    loaded = mx.MultiExitModel.from_pretrained(tmp_path / "model", chain().backbone)
    assert_same(tensors(loaded), tensors(model))


# More patience, more epochs


def worse(monkeypatch):
    """Scores that fall from epoch to epoch."""
    scores = iter(range(1000, 0, -1))

    def crafted(outputs):
        return [{"score": next(scores) / 1000}] * outputs.num_exits

    monkeypatch.setattr(trainer, "exit_scores", crafted)


def test_more_patience_goes_on_as_if_it_had_been_there(tmp_path, monkeypatch):
    dev, recipe = Table(8, seed=1), "leebert"
    how = {"epochs": 6, "schedule": "cosine", "lr": 0.05}
    monkeypatch.setattr(
        trainer,
        "exit_scores",
        lambda outputs: [{"score": float(outputs.logits_MBC[0, 0, 0])}] * outputs.num_exits,
    )
    wanted, mine = chain(dropout=0.2), chain(dropout=0.2)
    whole = run(tmp_path / "whole", wanted, recipe, dev=dev, early_stopping=None, **how)
    first = run(tmp_path / "parts", mine, recipe, dev=dev, early_stopping=1, **how)
    assert len(first.epochs) < len(whole.epochs) == 6
    for patience in (3, None):
        mine = chain(seed=9, dropout=0.2)
        last = run(
            tmp_path / "parts", mine, recipe, dev=dev, early_stopping=patience, resume=True, **how
        )
    assert last.steps == whole.steps
    assert_same(tensors(mine), tensors(wanted))


def test_less_patience_is_another_run(tmp_path):
    run(tmp_path, dev=Table(8, seed=1), early_stopping=5)
    with pytest.raises(ValueError, match=r"early_stopping \(5 there, 2 here\)"):
        run(tmp_path, dev=Table(8, seed=1), early_stopping=2, resume=True)


def test_more_epochs_go_on_by_force_and_the_difference_is_said(tmp_path):
    run(tmp_path, epochs=1)
    more = {"epochs": 3, "resume": True}
    with pytest.raises(ValueError, match=r"epochs \(1 there, 3 here\).*another length.*force=True"):
        run(tmp_path, **more)
    with pytest.warns(UserWarning, match="another length it isn't the run that had it"):
        history = run(tmp_path, force=True, **more)
    assert [row["epoch"] for row in history.epochs] == [0, 1, 2]


# One run at a time


def test_a_second_run_of_the_process_is_refused(tmp_path):
    said = []

    def another():
        for settings in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(ValueError, match="of this very process") as refused:
                run(tmp_path / "it", **settings)
            said.append(refused)

    run(tmp_path / "it", train=Watched(Table(), 3, another))
    assert len(said) == 3
    assert not (tmp_path / "it" / ".lock").exists()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    """However it went."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run(folder, checkpoint_every=1, train=Watched(Table(), 7))
    here, there = os.pipe()
    child = os.fork()
    if child == 0:  # it must not come back to pytest
        try:
            with run_folder.held(config(output=folder, resume=True)):
                os.write(there, b"held")
                signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(here, 4) == b"held"
        before = contents(folder)
        for changes in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(
                ValueError, match=rf"another run is writing into .*: process {child} on"
            ):
                run(folder, **changes)
        assert contents(folder) == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(here)
        os.close(there)
    assert (folder / ".lock").exists()
    mine, wanted = chain(), chain()
    run(folder, mine, resume=True)
    fit(wanted, "joint", config(), Table())
    assert_same(tensors(mine), tensors(wanted))
    assert not (folder / ".lock").exists()


def test_forked_workers_do_not_keep_the_lock(tmp_path):
    run(tmp_path / "a", workers=1)
    with run_folder.held(config(output=tmp_path / "a", resume=True)):
        child = os.fork()
        if child == 0:
            signal.pause()
    with run_folder.held(config(output=tmp_path / "a", resume=True)):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# Names of checkpoints


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    steps = [(0, 9_999_999), (0, 10_000_000), (0, 123_456_789), (1, 5), (99, 1), (100, 1)]
    for phase, step in reversed(steps):
        (tmp_path / "checkpoints" / checkpoint.name_of(phase, step)).mkdir(parents=True)
    assert checkpoint.names(tmp_path) == [checkpoint.name_of(*place) for place in steps]


def test_a_run_of_many_steps_goes_on_from_the_latest(tmp_path):
    run(tmp_path, epochs=1)
    found = checkpoint.load(tmp_path)[1]
    found["position"]["total"] = 77
    checkpoint.save(tmp_path, checkpoint.name_of(0, 9_999_999), found)
    found["position"]["total"] = 88
    checkpoint.save(tmp_path, checkpoint.name_of(0, 10_000_001), found, checkpoint.names(tmp_path))
    assert saved_state(tmp_path)["position"]["total"] == 88


# On the command line


def test_commands_that_are_refused_change_nothing(tmp_path):
    words = ["train", "--task", "digits", "--output", tmp_path / "run", "--no-progress"]
    words += ["--max-steps", 1, "--recipe", "joint"]
    few = ["--exits", 2]
    assert command(*words, *few).code == 0
    before = contents(tmp_path)
    for more, said in (
        (few, "holds a run"),
        (["--resume", "--exits", 3], "another run"),
        ([*few, "--resume", "--backbone", "cifar-resnet-32"], "another run"),
        ([*few, "--resume", "--overwrite"], "set one"),
    ):
        ended = command(*words, *more)
        assert ended.code == 2
        assert said in ended.err
        assert len(ended.err.strip().splitlines()) == 1
        assert contents(tmp_path) == before
    assert command(*words, *few, "--overwrite", "--seed", 3).code == 0
    assert contents(tmp_path) != before
    ended = command("demo", "--output", tmp_path / "run", "--epochs", 1)
    assert ended.code == 2
    assert "--overwrite" in ended.err


def test_seeds_are_all_looked_at_before_the_first_trains(tmp_path):
    words = ["train", "--task", "digits", "--no-progress", "--max-steps", 1, "--seeds", 2]
    chain().save_pretrained(tmp_path / "seed-1" / "model")
    ended = command(*words, "--output", tmp_path)
    assert (ended.code, "seed-1 holds a run" in ended.err) == (2, True)
    assert not (tmp_path / "seed-0").exists()
