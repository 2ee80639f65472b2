"""Saved folders, to be changed."""

import shutil
from pathlib import Path

import pytest
import torch
from folders import MAKERS


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

    def duplicate(kind: str = "bert") -> Path:
        shutil.copytree(made(kind), tmp_path / kind)
        return tmp_path / kind

    return duplicate
