"""What two processes on gloo train, and the script that runs both: `two_processes.py FOLDER`.

Both are forked from one process, so that nothing is imported twice.
"""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import sklearn.metrics  # noqa: F401 (these two are what each process would import for itself else)
import torch
import torch._dynamo
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from helpers import (
    CLASSES,
    OF_CLASSES,
    Stopped,
    Table,
    Text,
    Watched,
    chain,
    config,
    convnet,
    fit,
    free_port,
    images,
    tensors,
)
from safetensors.torch import save_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import DataLoader, Subset
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    EsmConfig,
    EsmModel,
    LlamaConfig,
    LlamaModel,
)

import multiexit as mx
from multiexit.losses.temperature import Rising
from multiexit.training import sharding
from multiexit.training.records import checkpoint

TINY = {
    "vocab_size": 60,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

OF_TEXT = {
    "bert": (BertConfig, BertModel),
    "albert": (AlbertConfig, AlbertModel),
    "llama": (LlamaConfig, LlamaModel),  # taken apart by its own forward
    # A head of it for contacts is read by no exit.
    "esm": (partial(EsmConfig, pad_token_id=0, mask_token_id=1), EsmModel),
}


class Case(NamedTuple):
    """A run of two epochs: 24 rows, or two halves of 24, fill three batches of 8.

    Full batches split evenly: a part's mean is half of the whole's. Six steps are a cycle of Ω and
    a half, with the epochs' border within the first.
    """

    recipe: str
    rows: int = 24
    changes: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012
    network: str = "chain"
    dropout: float = 0.0


UNEQUAL = {
    "cosee": "each process draws its own thresholds",
    "l2w-den": "each process gives its own rows to the exits",
}


def of_recipe(name: str) -> Case:
    """A recipe as it is, on as many rows as it needs."""
    halves = any(phase.learner.splits for phase in mx.recipe(name).phases)
    return Case(name, 48 if halves else 24)


CASES = {name: of_recipe(name) for name in OF_CLASSES if name not in UNEQUAL} | {
    "joint-odd": Case("joint", 18),  # and so a batch of 2
    "stopped early": Case("joint", 40, {"lr": 0.3, "epochs": 9, "early_stopping": 1}),
    "leebert-clo-v1": Case("leebert-clo-v1", 48, {"clip": 0.5}),
    "accumulated": Case("leebert", 64, {"accumulation": 2}),
    "evaluated inside epochs": Case("leebert", 48, {"evaluate_every": 2}),
    "averaged": Case("leebert", 48, {"ema": 0.5}),
    "decayed": Case("joint", changes={"layer_decay": 0.5}),
    "uncertain": Case("leebert", 48, options={"parametrization": "uncertainty"}),
    "rising": Case("rising", 40),
    "recomputed": Case("leebert", 48, {"checkpoint_gradients": True}),
    "compiled, recomputed, accumulated": Case(
        *("leebert", 64, {"compile": True, "checkpoint_gradients": True, "accumulation": 2}),
        network="short chain",
    ),
    "compiled romebert": Case(
        "romebert", changes={"compile": True, "lr": 0.01}, network="short chain"
    ),
    "llama": Case("leebert", 48, {"optimizer": "adamw", "lr": 1e-3}, network="llama"),
    "esm": Case("leebert", 48, network="esm"),
    "fastbert": Case("fastbert", changes={"lr": 0.01}),
    "romebert": Case("romebert", changes={"lr": 0.01, "clip": 0.5}),
    "romebert, accumulated": Case("romebert", 32, {"lr": 0.01, "accumulation": 2}),
    "leebert-hyper": Case("leebert-hyper", 48, options={"cycle": 2}),
    "leebert-hyper, clipped": Case(
        "leebert-hyper", 64, {"clip": 0.5, "accumulation": 2}, {"cycle": 2}
    ),
}

ADAM = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01}

SHARDED = {
    "sharded joint": Case("joint"),
    "sharded leebert": Case("leebert", 48, {"clip": 0.5}),
    "sharded clo-v1, accumulated": Case("leebert-clo-v1", 64, {"clip": 0.5, "accumulation": 2}),
    "sharded deebert": Case("deebert"),
    "sharded ztw": Case("ztw"),
    "sharded bert": Case("leebert", 48, ADAM, network="bert"),
    "sharded bert, decayed": Case("joint", changes={**ADAM, "layer_decay": 0.5}, network="bert"),
    "sharded albert": Case("fastbert", changes=ADAM, network="albert"),
    "sharded bert, recomputed": Case(
        "leebert", 64, {**ADAM, "checkpoint_gradients": True, "accumulation": 2}, network="bert"
    ),
}

EQUAL = CASES | SHARDED

NORMS = Case("leebert", 48, ADAM, network="convnet")
"""BatchNorm goes by each process's own rows, so this one equals its like on two processes alone."""

OWN = {
    "norms": NORMS._replace(dropout=0.1),
    "bert": Case("leebert", 48, ADAM, network="bert", dropout=0.1),
}
"""What each process has of its own, so that these equal their like on two processes alone."""

RECOMPUTED = {
    f"{name}, recomputed": case._replace(changes={**case.changes, "checkpoint_gradients": True})
    for name, case in OWN.items()
}

SETS = {
    "even": Table(16),
    "odd": Table(11),
    "fewer rows than processes": Table(1),
    "texts": Text(13),
    "batches": list(DataLoader(Table(11), 4)),
}

HEADS = {
    "ztw": "linear+cascade",
    "berxit": "linear+lte",
    "right-tool": "linear+mix",
    "consistentee": "linear+gates",
}


def model_for(case):
    """The case's network; dropout would be each process's own."""
    if case.network.endswith("chain"):
        return chain(2 if case.network == "short chain" else 4, head=HEADS.get(case.recipe))
    if case.network == "convnet":
        return convnet(case.dropout)
    torch.manual_seed(1)
    config, network = OF_TEXT[case.network]
    made = network(config(**{**TINY, "hidden_dropout_prob": case.dropout}))
    return mx.MultiExitModel(mx.wrap(made), CLASSES, head="linear")


def data_for(case):
    if case.network == "convnet":
        return images(case.rows, augment=False)
    return Text(case.rows) if case.network in OF_TEXT else Table(case.rows)


def recipe_for(case):
    if case.recipe != "rising":
        return mx.recipe(case.recipe, **case.options)
    phase = mx.Phase("last", temperature=Rising(factor=1.5, above=0.45))
    return mx.Recipe("rising", "", "", 2019, "", (phase,), mx.MaxProb(0.9))


def trained(case, batch_size, output=None):
    """All that a case's run left: the network's tensors, Ω and the losses at each step."""
    model, data = model_for(case), data_for(case)
    settings = config(batch_size=batch_size, output=output, **case.changes)
    dev = Table(10, seed=1) if case.network.endswith("chain") else Subset(data, range(10))
    with (
        patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")),
        patch.object(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 256),  # so there are two
    ):
        history = fit(model, recipe_for(case), settings, data, dev)
    kept = tensors(model)
    kept["omega"] = torch.tensor([[w or 0.0 for row in W for w in row] for _, W in history.weights])
    kept["loss"] = torch.tensor([row["loss"] for row in history.steps])
    kept["scores"] = torch.tensor([row["mean"] for row in history.epochs if "mean" in row])
    return kept


def said(rows, spread):
    """What a network with certainties says about a set."""
    text = isinstance(rows, Text)
    model = model_for(Case("joint", network="bert")) if text else chain(head="linear+lte")
    found = mx.collect(model, rows, batch_size=4, spread=spread)
    there = {name: getattr(found, name) for name in ("logits_MBC", "labels_B", "certainty_MB")}
    return {name: value for name, value in there.items() if value is not None}


def stopped():
    raise Stopped


def killed():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def first_to_end(folder):
    """A run that a killed process ends; the other waits, so that the launcher sees that one first.

    What the other one does by itself, when it misses the killed one, takes as little time as the
    launcher's next look: whom it names would be chance.
    """
    try:
        interrupted(folder, killed)
    except RuntimeError:
        time.sleep(5)  # the launcher looks ten times a second
        raise


def interrupted(output, end=None):
    """A run, with dropout of each process's own, that ends early; or goes on from where it did."""
    model = chain(dropout=0.3)
    settings = config(
        batch_size=4, output=output, resume=True, checkpoint_every=2, optimizer="adamw", lr=0.01
    )
    fit(model, "leebert", settings, Table() if end is None else Watched(Table(), 4, end))
    return tensors(model)


def asked(output, stop, resume):
    """A run, whose second process is asked to end before a batch."""
    model = chain(dropout=0.3)
    settings = config(batch_size=4, output=output, resume=resume, log_every=2)
    end = lambda: os.environ["RANK"] == "1" and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    fit(model, "leebert", settings, Watched(Table(), stop, end))
    return tensors(model)


class FirstStops(mx.Callback):
    """Of all processes the first asks for the end, and all note when theirs comes."""

    def on_step(self, run, row):
        if run.first and run.position.step == 3:
            run.stop()

    def on_end(self, run):
        self.ended = run.position.step, len(run.history.epochs), next(run.model.parameters()).shape


def ended_by_callback(output):
    """Where a run ends that its first process stops."""
    callback, settings = FirstStops(), config(batch_size=4, output=output, log_every=4)
    mx.Trainer(chain(), mx.recipe("joint"), settings, callbacks=[callback]).fit(Table())
    return [*callback.ended, checkpoint.names(output)]


@contextmanager
def fsdp2_launch(version=2, **options):
    """As under accelerate's launcher with FSDP2, which it doesn't set up on CPUs by itself."""

    def accelerator(**settings):
        made = Accelerator(**settings)
        made.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=version, auto_wrap_policy="transformer_based_wrap", **options
        )
        return made

    try:
        with (
            patch("multiexit.training.accelerator.Accelerator", accelerator),
            patch.object(sharding, "shard", wraps=sharding.shard) as shard,
        ):
            yield shard
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def work(rank: int, port: int, folder: Path) -> None:
    """All that one of the two processes does."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
    there = {**place, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"}
    os.environ.update({name: str(value) for name, value in there.items()})
    PartialState(cpu=True)

    def train(cases):
        for name, case in cases.items():
            save_file(trained(case, 4, folder / name), folder / f"{name}-{rank}.safetensors")

    def stop(name):
        try:
            interrupted(folder / name, stopped)
        except Stopped:
            torch.distributed.barrier()

    def different(one, other):
        return [key for key in other if not torch.equal(one[key], other[key])]

    def tell(name, value):
        (folder / f"{name}-{rank}.json").write_text(json.dumps(value))

    train({**CASES, "plain norms": NORMS})
    for name, rows in SETS.items():
        save_file(said(rows, spread=True), folder / f"{name}-{rank}.safetensors")

    stop("stopped")
    whole = interrupted(folder / "whole")
    resumed = {name: different(interrupted(folder / name), whole) for name in ("stopped", "killed")}
    with fsdp2_launch() as shard:
        train({**SHARDED, "sharded norms": NORMS, **OWN, **RECOMPUTED})
        stop("sharded")
        whole = interrupted(folder / "sharded whole")
        resumed["sharded"] = different(interrupted(folder / "sharded"), whole)
        ended = [ended_by_callback(folder / "sharded by one")]
    assert shard.called
    tell("resumed", resumed)
    tell("stopped", [*ended, ended_by_callback(folder / "stopped by one")])

    # One of them is asked to end: both do, at the same step, and go on to the same end.
    whole = asked(folder / "not asked", None, False)
    code, saved = None, []
    try:
        asked(folder / "asked", 4, False)
    except SystemExit as end:
        code, saved = end.code, checkpoint.names(folder / "asked")
    torch.distributed.barrier()
    mine = asked(folder / "asked", None, True)
    tell("asked", [code, saved, different(mine, whole)])
    torch.distributed.destroy_process_group()


def launch(folder: Path) -> str:
    """Train as under `torchrun`, one process being killed; what torchrun says at its end."""
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )
    try:
        elastic_launch(launcher, first_to_end)(folder)
    except ChildFailedError as error:
        return str(error)
    return "both came to their end"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    (folder / "launched.txt").write_text(launch(folder / "killed"))
    port, start = free_port(), get_context("fork").Process
    both = [start(target=work, args=(rank, port, folder)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    sys.exit(any(process.exitcode for process in both))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
