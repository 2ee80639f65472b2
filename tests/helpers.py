"""Small networks, data sets and commands that the tests share."""

import atexit
import gc
import io
import runpy
import socket
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import sklearn.metrics  # noqa: F401 (this and what torch compiles with: training imports them)
import torch
import torch._dynamo
import typer.main
from torch import nn
from torch.utils.data import Dataset

import multiexit as mx
from multiexit.data.images import ImageDataset
from multiexit.model.latency import machine_of
from multiexit.training.records import checkpoint

ROOT = Path(__file__).parents[1]
WIDTH, CLASSES = 6, 3

# Every run ends with a search for garbage, which the libraries' own objects would make slow.
gc.freeze()
atexit.register(gc.unfreeze)

PLAIN = mx.TrainConfig(
    epochs=2,
    batch_size=8,
    lr=0.1,
    omega_lr=0.02,
    optimizer="sgd",
    weight_decay=0.0,
    schedule="constant",
    warmup=0.0,
    clip=None,
    early_stopping=None,
    log_every=1,
    progress=False,
)
"""Settings without a schedule, clipping or decay, that read the losses at every step."""


OF_CLASSES = [
    name for name in mx.recipes.RECIPES if "decisions" in mx.recipes.recipe(name).policy.reads
]
"""The recipes for models whose outputs are classes."""


def config(**changes) -> mx.TrainConfig:
    """`PLAIN` with changes."""
    return replace(PLAIN, **changes)


class Table(Dataset):
    """Rows of numbers whose class can be learned."""

    def __init__(self, rows=40, seed=0, classes=CLASSES):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, WIDTH, generator=generator)
        rule = torch.randn(WIDTH, classes, generator=torch.Generator().manual_seed(99))
        self.labels = (self.x @ rule).argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.labels[row]


class Scores(Table):
    """The same rows with a number to tell."""

    def __init__(self, rows=40):
        super().__init__(rows)
        self.labels = self.x.sum(1)


class Tainted(Table):
    """The same rows, of which some are NaN."""

    def __init__(self, bad_rows, rows=40):
        super().__init__(rows)
        self.x[list(bad_rows)] = torch.nan


class Text(Dataset):
    """Random tokens of 3 to 9, padded by batch."""

    def __init__(self, rows=24):
        generator = torch.Generator().manual_seed(0)
        self.lengths = [3 + row % 7 for row in range(rows)]
        self.ids = [torch.randint(5, 60, (size,), generator=generator) for size in self.lengths]
        self.labels = torch.randint(CLASSES, (rows,), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return {"input_ids": self.ids[row], "labels": self.labels[row]}

    def collate(self, rows):
        ids = [row["input_ids"] for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        labels = torch.stack([row["labels"] for row in rows])
        return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": labels}


class Stopped(Exception):
    """What ends a run from inside its data set."""


class Watched(Dataset):
    """Another data set, whose batches are counted; before batch number `stop` it calls `action`."""

    def __init__(self, inner, stop=None, action=None):
        self.inner, self.stop, self.reads = inner, stop, 0
        self.action = action or self._raise
        self.labels = inner.labels
        self.lengths = getattr(inner, "lengths", None)
        self.collate = getattr(inner, "collate", torch.utils.data.default_collate)

    def _raise(self):
        raise Stopped

    def __getstate__(self):
        return self.inner.__getstate__()  # to be taken for the same data as the other set alone

    def __len__(self):
        return len(self.inner)

    def __getitems__(self, rows):
        if self.reads == self.stop:
            self.action()
        self.reads += 1
        many = getattr(self.inner, "__getitems__", None)
        return many(rows) if many else [self.inner[row] for row in rows]


def chain(exits=4, dropout=0.0, classes=CLASSES, seed=1, head=None) -> mx.MultiExitModel:
    """Linear stages of one width, an exit after each."""
    torch.manual_seed(seed)
    stages = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout)) for _ in range(exits)
    ]
    return mx.MultiExitModel(mx.wrap(nn.Sequential(*stages)), classes, head=head)


def linear_chain(head=None, exits="all", classes=CLASSES, stages=4, seed=1) -> mx.MultiExitModel:
    """Linear stages with a head of one's choice, nothing random in it."""
    model = mx.MultiExitModel(chain(stages, seed=seed).backbone, classes, exits, head)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def stage_features(model: mx.MultiExitModel, x: torch.Tensor) -> list[torch.Tensor]:
    """The feature after each stage."""
    features = []
    for stage in range(model.backbone.num_stages):
        x = model.backbone.stage_module(stage)(x)
        features.append(x)
    return features


def convnet(dropout=0.1, exits="all", head=None, seed=1) -> mx.MultiExitModel:
    """Four stages of convolution, BatchNorm and dropout, for grey 8×8 images."""
    torch.manual_seed(seed)
    stages = [
        nn.Sequential(
            nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        for i in range(4)
    ]
    backbone = mx.wrap(nn.Sequential(*stages), input_shape=(1, 8, 8))
    return mx.MultiExitModel(backbone, CLASSES, exits, head)


def images(rows=40, augment=True) -> ImageDataset:
    """Grey 8×8 images, cropped and mirrored at random."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    return ImageDataset(pixels, labels, (0.5,), (0.3,), augment)


def phased(*phases: dict) -> mx.Recipe:
    """A recipe of these phases, each as the arguments of `Phase`."""
    made = tuple(mx.Phase(**phase) for phase in phases)
    return replace(mx.recipe("joint"), name="phased", phases=made)


def fit(model, recipe, settings, train, dev=None) -> mx.History:
    """Train by a recipe or its name."""
    recipe = mx.recipe(recipe) if isinstance(recipe, str) else recipe
    return mx.Trainer(model, recipe, settings).fit(train, dev)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal to the last bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{different} differ"


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """The names of what differs in its last bit."""
    return {name for name in one if not torch.equal(one[name], other[name])}


def same_answers(got: mx.Prediction, wanted: mx.Prediction) -> None:
    """The same exits, and logits that are the same but for how sums are rounded."""
    assert torch.equal(got.exit_B, wanted.exit_B)
    torch.testing.assert_close(got.logits_BC, wanted.logits_BC, atol=1e-4, rtol=1e-4)


def latency_table(model, stages, drop, sizes=(1, 24)) -> mx.Latency:
    """A latency table in which each stage takes `stages` ms at each size."""
    M, S = model.num_exits, len(sizes)
    zero = (0.0,) * S
    return mx.Latency(machine_of(model), sizes, zero, (stages,) * M, (zero,) * M, (drop,) * S, zero)


def saved_state(folder) -> dict:
    """Everything in a run's latest checkpoint but the seconds it took."""
    found = checkpoint.load(Path(folder))
    assert found is not None
    return _timeless(found[1])


def _timeless(tree):
    if isinstance(tree, dict):
        return {key: _timeless(value) for key, value in tree.items() if key != "seconds"}
    return [_timeless(value) for value in tree] if isinstance(tree, list) else tree


def differences(one, other, where="") -> list[str]:
    """Where two nested states differ, to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def written(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def example(path: str, *words: object) -> str:
    """Run an example as its command line does, in this process; what it printed."""
    out = io.StringIO()
    with patch.object(sys, "argv", [path, *map(str, words)]), redirect_stdout(out):
        runpy.run_path(str(ROOT / path), run_name="__main__")
    return out.getvalue()


def benchmark(name: str) -> dict[str, Any]:
    """What a program of `benchmarks/` defines; it finds its neighbours as when it is run."""
    folder = ROOT / "benchmarks"
    with patch.object(sys, "path", [str(folder), *sys.path]):
        return runpy.run_path(str(folder / name))


# Typer reads all commands' signatures anew at each call, which takes longer than most commands.
_built = cache(typer.main.get_command)


def command(*words: object, stdin: str = "") -> Ended:
    """Run `multiexit words…` in this process."""
    from multiexit import cli

    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["multiexit", *map(str, words)]
    with (
        patch.object(typer.main, "get_command", _built),
        patch.object(sys, "argv", argv),
        patch.object(sys, "orig_argv", argv),
        patch.object(sys, "stdin", io.StringIO(stdin)),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


class Killed(BaseException):
    """What ends a command at once."""


@contextmanager
def killed_behind(count: int):
    """Commands in here that answer a table must die when they have written so many parts."""
    from multiexit.cli.part_file import PartFile

    add, added = PartFile.add, []

    def killed(parts, part):
        if len(added) == count:
            raise Killed
        added.append(add(parts, part))

    with patch.object(PartFile, "add", killed):
        try:
            yield
        except Killed:
            return
    raise AssertionError(f"it wrote no more than {count} parts and went on to its end")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
