"""Two processes on gloo: the same numbers as one process with the whole batch."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from helpers import (
    CLASSES,
    ROOT,
    Stopped,
    Table,
    Text,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    fit,
    images,
    tensors,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

import multiexit as mx
from multiexit.data import order
from multiexit.files.weights import load_weights
from multiexit.losses.temperature import Rising
from multiexit.losses.weights.learners import Learner
from multiexit.recipes import RECIPES
from multiexit.training import sharding

PLACES = [str(ROOT / "tests"), str(Path(__file__).parent)]

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

SCRIPT = """
    import json, os, signal, sys
    from pathlib import Path
    sys.path[:0] = {tests!r}
    import torch
    from accelerate import PartialState
    from helpers import Stopped
    from safetensors.torch import save_file
    from test_distributed import *
    from multiexit.training.records import checkpoint

    folder = sys.argv[1]
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index

    def train(cases):
        for name, case in cases.items():
            kept = trained(case, 4, f"{{folder}}/{{name}}")
            save_file(kept, f"{{folder}}/{{name}}-{{rank}}.safetensors")

    train({{**CASES, "plain norms": NORMS}})
    for name, rows in SETS.items():
        save_file(said(rows, spread=True), f"{{folder}}/{{name}}-{{rank}}.safetensors")

    def differences(name, whole):
        mine = interrupted(f"{{folder}}/{{name}}")
        return [key for key in whole if not torch.equal(mine[key], whole[key])]

    def stop(name):
        try:
            interrupted(f"{{folder}}/{{name}}", stopped)
        except Stopped:
            torch.distributed.barrier()

    stop("stopped")
    whole = interrupted(f"{{folder}}/whole")
    resumed = {{name: differences(name, whole) for name in ("stopped", "killed")}}
    with fsdp2_launch() as shard:
        train({{**SHARDED, "sharded norms": NORMS, **OWN, **RECOMPUTED}})
        stop("sharded")
        whole = interrupted(f"{{folder}}/sharded whole")
        resumed["sharded"] = differences("sharded", whole)
    assert shard.called
    with open(f"{{folder}}/resumed-{{rank}}", "w") as file:
        json.dump(resumed, file)

    # One of them is asked to end: both do, at the same step, and go on to the same end.
    def asked(stop, resume, where="asked"):
        model = chain(dropout=0.3)
        settings = config(
            batch_size=4, output=f"{{folder}}/{{where}}", resume=resume, log_every=2
        )
        term = lambda: os.kill(os.getpid(), signal.SIGTERM) if rank == 1 else None
        fit(model, mx.recipe("leebert"), settings, Watched(Table(), stop, term))
        return tensors(model)

    whole = asked(None, False, "not asked")
    code, saved = None, []
    try:
        asked(4, False)
    except SystemExit as end:
        code, saved = end.code, checkpoint.names(Path(folder) / "asked")
    torch.distributed.barrier()
    mine = asked(None, True)
    different = [k for k in whole if not torch.equal(mine[k], whole[k])]
    with open(f"{{folder}}/asked-{{rank}}", "w") as file:
        json.dump([code, saved, different], file)
    torch.distributed.destroy_process_group()
"""

DYING = """
    import sys
    sys.path[:0] = {tests!r}
    from test_distributed import interrupted, killed

    interrupted(sys.argv[1], killed)
"""


class Case(NamedTuple):
    """A run: 40 rows fill all batches of 8; 42 leave a batch of 2, or halves of 21.

    Full batches split evenly: a part's mean is half of the whole's.
    """

    recipe: str
    rows: int = 40
    changes: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012
    network: str = "chain"
    dropout: float = 0.0


UNEQUAL = {"l2w-den": "each process gives its own rows to the exits"}

CASES = {name: Case(name, 64) for name in RECIPES if name not in UNEQUAL} | {
    "joint-odd": Case("joint", 42),
    "stopped early": Case("joint", changes={"lr": 0.3, "epochs": 9, "early_stopping": 1}),
    "leebert-clo-v1": Case("leebert-clo-v1", 64, {"clip": 0.5}),
    "accumulated": Case("leebert", 64, {"accumulation": 2}),
    "uncertain": Case("leebert", 64, options={"parametrization": "uncertainty"}),
    "rising": Case("rising"),
    "recomputed": Case("leebert", 64, {"checkpoint_gradients": True}),
    "compiled": Case("leebert", 64, {"compile": True}),
    "compiled, recomputed, accumulated": Case(
        "leebert", 64, {"compile": True, "checkpoint_gradients": True, "accumulation": 2}
    ),
    "compiled romebert": Case("romebert", changes={"compile": True, "lr": 0.01}),
    "fastbert": Case("fastbert", changes={"lr": 0.01}),
    "romebert": Case("romebert", changes={"lr": 0.01, "clip": 0.5}),
    "romebert, accumulated": Case("romebert", changes={"lr": 0.01, "accumulation": 2}),
    "leebert-hyper": Case("leebert-hyper", 64, options={"cycle": 2}),
    "leebert-hyper, clipped": Case(
        "leebert-hyper", 64, {"clip": 0.5, "accumulation": 2}, {"cycle": 2}
    ),
}

ADAM = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01}

SHARDED = {
    "sharded joint": Case("joint"),
    "sharded leebert": Case("leebert", 64, {"clip": 0.5}),
    "sharded clo-v1, accumulated": Case("leebert-clo-v1", 64, {"clip": 0.5, "accumulation": 2}),
    "sharded deebert": Case("deebert"),
    "sharded ztw": Case("ztw"),
    "sharded bert": Case("leebert", 64, ADAM, network="bert"),
    "sharded albert": Case("fastbert", changes=ADAM, network="albert"),
    "sharded bert, recomputed": Case(
        "leebert", 64, {**ADAM, "checkpoint_gradients": True, "accumulation": 2}, network="bert"
    ),
}

EQUAL = CASES | SHARDED

NORMS = Case("leebert", 64, ADAM, network="convnet")
"""BatchNorm goes by each process's own rows, so this one equals its like on two processes alone."""

OWN = {
    "norms": NORMS._replace(dropout=0.1),
    "bert": Case("leebert", 64, ADAM, network="bert", dropout=0.1),
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

HEADS = {"ztw": "linear+cascade", "berxit": "linear+lte", "right-tool": "linear+mix"}


def model_for(case):
    """The case's network; dropout would be each process's own."""
    head = HEADS.get(case.recipe)
    if case.network == "chain":
        return chain(head=head)
    if case.network == "convnet":
        return convnet(case.dropout)
    torch.manual_seed(1)
    config, network = {
        "bert": (BertConfig, BertModel),
        "albert": (AlbertConfig, AlbertModel),
    }[case.network]
    made = network(config(**{**TINY, "hidden_dropout_prob": case.dropout}))
    return mx.MultiExitModel(mx.wrap(made), CLASSES, head="linear")


def data_for(case):
    if case.network == "convnet":
        return images(case.rows, augment=False)
    return Text(case.rows) if case.network.endswith("bert") else Table(case.rows)


def recipe_for(case):
    if case.recipe != "rising":
        return mx.recipe(case.recipe, **case.options)
    phase = mx.Phase("last", temperature=Rising(factor=1.5, above=0.45))
    return mx.Recipe("rising", "", "", 2019, "", (phase,), mx.MaxProb(0.9))


def trained(case, batch_size, output=None):
    """All that a case's run left: the network's tensors, Ω and the losses at each step."""
    model, data = model_for(case), data_for(case)
    settings = config(batch_size=batch_size, output=output, **case.changes)
    dev = Subset(data, range(10)) if case.network != "chain" else Table(10, seed=1)
    with (
        patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")),
        patch.object(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 256),  # so there are two
    ):
        history = fit(model, recipe_for(case), settings, data, dev)
    kept = tensors(model)
    kept["omega"] = torch.tensor([[w or 0.0 for row in W for w in row] for _, W in history.weights])
    kept["loss"] = torch.tensor([row["loss"] for row in history.steps])
    kept["scores"] = torch.tensor([row["mean"] for row in history.epochs])
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


def interrupted(output, end=None):
    """A run, with dropout of each process's own, that ends early; or goes on from where it did."""
    model = chain(dropout=0.3)
    settings = config(
        batch_size=4, output=output, resume=True, checkpoint_every=2, optimizer="adamw", lr=0.01
    )
    fit(model, "leebert", settings, Table() if end is None else Watched(Table(), 4, end))
    return tensors(model)


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


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


COMMON = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
    """A run of two processes, one of which is killed; and how `torchrun` ended."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "dying.py"
    script.write_text(textwrap.dedent(DYING).format(tests=PLACES))
    words = f"-m torch.distributed.run --nproc_per_node 2 --master_port {free_port()}".split()
    without = {name: value for name, value in COMMON.items() if name != "ACCELERATE_USE_CPU"}
    ended = subprocess.run(
        [sys.executable, *words, script, folder / "killed"],
        env=without,  # as a user on CPUs does who knows torchrun alone
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    return folder, ended


def test_a_killed_process_ends_the_other_and_is_named(killed_run):
    folder, ended = killed_run
    assert ended.returncode != 0
    cause = ended.stderr.partition("Root Cause")[2]
    assert re.search(r"rank\s*: 1 ", cause)
    assert "SIGKILL" in cause
    assert (folder / "killed" / "checkpoints").is_dir()


@pytest.fixture(scope="module")
def ran(killed_run):
    """The folder that two processes have written to, all cases in one start."""
    folder, _ = killed_run
    code = textwrap.dedent(SCRIPT).format(tests=PLACES)
    common = {
        **COMMON,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return folder


@pytest.mark.parametrize("name", EQUAL)
def test_both_processes_end_with_the_same_numbers(name, ran):
    one, two = (load_file(ran / f"{name}-{rank}.safetensors") for rank in range(2))
    assert_same(one, two)


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_equal_one_with_the_whole_batch(name, ran):
    one = trained(EQUAL[name], 8)
    two = load_file(ran / f"{name}-0.safetensors")
    torch.testing.assert_close(two.pop("omega"), one.pop("omega"), atol=3e-5, rtol=1e-4)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-5, msg=f"{name}: {key}")


def test_batch_statistics_are_the_first_processs_sharded_or_not(ran):
    plain, cut = (
        load_file(ran / f"{name}-0.safetensors") for name in ("plain norms", "sharded norms")
    )
    torch.testing.assert_close(cut, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_shards_computed_twice_have_the_same_dropout_and_statistics(name, ran):
    for rank in range(2):
        one, two = (
            load_file(ran / f"{n}-{rank}.safetensors") for n in (name, f"{name}, recomputed")
        )
        torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-6)


def test_every_learner_is_proved_equal():
    used = {type(p.learner) for case in CASES.values() for p in recipe_for(case).phases}
    unequal = {type(p.learner) for name in UNEQUAL for p in mx.recipe(name).phases}
    known = [*vars(mx.weights).values(), *unequal]
    learners = {kind for kind in known if isinstance(kind, type) and issubclass(kind, Learner)}
    assert learners == used | unequal | {Learner}


@pytest.mark.parametrize("name", EQUAL)
def test_the_main_process_alone_writes_the_folder(name, ran):
    assert {path.name for path in (ran / name).iterdir()} == {
        *("model", "history.json", "checkpoints", "run.json")
    }
    history = mx.History.load(ran / name / "history.json")
    assert history.best in history.epochs


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_run_saves_whole_weights(name, ran):
    model = model_for(SHARDED[name])
    load_weights(model, ran / name / "model" / "model.safetensors")
    kept = load_file(ran / f"{name}-0.safetensors")
    assert_same(tensors(model), {key: kept[key] for key in model.state_dict()})


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_by_all_processes_together_each_row_once(name, ran):
    alone = said(SETS[name], spread=False)
    for rank in range(2):
        assert_same(load_file(ran / f"{name}-{rank}.safetensors"), alone)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_batches_are_dealt_evenly_and_all(rows, size, world):
    whole = order.group(list(range(rows)), size, None, 0, 0)
    hands = [order.deal(whole, rank, world) for rank in range(world)]
    assert len({len(hand) for hand in hands}) == 1
    assert {tuple(batch) for hand in hands for batch in hand} == {tuple(batch) for batch in whole}
    assert len(hands[0]) == math.ceil(len(whole) / world)


def test_an_interrupted_run_of_two_goes_on_exactly(ran):
    for rank in range(2):
        different = json.loads((ran / f"resumed-{rank}").read_text())
        assert different == {"stopped": [], "killed": [], "sharded": []}


@pytest.mark.parametrize(
    ("recipe", "version", "words"),
    [
        ("romebert", 2, "surgery"),
        ("leebert-hyper", 2, "hypergradients"),
        ("l2w-den", 2, "hypergradients"),
        ("joint", 1, "--fsdp_version 2"),
    ],
)
def test_what_sharding_cannot_train_is_refused_when_the_trainer_is_made(recipe, version, words):
    with fsdp2_launch(version), pytest.raises(ValueError, match=words):
        mx.Trainer(chain(), mx.recipe(recipe), config())


def test_activations_are_computed_again_by_the_setting_of_the_trainer():
    with (
        fsdp2_launch(activation_checkpointing=True),
        pytest.raises(ValueError, match="checkpoint_gradients=True"),
    ):
        mx.Trainer(chain(), mx.recipe("joint"), config())


def test_batch_statistics_do_not_go_with_shards_of_lower_precision():
    with fsdp2_launch(), pytest.raises(ValueError, match="BatchNorm"):
        mx.Trainer(convnet(), mx.recipe("joint"), config(mixed_precision="bf16"))


def test_early_stopping_comes_early_in_this_case(ran):
    """Else the case would prove nothing."""
    scores = load_file(ran / "stopped early-0.safetensors")["scores"]
    assert 2 < len(scores) < CASES["stopped early"].changes["epochs"]


def test_a_signal_to_one_ends_both_at_the_same_step(ran):
    one, two = (json.loads((ran / f"asked-{rank}").read_text()) for rank in range(2))
    assert one[0] == two[0] == 143
    assert one[1], "saved first"
    assert one[2] == two[2] == []


def test_the_rising_temperature_rises_in_this_case():
    """Else the case would prove nothing."""
    model, train = chain(), Table(40)
    history = fit(model, recipe_for(Case("rising")), config(), train)
    constant = chain()
    phase = mx.Phase("last")
    recipe = mx.Recipe("constant", "", "", 2019, "", (phase,), mx.MaxProb(0.9))
    assert history.steps[-1] != fit(constant, recipe, config(), train).steps[-1]
