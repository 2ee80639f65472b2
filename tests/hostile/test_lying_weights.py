"""Weights that are none."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from folders import answer, refused
from helpers import command
from safetensors.torch import load_file, save_file

import multiexit as mx


def _replace(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


NAME = "heads.0.linear.weight"
WEIGHTS = {
    "a pickle": (lambda p: torch.save({"a": torch.ones(1)}, p), "no safetensors file but a pickle"),
    "an old pickle": (lambda p: p.write_bytes(pickle.dumps([1], 2)), "weights_only=True"),
    "gone": (Path.unlink, "no weights at"),
    "empty": (lambda p: p.write_bytes(b""), "damaged or cut short"),
    "a long header": (lambda p: p.write_bytes(b"\xff" * 8 + b"{}"), "damaged or cut short"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "no regular file"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "no regular file"),
    "a device": (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "no regular file"),
    "a link out": (lambda p: (p.unlink(), p.symlink_to("/etc/hosts")), "outside its folder"),
    "whole numbers": (
        lambda p: _replace(p, lambda t: t.update({NAME: t[NAME].long()})),
        f"{NAME} is stored as I64",
    ),
    "missing": (lambda p: _replace(p, lambda t: t.pop(NAME)), f"it lacks {NAME}"),
    "another shape": (
        lambda p: _replace(p, lambda t: t.update({NAME: t[NAME][:1].clone()})),
        f"{NAME} is [1, 16], not [2, 16]",
    ),
    "too many": (lambda p: _replace(p, lambda t: t.update(a=torch.zeros(1))), "it has a too many"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none(case, folder):
    change, words = WEIGHTS[case]
    path = folder()
    change(path / "model.safetensors")
    refused(path, words)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_settings_that_are_no_file(make, folder):
    path = folder()
    (path / "multiexit.json").unlink()
    make(path / "multiexit.json")
    refused(path, "multiexit.json is no regular file")


def test_the_hubs_cache_links_to_its_blobs(folder, tmp_path):
    path, blobs = folder(), tmp_path / "hub" / "blobs"
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in path.iterdir():
        shutil.move(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert answer(snapshot) == "loaded"
    assert command("predict", snapshot, stdin="good film\n").code == 0


def test_published_weights_as_a_pickle(tmp_path):
    path = tmp_path / "resnet20.th"
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(16, 3, 3, 3)}}, path)
    with pytest.raises(ValueError, match=r"no safetensors file but a pickle.*'module\.' off"):
        mx.cifar_resnet(20, weights=path)


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"])
def test_weights_whose_header_is_as_long_as_a_pickle_begins(start, folder):
    path = folder() / "model.safetensors"
    data = path.read_bytes()
    old = int.from_bytes(data[:8], "little")
    length = next(n for n in range(old, 1 << 20) if n.to_bytes(8, "little").startswith(start))
    header = data[8 : 8 + old].ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + data[8 + old :])
    assert path.read_bytes().startswith(start)
    mx.MultiExitModel.from_pretrained(path.parent)
