"""Two processes on gloo: the same numbers as one process with the whole batch."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import Table, chain, config, fit
from safetensors.torch import load_file

import multiexit as mx
from multiexit.temperature import Rising

SCRIPT = """
    import json, os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    from helpers import Stopped, Table, Watched, assert_same, chain, config, fit, tensors
    from safetensors.torch import save_file
    from test_distributed import CASES, model_for, recipe_of
    import multiexit as mx
    from multiexit import checkpoint

    folder, rank = sys.argv[1], None
    torch.set_num_threads(1)
    for name, (recipe, changes, rows) in CASES.items():
        model = model_for(recipe)
        settings = config(batch_size=4, output=f"{{folder}}/{{name}}", **changes)
        trainer = mx.Trainer(model, recipe_of(recipe), settings)
        rank = trainer.accelerator.process_index
        history = trainer.fit(Table(rows), Table(10, seed=1))
        kept = tensors(model)
        kept["omega"] = torch.tensor(
            [[w or 0.0 for row in W_MM for w in row] for _, W_MM in history.weights]
        )
        kept["loss"] = torch.tensor([row["loss"] for row in history.steps])
        save_file(kept, f"{{folder}}/{{name}}-{{rank}}.safetensors")

    # Stopped and gone on, with dropout of each process's own.
    def run(where, stop, resume):
        model = chain(dropout=0.3)
        settings = config(
            batch_size=4, output=f"{{folder}}/{{where}}", resume=resume, checkpoint_every=2
        )
        train = Table() if stop is None else Watched(Table(), stop)
        fit(model, mx.recipe("leebert"), settings, train)
        return tensors(model)

    whole = run("whole", None, False)
    try:
        run("parts", 4, False)
    except Stopped:
        pass
    torch.distributed.barrier()
    mine = run("parts", None, True)
    different = [k for k in whole if not torch.equal(mine[k], whole[k])]
    with open(f"{{folder}}/resumed-{{rank}}", "w") as file:
        json.dump(different, file)

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

CASES = {
    # recipe, changes, rows: 40 rows fill all batches of 8; 42 leave a batch of 2, or halves of 21
    "joint": ("joint", {}, 40),
    "joint-odd": ("joint", {}, 42),
    "leebert": ("leebert", {}, 64),
    "leebert-clo-v1": ("leebert-clo-v1", {"clip": 0.5}, 64),
    "accumulated": ("leebert", {"accumulation": 2}, 64),
    "rising": ("rising", {}, 40),
    "deebert": ("deebert", {}, 40),
    "fastbert": ("fastbert", {"lr": 0.01}, 40),
    "ztw": ("ztw", {}, 40),
    "berxit": ("berxit", {}, 40),
    "elasticbert": ("elasticbert", {}, 40),
    "romebert": ("romebert", {"lr": 0.01, "clip": 0.5}, 40),
    "romebert, accumulated": ("romebert", {"lr": 0.01, "accumulation": 2}, 40),
    "hypergradient": ("hypergradient", {}, 64),
    "hypergradient, clipped": ("hypergradient", {"clip": 0.5, "accumulation": 2}, 64),
}
"""Full batches split evenly: a part's mean is half of the whole's."""

HEADS = {"ztw": "linear+cascade", "berxit": "linear+lte"}


def model_for(recipe):
    return chain(head=HEADS.get(recipe))


def recipe_of(name):
    if name == "hypergradient":
        return mx.recipe("leebert-hyper", cycle=2)
    if name != "rising":
        return mx.recipe(name)
    phase = mx.Phase("last", temperature=Rising(factor=1.5, above=0.45))
    return mx.Recipe("rising", "", "", 2019, "", (phase,), mx.MaxProb(0.9))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that two processes have written to, all cases in one start."""
    folder = tmp_path_factory.mktemp("two")
    tests = Path(__file__).parent
    code = textwrap.dedent(SCRIPT).format(tests=str(tests))
    common = {
        **os.environ,
        "PYTHONPATH": str(tests.parent),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
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
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_both_processes_end_with_the_same_numbers(name, ran):
    one, two = (load_file(ran / f"{name}-{rank}.safetensors") for rank in range(2))
    for key in one:
        if key != "loss":  # each process logs its own part's
            assert torch.equal(one[key], two[key]), key


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_with_the_whole_batch(name, ran):
    recipe, changes, rows = CASES[name]
    model = model_for(recipe)
    history = fit(
        model, recipe_of(recipe), config(batch_size=8, **changes), Table(rows), Table(10, seed=1)
    )
    two = load_file(ran / f"{name}-0.safetensors")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-5, msg=f"{name}: {key}")
    omega = torch.tensor([[w or 0.0 for row in W for w in row] for _, W in history.weights])
    torch.testing.assert_close(two["omega"], omega, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_main_process_alone_writes_the_folder(name, ran):
    assert {path.name for path in (ran / name).iterdir()} == {
        *("model", "history.json", "checkpoints", "run.json")
    }
    history = mx.History.load(ran / name / "history.json")
    assert history.best in history.epochs


def test_a_stopped_run_of_two_goes_on_exactly(ran):
    assert [(ran / f"resumed-{rank}").read_text() for rank in range(2)] == ["[]", "[]"]


def test_a_signal_to_one_ends_both_at_the_same_step(ran):
    one, two = (json.loads((ran / f"asked-{rank}").read_text()) for rank in range(2))
    assert one[0] == two[0] == 143
    assert one[1], "saved first"
    assert one[2] == two[2] == []


def test_the_rising_temperature_rises_in_this_case():
    """Else the case would prove nothing."""
    model, train = chain(), Table(40)
    history = fit(model, recipe_of("rising"), config(), train)
    constant = chain()
    phase = mx.Phase("last")
    recipe = mx.Recipe("constant", "", "", 2019, "", (phase,), mx.MaxProb(0.9))
    assert history.steps[-1] != fit(constant, recipe, config(), train).steps[-1]
