"""Kill training at random moments, go on, and compare the end with a run that was never stopped.

    python benchmarks/kill_and_resume.py --times 50 --output benchmarks/results/kill_and_resume.json

Each setting trains a small convolutional network with dropout on cropped and mirrored images, and
writes a checkpoint after every step. A real process gets SIGKILL after a random while; another one
goes on in the same folder, until a run has come to its end. Then everything it left is compared
bit for bit with what the run without kills left: weights, Ω, both optimisers, the history. Then the
next run begins, until there were so many kills. *in writing* counts the kills that left a
checkpoint half written, *mid-cycle* those between two updates of Ω, *at the border* those in or
just behind the step from one phase to the next.
"""

import argparse
import gc
import multiprocessing
import random
import shlex
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sklearn.metrics  # noqa: F401 (this and the next: else every process imports them anew)
import torch
import torch._dynamo
from common import report
from safetensors.torch import load_file
from torch import nn

import multiexit as mx
from multiexit.data.images import ImageDataset
from multiexit.training.records import checkpoint

CYCLE = 4


def two_phases() -> mx.Recipe:
    """LeeBERT, then the early heads alone, learning from the last exit."""
    recipe = mx.recipes.leebert(cycle=CYCLE)
    heads = mx.Phase("last", train="heads")
    return replace(recipe, name="two-phases", phases=(*recipe.phases, heads))


SETTINGS = {"clo-v2": mx.recipes.leebert(cycle=CYCLE), "two phases": two_phases()}


def images(rows: int) -> ImageDataset:
    """Grey 8×8 noise in three classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (rows,), generator=generator)
    return ImageDataset(pixels, labels, (0.5,), (0.3,), augment=True)


def train(name: str, folder: Path, epochs: int) -> None:
    """Begin the run, or go on with it, to its end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    stages = [
        nn.Sequential(
            nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.1)
        )
        for i in range(4)
    ]
    backbone = mx.wrap(nn.Sequential(*stages), input_shape=(1, 8, 8))
    config = mx.TrainConfig(
        epochs=epochs,
        batch_size=8,
        lr=1e-2,
        omega_lr=1e-2,
        output=folder,
        resume=True,
        checkpoint_every=1,
        log_every=3,
        progress=False,
    )
    trainer = mx.Trainer(mx.MultiExitModel(backbone, 3), SETTINGS[name], config)
    trainer.fit(images(96), images(16))


def child(name: str, folder: Path, epochs: int) -> BaseProcess:
    """The same in a process of its own, forked, so that nothing is imported anew."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(name, folder, epochs))
    process.start()
    return process


def left(folder: Path) -> dict[str, Any]:
    """All that a run left but for seconds, as tensors and plain data by name."""
    found = checkpoint.load(folder)
    assert found is not None
    kept = {"checkpoint": found, "model": load_file(folder / "model" / "model.safetensors")}
    return {k: v for k, v in leaves(kept, "") if not k.endswith("/seconds")}


def leaves(tree: Any, name: str) -> list[tuple[str, Any]]:
    """The values of nested data by their paths."""
    if isinstance(tree, dict):
        pairs = [(f"{name}/{key}", item) for key, item in tree.items()]
    elif isinstance(tree, list | tuple):
        pairs = [(f"{name}/{index}", item) for index, item in enumerate(tree)]
    else:
        return [(name, tree)]
    return [leaf for path, item in pairs for leaf in leaves(item, path)]


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the last bit."""
    return [
        name
        for name in sorted({*one, *other})
        if name not in one or name not in other or not same(one[name], other[name])
    ]


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def killed(name: str, times: int, epochs: int, draw: random.Random) -> dict[str, Any]:
    """Kill a setting's runs so often, and compare each with the run without kills."""
    row: dict[str, Any] = {"setting": name, "kills": 0, "runs": 0}
    row |= {"in writing": 0, "mid-cycle": 0, "at the border": 0}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        begin = time.perf_counter()
        child(name, whole, epochs).join()
        seconds = time.perf_counter() - begin
        wanted = left(whole)
        while row["kills"] < times or row["runs"] == 0:
            folder = Path(place) / str(row["runs"])
            while True:
                process = child(name, folder, epochs)
                process.join(draw.uniform(0, seconds) if row["kills"] < times else None)
                if process.exitcode is not None:
                    break
                process.kill()
                process.join()
                row["kills"] += 1
                note(folder, row, epochs)
            if process.exitcode != 0:
                raise RuntimeError(f"a run of {name} ended with {process.exitcode}")
            row["runs"] += 1
            wrong += different(left(folder), wanted)
    return {**row, "identical": not wrong, "different": wrong}


def note(folder: Path, row: dict[str, Any], epochs: int) -> None:
    """Count where a kill has hit."""
    row["in writing"] += (folder / checkpoint.FOLDER / ".new").exists()
    found = checkpoint.load(folder)
    if found is not None:
        position, phases = found[1]["position"], len(SETTINGS[row["setting"]].phases)
        phase, step, over = position["phase"], position["step"], position["epoch"] == epochs
        row["mid-cycle"] += phase == 0 and not over and step % CYCLE != 0
        row["at the border"] += phases > 1 and (over if phase == 0 else step <= 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50, help="kills in each setting")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    gc.freeze()  # or every process searches all that was imported for garbage
    rows = [killed(name, args.times, args.epochs, draw) for name in SETTINGS]
    report(rows, args.output, shlex.join(["benchmarks/kill_and_resume.py", *sys.argv[1:]]))
    if not all(row["identical"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
