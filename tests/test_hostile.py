"""Folders that lie: each is refused by one sentence, and none of them runs, fetches or opens more."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import ROOT, command
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

import multiexit as mx
from multiexit import guarantee, settings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "y"]


def _bert(folder: Path) -> None:
    from conftest import MAKE

    model = mx.MultiExitModel(MAKE["bert"](), 2, labels=["bad", "good"])
    model.preprocessing = {"kind": "text", "task": "sst2", "max_length": 16, "pairs": False}
    certificate = mx.Certificate("disagreement", 0.1, 0.9, 50, 0.05, (1, 2, 3))
    model.policy = mx.MaxProb((0.9, 0.8)).with_certificate(certificate)
    M = model.num_exits
    model.latency = mx.Latency(
        "here", (1, 2), (1.0, 2.0), ((1.0, 2.0),) * M, ((0.1, 0.2),) * M, (0.1, 0.2), (9.0, 9.0)
    )
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    model.save_pretrained(folder, BertTokenizer(str(folder / "vocab.txt")))


def _vision(name: str, **kwargs):
    def make(folder: Path) -> None:
        backbone = mx.wrap(name, **kwargs)
        mx.MultiExitModel(backbone, 2, exits=[backbone.num_stages - 1]).save_pretrained(folder)

    return make


MAKERS = {
    "bert": _bert,
    "cifar": _vision("cifar-resnet-20"),
    "timm": _vision("timm:test_resnet", input_shape=(3, 32, 32)),
    "torchvision": _vision("torchvision:resnet18", input_shape=(3, 32, 32)),
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A saved folder of each kind; `made(kind)`."""
    root, done = tmp_path_factory.mktemp("made"), {}

    def make(kind: str) -> Path:
        if kind not in done:
            torch.manual_seed(0)
            MAKERS[kind](root / kind)
            done[kind] = root / kind
        return done[kind]

    return make


@pytest.fixture
def folder(made, tmp_path):
    """`folder(kind)`: a copy to be changed."""

    def copy(kind: str = "bert") -> Path:
        shutil.copytree(made(kind), tmp_path / kind)
        return tmp_path / kind

    return copy


WRONG = [
    *(None, True, -1, 0, 10**12, 10**400, 0.5, 1e300, "", "no\nsuch", "x" * 10_000, [], [None]),
    *([[]], [-1, 2], ["a"], {}, {"a": {"b": 1}}, [1e300], "hf-hub:a/b", "../../etc/passwd"),
]


def leaves(tree, path=()):
    """Every place in nested tables and lists, the inner nodes included."""
    yield path
    items = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        items = list(enumerate(tree))[:2]
    for key, value in items:
        yield from leaves(value, (*path, key))


def put(tree, path, value):
    """A copy with another value at a place."""
    if not path:
        return value
    made = deepcopy(tree)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def without(tree, path):
    """A copy without a place."""
    made = deepcopy(tree)
    at = made
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return made


def mutations(said):
    """Every place with every wrong value, gone, or with a key beside it."""
    for path in leaves(said):
        for value in WRONG:
            yield f"{path}={str(value)[:30]}", put(said, path, value)
        if path:
            yield f"{path} gone", without(said, path)
            yield (
                f"{path} renamed",
                put(without(said, path), (*path[:-1], "other"), 1)
                if (isinstance(path[-1], str))
                else without(said, path),
            )


def answered(path: Path, text: str | bytes) -> str:
    """What loading a folder with these settings does: "loaded" or the sentence."""
    data = text if isinstance(text, bytes) else text.encode()
    (path / settings_name).write_bytes(data)
    try:
        mx.MultiExitModel.from_pretrained(path)
    except ValueError as error:
        return str(error)
    return "loaded"


settings_name = "multiexit.json"
