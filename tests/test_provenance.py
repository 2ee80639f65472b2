"""run.json: what a run was made from, and the run repeated from it; hashes of data sets."""

import json
import shlex
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    Stopped,
    Table,
    Text,
    Watched,
    assert_same,
    chain,
    command,
    config,
    fit,
    images,
)
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset, TensorDataset

import multiexit as mx
from multiexit.data.fingerprint import fingerprint


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_can_be_repeated_from_its_command(tmp_path, monkeypatch):
    """Typed, and typed again as run.json has it, but into another folder."""
    monkeypatch.chdir(tmp_path)
    typed = [
        "train",
        "--task",
        "digits",
        "--exits",
        "3",
        "--max-steps",
        "2",
        "--no-progress",
        "--output",
    ]
    ended = command(*typed, "one run")
    assert ended.code == 0, ended.err
    program, *again = shlex.split(facts(tmp_path / "one run")["command"])
    assert program == "multiexit"
    ended = command(*again[:-1], "two")
    assert ended.code == 0, ended.err
    one, two = (load_file(tmp_path / f / "model" / "model.safetensors") for f in ("one run", "two"))
    assert_same(one, two)
    assert facts(tmp_path / "one run")["data"] == facts(tmp_path / "two")["data"]


def test_it_says_what_the_run_was_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["init"], ["add", "file"], ["commit", "-m", "one"]):
        (tmp_path / "file").write_text("1")
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], check=True, capture_output=True)
    model, train, dev = chain(), Table(), Table(8, seed=1)
    with pytest.raises(Stopped):  # it is there before the first batch
        fit(model, "leebert", config(output="run"), Watched(train, 0), dev)
    found = facts(tmp_path / "run")
    assert found["data"] == {
        "train": {"rows": 40, "hash": fingerprint(train)},
        "dev": {"rows": 8, "hash": fingerprint(dev)},
    }
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert found["git"] == {"commit": head.stdout.strip(), "dirty": False}
    assert found["config"]["seed"] == 0
    assert found["recipe"]["name"] == "leebert"
    assert found["versions"]["torch"] == torch.__version__
    assert found["folder"] == str(tmp_path)
    (tmp_path / "file").write_text("2")
    fit(chain(), "leebert", config(output="run", resume=True), train, dev)
    assert facts(tmp_path / "run")["git"]["dirty"], "nothing was saved, so it began anew"
    fit(chain(), "leebert", config(output="run", resume=True), train, dev)
    again = facts(tmp_path / "run")
    assert [how["from"] for how in again["resumed"]] == ["phase-00-step-0000006"]
    assert again["resumed"][0]["config"]["resume"]


def test_outside_of_a_repository_git_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    fit(chain(), "joint", config(output="run", epochs=1), Table())
    assert facts(tmp_path / "run")["git"] is None


# Hashes


def changed(data, name, change):
    setattr(data, name, change(getattr(data, name)))
    return data


def flip(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[-1] += 1
    return tensor


SAME = {
    "table": Table,
    "images": images,
    "text": Text,
    "tensors": lambda: TensorDataset(torch.arange(6.0), torch.arange(6)),
    "subset": lambda: Subset(Table(), [3, 1]),
    "loader": lambda: DataLoader(Table(), 3),
    "list of batches": lambda: [(torch.ones(2, 3), torch.tensor([0, 1]))],
    "half precision": lambda: TensorDataset(torch.ones(3, dtype=torch.bfloat16)),
    "numbers": lambda: changed(Table(), "x", lambda x: x.numpy()),
    "objects": lambda: changed(Table(), "x", lambda x: np.array(["a", None], dtype=object)),
    "files": lambda: changed(Table(), "x", lambda x: [("a.png", 0), ("b.png", 1)]),
    "a circle": lambda: changed(Table(), "x", lambda x: [torch.ones(1)] * 2),
}
OTHER = {
    "a number": lambda: changed(Table(), "x", flip),
    "a label": lambda: changed(Table(), "labels", flip),
    "a row less": lambda: Table(39),
    "order": lambda: Subset(Table(), [1, 3]),
    "a setting": lambda: images(augment=False),
    "pixels": lambda: changed(images(), "images", flip),
    "a token": lambda: changed(Text(), "ids", lambda ids: [*ids[:-1], flip(ids[-1])]),
    "a type": lambda: changed(Table(), "x", lambda x: x.double()),
    "a shape": lambda: changed(Table(), "x", lambda x: x.reshape(2 * len(x), -1)),
    "a file": lambda: changed(Table(), "x", lambda x: [("a.png", 0), ("c.png", 1)]),
}


def test_equal_data_has_equal_hashes_and_other_data_others():
    hashes = {name: fingerprint(make()) for name, make in {**SAME, **OTHER}.items()}
    assert hashes == {name: fingerprint(make()) for name, make in {**SAME, **OTHER}.items()}
    assert hashes.pop("loader") == hashes["table"]
    assert len(set(hashes.values())) == len(hashes)


def test_a_set_that_holds_itself():
    data = Table()
    data.splits = {"train": data}
    assert fingerprint(data) == fingerprint(data)


def test_what_pickling_would_leave_out_does_not_count():
    watched = Watched(Table())
    before = fingerprint(watched)
    watched.__getitems__([0])
    assert fingerprint(watched) == before == fingerprint(Table())


def test_rows_of_another_library_have_their_own():
    datasets = pytest.importorskip("datasets")
    one, two = (datasets.Dataset.from_dict({"x": [1, value]}) for value in (2, 3))
    assert fingerprint(one) == fingerprint(datasets.Dataset.from_dict({"x": [1, 2]}))
    assert fingerprint(one) != fingerprint(two)


def test_data_that_changed_is_not_gone_on_with(tmp_path):
    fit(chain(), "joint", config(output=tmp_path, epochs=1), Table(), Table(8))
    settings = config(output=tmp_path, epochs=1, resume=True)
    with pytest.raises(ValueError, match=r"data train hash .* there, .* here"):
        fit(chain(), "joint", settings, changed(Table(), "x", flip), Table(8))
    with pytest.raises(ValueError, match=r"data dev rows \(8 there, 9 here\)"):
        fit(chain(), "joint", settings, Table(), Table(9))
    with pytest.raises(ValueError, match="data dev"):
        fit(chain(), "joint", settings, Table())


def test_another_version_is_not_gone_on_with(tmp_path, monkeypatch):
    fit(chain(), "joint", config(output=tmp_path, epochs=1), Table())
    monkeypatch.setattr(mx, "__version__", "9.9")
    settings = config(output=tmp_path, epochs=1, resume=True)
    with pytest.raises(ValueError, match=r"versions multiexit \('.*' there, '9.9' here\).*--force"):
        fit(chain(), "joint", settings, Table())
    with pytest.warns(UserWarning, match=r"versions multiexit.*by force"):
        fit(chain(), "joint", replace(settings, force=True), Table())
