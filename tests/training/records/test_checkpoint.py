"""Checkpoints on disk: which are kept, damaged ones, and a disk that is full."""

import json
import os
import resource
import shutil
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    fit,
    images,
    saved_state,
    tensors,
)

import multiexit as mx
from multiexit.evaluation import metrics
from multiexit.files import sums, writing
from multiexit.training.records import checkpoint, room


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_version(path):
    path.write_text(path.read_text().replace('"format": 1', '"format": 99', 1))


def flip(path):
    """One bit of a weight."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def altered(**changes):
    """Other values in the state, under checksums that fit."""

    def change(path):
        tree = json.loads(path.read_text())
        pairs = dict(tree["state"]["dict"])
        for key, value in changes.items():
            pairs.pop(key)
            if value is not None:
                pairs[key] = value
        tree["state"]["dict"] = list(pairs.items())
        path.write_text(json.dumps(tree))
        (path.parent / sums.SUMS).unlink()
        sums.write_sums(path.parent)

    return change


def nested(path):
    path.write_text("[" * 100_000 + "]" * 100_000)
    (path.parent / sums.SUMS).unlink()


NO_POSITION = {"dict": [["phase", -1]]}
BEHIND_ALL = {
    "dict": [[n, int(n == "phase")] for n in ("phase", "epoch", "batch", "step", "total")]
    + [["second", 0], ["stale", 0]]
}
DAMAGE = {
    "a flipped bit": ("state.safetensors", flip),
    "no checksums of tensors": ("SHA256SUMS", lambda path: path.write_text("0  ../state.json")),
    "a pipe": ("state.json", lambda path: (path.unlink(), os.mkfifo(path))),
    "facts nested": ("state.json", nested),
    "no position": ("state.json", altered(position=None)),
    "a phase that isn't there": ("state.json", altered(position=BEHIND_ALL)),
    "another position": ("state.json", altered(position=NO_POSITION)),
    "a list for the model": ("state.json", altered(model=[1, 2])),
    "no tensors in the model": ("state.json", altered(model={"dict": [["a", 1]]})),
    "a number for the history": ("state.json", altered(history=3)),
    "no generators": ("state.json", altered(random=[])),
    "a tensor that isn't there": ("state.json", altered(best={"tensor": "no"})),
    "two kinds": ("state.json", altered(best={"tensor": "0", "tuple": []})),
    "tensors cut short": ("state.safetensors", cut),
    "tensors gone": ("state.safetensors", Path.unlink),
    "tensors of nothing": ("state.safetensors", lambda path: path.write_bytes(b"")),
    "facts cut short": ("state.json", cut),
    "facts gone": ("state.json", Path.unlink),
    "no JSON object": ("state.json", lambda path: path.write_text("[1, 2]")),
    "not UTF-8": ("state.json", lambda path: path.write_bytes(b"\xff\xfe{}")),
    "an empty object": ("state.json", lambda path: path.write_text("{}")),
    "another version": ("state.json", other_version),
}


def damage(kind, folder, name):
    file, change = DAMAGE[kind]
    change(folder / "checkpoints" / name / file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a whole run and of the same one stopped half-way; and the whole one's end."""
    folder, model = tmp_path_factory.mktemp("runs"), chain(dropout=0.2)
    settings = config(output=folder / "whole", epochs=3, checkpoint_every=2)
    fit(model, "leebert", settings, Table())
    settings = replace(settings, output=folder / "parts")
    with pytest.raises(Stopped):
        fit(chain(dropout=0.2), "leebert", settings, Watched(Table(), 7))
    return folder, tensors(model)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(kind, runs, tmp_path):
    (whole, wanted), parts = runs, tmp_path / "parts"
    shutil.copytree(whole / "parts", parts)
    before, last = checkpoint.names(parts)
    damage(kind, parts, last)
    mine = chain(dropout=0.2)
    settings = config(output=parts, epochs=3, checkpoint_every=2, resume=True)
    with pytest.warns(UserWarning, match=f"{last} can't be read.*going on from {before}"):
        fit(mine, "leebert", settings, Table())
    assert_same(tensors(mine), wanted)
    assert checkpoint.names(parts) == checkpoint.names(whole / "whole")
    assert not differences(saved_state(parts), saved_state(whole / "whole"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_nothing_but_damaged_checkpoints_is_refused(kind, runs, tmp_path):
    shutil.copytree(runs[0] / "parts", tmp_path, dirs_exist_ok=True)
    for name in checkpoint.names(tmp_path):
        damage(kind, tmp_path, name)
    model = chain()
    before = tensors(model)
    settings = config(output=tmp_path, epochs=3, checkpoint_every=2, resume=True)
    with pytest.raises(ValueError, match="checkpoint"):
        fit(model, "leebert", settings, Table())
    assert_same(tensors(model), before)


# Which are kept


@pytest.mark.parametrize(("keep", "best"), [(1, 0), (2, 3), (3, 1), (9, 1)])
@pytest.mark.parametrize("stop", [None, 10])
def test_the_latest_and_the_best_are_kept(keep, best, stop, tmp_path, monkeypatch):
    """Four epochs of 3 steps, with a checkpoint at every second step and at each end."""

    def score(predicted, labels):
        epoch = len(mx.History.load(tmp_path / "history.json").epochs)
        return {"score": float(epoch == best)}

    monkeypatch.setitem(metrics.METRICS, "crafted", score)
    mx.History().save(tmp_path / "history.json")
    settings = config(
        epochs=4, output=tmp_path, metric="crafted", checkpoint_every=2, keep_checkpoints=keep
    )
    if stop is not None:
        with pytest.raises(Stopped):
            fit(chain(), "joint", settings, Watched(Table(24), stop), Table(8, seed=1))
        settings = replace(settings, resume=True)
    fit(chain(), "joint", settings, Table(24), Table(8, seed=1))
    every = [checkpoint.name_of(0, step) for step in (2, 3, 4, 6, 8, 9, 10, 12)]
    wanted = {checkpoint.name_of(0, 3 * (best + 1)), *every[-keep:]}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == wanted


def test_a_new_run_in_an_old_folder_keeps_its_own_only(tmp_path):
    fit(chain(), "joint", config(output=tmp_path, epochs=3), Table())
    fit(chain(), "leebert", config(output=tmp_path, epochs=1, overwrite=True), Table())
    assert checkpoint.names(tmp_path) == [checkpoint.name_of(0, 3)]


# A disk that is full


def full_disk(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


def fail_at(monkeypatch, step):
    """Let the writing of a checkpoint fail at one of its steps."""
    if step == "tensors":
        monkeypatch.setattr(writing, "save_file", full_disk)
    elif step == "facts":
        real = Path.write_text
        monkeypatch.setattr(
            Path,
            "write_text",
            lambda path, *a, **k: (full_disk if "state" in path.name else real)(path, *a, **k),
        )
    else:  # between the two renames
        real = Path.rename
        monkeypatch.setattr(
            Path,
            "rename",
            lambda path, to: full_disk() if path.name == ".new" else real(path, to),
        )


STATE = {"step": 1, "x": torch.arange(3), "t": (1, [2.5, None]), 7: {"y": torch.ones(2, 2)}}
LATER = {**STATE, "step": 2}


@pytest.mark.parametrize("step", ["tensors", "facts", "rename"])
@pytest.mark.parametrize("name", ["phase-00-step-2", "phase-00-step-1"])
def test_a_failed_write_leaves_the_old_checkpoint(name, step, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "phase-00-step-1", STATE)
    for _ in range(2):  # failing twice does not lose it either
        with monkeypatch.context() as patched:
            fail_at(patched, step)
            with pytest.raises(OSError, match="No space"):
                checkpoint.save(tmp_path, name, LATER)
        found, state = checkpoint.load(tmp_path)
        assert found == "phase-00-step-1"
        assert not differences(state, STATE)
    checkpoint.save(tmp_path, name, LATER)
    assert checkpoint.load(tmp_path)[1]["step"] == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [name]


def save_with_little_room(folder):
    """Save more than this process may write into a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with pytest.raises(OSError, match="File too large"):
        checkpoint.save(folder, "phase-2", {"step": 2, "x": torch.ones(100_000)})


def test_a_file_that_the_system_cuts_short(tmp_path):
    """The operating system's own refusal, not a pretended one, in a process of its own."""
    checkpoint.save(tmp_path, "phase-1", {"step": 1, "x": torch.ones(10)})
    process = get_context("fork").Process(target=save_with_little_room, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert checkpoint.load(tmp_path)[1]["step"] == 1


def test_a_run_whose_disk_fills_up_can_go_on(tmp_path, monkeypatch):
    wanted = convnet()
    fit(wanted, "leebert", config(output=tmp_path / "whole", checkpoint_every=2), images())
    settings = config(output=tmp_path / "full", checkpoint_every=2)

    def fill():
        monkeypatch.setattr(writing, "save_file", full_disk)

    class Filling(Watched):
        def __getitems__(self, rows):
            if self.reads == 5:
                fill()
            return super().__getitems__(rows)

    with pytest.raises(OSError, match="No space"):
        fit(convnet(), "leebert", settings, Filling(images()))
    monkeypatch.undo()
    mine = convnet()
    fit(mine, "leebert", replace(settings, resume=True), images())
    assert_same(tensors(mine), tensors(wanted))


def test_a_disk_that_cannot_hold_a_run_is_refused_before_it(tmp_path, monkeypatch):
    def free(count):
        usage = SimpleNamespace(free=count)
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage)

    settings = config(output=tmp_path / "run", epochs=1)
    free(100)
    seen = Watched(Table())
    with pytest.raises(
        ValueError, match=r"has 1e-07 GB left, and the model and a first check.* GB"
    ):
        fit(chain(), "joint", settings, seen)
    assert not seen.reads
    assert not settings.output.exists()
    monkeypatch.undo()
    fit(chain(), "joint", settings, Table())
    files = [path for path in settings.output.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files)
    for count, output in ((written, "enough"), (0, "run")):  # what is cleared away leaves room
        free(count)
        again = replace(settings, output=tmp_path / output, overwrite=True)
        fit(chain(), "joint", again, Table())


def test_any_plain_state_comes_back_as_it_was(tmp_path):
    state = {**STATE, "nan": float("inf"), "empty": {}, "none": None, "flags": [True, (False,)]}
    checkpoint.save(tmp_path, "phase-0", state)
    assert not differences(checkpoint.load(tmp_path), ("phase-0", state))
    assert checkpoint.load(tmp_path / "nowhere") is None
