"""Two processes on gloo: the same numbers as one process with the whole batch."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import ROOT, Table, assert_same, chain, config, convnet, fit, tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from two_processes import (
    CASES,
    EQUAL,
    OWN,
    SETS,
    SHARDED,
    UNEQUAL,
    Case,
    fsdp2_launch,
    model_for,
    recipe_for,
    said,
    trained,
)

import multiexit as mx
from multiexit.data import order
from multiexit.files.weights import load_weights
from multiexit.losses.weights.learners import Learner

ALONE = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that two processes have written to, all cases in one start for all of xdist."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, ended = shared / "two", shared / "two.json"
    with FileLock(shared / "two.lock"):
        if not ended.exists():
            folder.mkdir()
            done = subprocess.run(
                [sys.executable, Path(__file__).with_name("two_processes.py"), folder],
                env={**os.environ, **ALONE},
                stderr=subprocess.PIPE,
                text=True,
                timeout=900,
            )
            ended.write_text(json.dumps([done.returncode, done.stderr]))
    code, errors = json.loads(ended.read_text())
    assert code == 0, errors
    return folder


def test_a_killed_process_ends_the_other_and_is_named(ran):
    cause = (ran / "launched.txt").read_text().partition("Root Cause")[2]
    assert re.search(r"rank\s*: 1 ", cause)
    assert "SIGKILL" in cause
    assert (ran / "killed" / "checkpoints").is_dir()


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
        different = json.loads((ran / f"resumed-{rank}.json").read_text())
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


def test_averages_are_not_of_shards():
    with fsdp2_launch(), pytest.raises(ValueError, match="ema is not known to go with FSDP2"):
        mx.Trainer(chain(), mx.recipe("joint"), config(ema=0.9))


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
    one, two = (json.loads((ran / f"asked-{rank}.json").read_text()) for rank in range(2))
    assert one[0] == two[0] == 143
    assert one[1], "saved first"
    assert one[2] == two[2] == []


def test_a_callback_of_the_first_process_stops_both_at_the_same_step(ran):
    """It asks at step 3; they agree where losses are read, at step 4."""
    one, two = (json.loads((ran / f"stopped-{rank}.json").read_text()) for rank in range(2))
    assert one == two
    assert one[0] == one[1] == [4, 1, [6, 6], ["phase-00-step-0000004"]]


def test_the_rising_temperature_rises_in_this_case():
    """Else the case would prove nothing."""
    model, train = chain(), Table(40)
    history = fit(model, recipe_for(Case("rising")), config(), train)
    constant = chain()
    phase = mx.Phase("last")
    recipe = mx.Recipe("constant", "", "", 2019, "", (phase,), mx.MaxProb(0.9))
    assert history.steps[-1] != fit(constant, recipe, config(), train).steps[-1]
