"""Runs that are stopped and go on: the same to the last bit as if never stopped."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import (
    CLASSES,
    ROOT,
    WIDTH,
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    command,
    config,
    convnet,
    differences,
    fit,
    images,
    saved_state,
    tensors,
)
from torch import nn

import multiexit as mx
from multiexit.data.training_set import TrainingSet
from multiexit.evaluation import metrics
from multiexit.losses.temperature import Rising
from multiexit.losses.weights.learners import CLO2
from multiexit.training import out_of_memory, trainer
from multiexit.training.records import checkpoint


def two_phases():
    recipe = mx.recipes.leebert(learner=CLO2(cycle=3))
    first = mx.Phase(train="last", epochs=1)
    last = mx.Phase(topology="last", train="heads", learner=CLO2(cycle=3), epochs=2)
    return replace(recipe, name="three", phases=(first, *recipe.phases, last))


def rising():
    """DBT's, at a threshold that untrained networks pass now and then."""
    recipe = mx.recipes.dbt()
    return replace(recipe, phases=(replace(recipe.phases[0], temperature=Rising(above=0.45)),))


def heads_alone():
    """LeeBERT's, with fewer parameters trained."""
    recipe = mx.recipes.leebert()
    return replace(recipe, phases=(replace(recipe.phases[0], train="heads"),))


RUNS = {
    # name: (recipe, changes of the settings); 2 epochs of 20 or 40 rows in batches of 8, or 3.
    "clo-v2": (mx.recipes.leebert(cycle=3), {"checkpoint_every": 2}),
    "clo-v2, every step": (mx.recipes.leebert(cycle=4), {"checkpoint_every": 1}),
    "clo-v1, accumulated": (
        mx.recipe("leebert-clo-v1"),
        {"accumulation": 2, "batch_size": 4, "checkpoint_every": 1},
    ),
    "adamw and schedules": (
        mx.recipe("leebert-lle"),
        {"optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "warmup": 0.3, "clip": 0.5},
    ),
    "rising temperature": (rising(), {"checkpoint_every": 3, "epochs": 3}),
    "growing weights": (mx.recipe("shallow-deep"), {"checkpoint_every": 2, "max_steps": 7}),
    "phases": (two_phases(), {"checkpoint_every": 2}),
    "read rarely": (mx.recipe("leebert"), {"checkpoint_every": 3, "log_every": 20}),
}


def whole(name, folder, dev=None):
    """The run without interruption: its history, its model's tensors, its batches read."""
    recipe, changes = RUNS[name]
    model, watched = convnet(), Watched(images())
    settings = config(output=folder, **changes)
    history = fit(model, recipe, settings, watched, dev)
    return history, tensors(model), watched.reads


def interrupted(name, folder, stops, dev=None):
    """The same run, ended before these batches and started anew in fresh objects each time."""
    recipe, changes = RUNS[name]
    for stop in (*stops, None):
        model = convnet(seed=7)  # other weights: all must come from the checkpoint
        if not checkpoint.names(folder):
            model = convnet()
        settings = config(output=folder, resume=True, **changes)
        if stop is not None:
            with pytest.raises(Stopped):
                fit(model, recipe, settings, Watched(images(), stop), dev)
    torch.manual_seed(12345)  # the generator's state must come from the checkpoint too
    return fit(model, recipe, settings, Watched(images()), dev), tensors(model)


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_ends_as_if_it_never_was(name, tmp_path):
    history, wanted, reads = whole(name, tmp_path / "whole")
    # Before anything is saved, near the end, in the middle, and soon after going on.
    for part, stops in enumerate([(1, reads - 2), (reads // 3, 1, 3)]):
        folder = tmp_path / str(part)
        again, mine = interrupted(name, folder, stops)
        assert_same(mine, wanted)
        assert again.steps == history.steps, stops
        wrong = differences(saved_state(folder), saved_state(tmp_path / "whole"))
        assert not wrong, (stops, wrong)


def test_rising_temperature_is_really_under_way(tmp_path):
    history, _, _ = whole("rising temperature", tmp_path)
    tau = float(saved_state(tmp_path)["stepper"]["tau"])
    assert 1 < tau < 1.05 ** (len(history.steps) - 1)


def test_early_stopping_and_the_best_epoch_survive(tmp_path, monkeypatch):
    """Stopped at the start, within each of the epochs of 3 steps, and at a border."""

    # By epoch: 0.3, 0.6, 0.5, 0.4; with patience 2 the fourth is the last.
    def score(predicted, labels):
        epoch = len(json.loads((folder / "history.json").read_text())["epochs"])
        return {"score": [0.3, 0.6, 0.5, 0.4, 0.9][epoch]}

    def run(model, train, resume):
        folder.mkdir(exist_ok=True)
        if not (folder / "history.json").exists():
            mx.History().save(folder / "history.json")
        settings = config(
            epochs=5,
            output=folder,
            resume=resume,
            metric="crafted",
            early_stopping=2,
            checkpoint_every=2,
        )
        return fit(model, "joint", settings, train, Table(8, seed=1))

    monkeypatch.setitem(metrics.METRICS, "crafted", score)
    folder, model = tmp_path / "whole", chain(dropout=0.2)
    history = run(model, Table(24), resume=False)
    assert [row["epoch"] for row in history.epochs] == [0, 1, 2, 3]
    assert history.best["epoch"] == 1
    for stop in (0, 2, 5, 6, 8, 10):
        folder, mine = tmp_path / str(stop), chain(dropout=0.2)
        with pytest.raises(Stopped):
            run(mine, Watched(Table(24), stop), resume=False)
        mine = chain(dropout=0.2)
        again = run(mine, Table(24), resume=True)
        assert again.steps == history.steps, stop
        assert again.best["epoch"] == 1
        assert_same(tensors(mine), tensors(model))
        assert not differences(saved_state(folder), saved_state(tmp_path / "whole")), stop


def test_killed_processes_go_on(tmp_path):
    """CLO-v2 mid-cycle, and two phases; real processes, killed at random moments."""
    script = ROOT / "benchmarks" / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, script, "--times", "3", "--epochs", "2", "--output", tmp_path / "rows"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows").read_text())["rows"]
    assert [row["kills"] for row in rows] == [3, 3]


def test_workers_and_interruptions_change_no_crop(tmp_path):
    """What is drawn for a batch comes from its number, whoever prepares it."""
    wanted, mine = convnet(), convnet()
    settings = config(output=tmp_path, checkpoint_every=1)
    fit(wanted, "joint", replace(settings, output=None), images())
    with pytest.raises(Stopped):
        fit(mine, "joint", settings, Watched(images(), 3))
    fit(mine, "joint", replace(settings, resume=True, workers=2), images())
    assert_same(tensors(mine), tensors(wanted))


def test_a_finished_run_stays_as_it_is(tmp_path):
    history, wanted, _ = whole("clo-v2", tmp_path, images(12, augment=False))
    watched, model = Watched(images(), 0), convnet(seed=7)
    settings = config(output=tmp_path, resume=True, checkpoint_every=2)
    again = fit(model, RUNS["clo-v2"][0], settings, watched, images(12, augment=False))
    assert watched.reads == 0
    assert again == history
    assert_same(tensors(model), wanted)


def test_resuming_nothing_starts_fresh(tmp_path):
    fresh, resumed = chain(), chain()
    fit(fresh, "leebert", config(), Table())
    fit(resumed, "leebert", config(output=tmp_path / "new", resume=True), Table())
    assert_same(tensors(fresh), tensors(resumed))


def test_overwriting_an_old_run_looks_at_none_of_it(tmp_path):
    fit(chain(), "pabee", config(output=tmp_path, epochs=1), Table())
    mine, fresh = chain(), chain()
    fit(mine, "leebert", config(output=tmp_path, overwrite=True), Table())
    fit(fresh, "leebert", config(), Table())
    assert_same(tensors(mine), tensors(fresh))


# Checkpoints of other runs


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What LeeBERT left: whole, after its first epoch alone, and stopped within its second."""
    folder = tmp_path_factory.mktemp("left")
    fit(chain(), "leebert", config(output=folder / "whole"), Table())
    fit(chain(), "leebert", config(output=folder / "epoch", epochs=1), Table())
    settings = config(output=folder / "stopped", epochs=3, checkpoint_every=1)
    with pytest.raises(Stopped):
        fit(chain(), "leebert", settings, Watched(Table(), 3))
    return folder


@pytest.mark.parametrize(
    ("recipe", "changes", "rows", "exits", "named"),
    [
        (mx.recipe("pabee"), {}, 40, 4, "recipe"),
        (mx.recipes.leebert(learner=CLO2(cycle=3)), {}, 40, 4, "learner"),
        (mx.recipes.leebert(learner=CLO2("raw")), {}, 40, 4, "learner"),
        (mx.recipes.leebert(2.0), {}, 40, 4, "temperature"),
        (mx.recipes.leebert(topology="lle"), {}, 40, 4, "topology"),
        (mx.recipes.leebert(divergence="kl"), {}, 40, 4, "divergence|rest"),
        (mx.recipe("leebert"), {"lr": 0.2}, 40, 4, r"lr.*0\.1 there, 0\.2 here"),
        (mx.recipe("leebert"), {"batch_size": 4}, 40, 4, "batch_size.*8 there, 4 here"),
        (mx.recipe("leebert"), {"epochs": 9}, 40, 4, "epochs"),
        (mx.recipe("leebert"), {"seed": 1}, 40, 4, "seed"),
        (mx.recipe("leebert"), {"optimizer": "adamw"}, 40, 4, "optimizer"),
        (mx.recipe("leebert"), {}, 60, 4, "data train rows.*40.*there.*60.*here"),
        (mx.recipe("leebert"), {}, 40, 3, "exits"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(recipe, changes, rows, exits, named, left):
    before = saved_state(left / "whole")
    model = chain(exits)
    untouched = tensors(model)
    settings = config(output=left / "whole", resume=True, **changes)
    with pytest.raises(ValueError, match=f"another run.*{named}"):
        fit(model, recipe, settings, Table(rows))
    assert_same(tensors(model), untouched)
    assert not differences(saved_state(left / "whole"), before)


def test_a_checkpoint_of_another_network_is_refused(left):
    with pytest.raises(ValueError, match="checkpoint"):
        fit(chain(classes=5), "leebert", config(output=left / "whole", resume=True), Table())


class Scaled(nn.Module):
    """A part whose number no weight tells of."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def mine(act=nn.Tanh, more=(), factor=1.0, head=None, labels=("a", "b", "c")):
    """A network, and maybe heads, of the user's own."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(WIDTH, WIDTH), act(), *more, Scaled(factor))
    backbone = mx.wrap(nn.Sequential(first, nn.Linear(WIDTH, WIDTH)))
    return mx.MultiExitModel(backbone, CLASSES, head=head, labels=labels)


def own_head(*more):
    return lambda shape, classes: nn.Sequential(nn.Linear(shape[-1], classes), *more)


OTHERS = {
    "act": ({}, {"act": nn.ReLU}, r"parts backbone\S* \('Tanh\(\)' there, 'ReLU.*' here\)"),
    "more": ({}, {"more": [nn.Dropout(0.5)]}, r"Dropout\(inplace=False, p=0\.5\)' here"),
    "number": ({}, {"factor": 2.0}, r"'Scaled\(factor=1\.0\)' there, 'Scaled\(factor=2\.0\)' here"),
    "head": ({"head": own_head()}, {"head": own_head(nn.Tanh())}, r"parts heads.*'Tanh\(\)' here"),
    "labels": ({}, {"labels": ("a", "c", "b")}, r"labels \(\['b', 'c'\] there, \['c', 'b'\] here"),
}


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_other_parts_of_the_users_own_and_other_class_names_are_refused(name, complete, tmp_path):
    one, other, named = OTHERS[name]
    settings = config(output=tmp_path, checkpoint_every=1)
    if complete:
        fit(mine(**one), "joint", settings, Table())
    else:
        with pytest.raises(Stopped):
            fit(mine(**one), "joint", settings, Watched(Table(), 3))
    settings = replace(settings, resume=True)
    with pytest.raises(ValueError, match=f"differs in .*{named}.*force=True"):
        fit(mine(**other), "joint", settings, Table())
    fit(mine(**one), "joint", settings, Table())


def test_what_has_no_effect_on_the_result_may_change(tmp_path):
    wanted = chain(dropout=0.1)
    fit(wanted, "leebert", config(output=tmp_path / "a"), Table())
    model = chain(dropout=0.1)
    settings = config(output=tmp_path / "b", checkpoint_every=2)
    with pytest.raises(Stopped):
        fit(model, "leebert", settings, Watched(Table(), 4))
    (tmp_path / "b").rename(tmp_path / "c")
    model = chain(dropout=0.1)
    settings = config(output=tmp_path / "c", resume=True, checkpoint_every=None, workers=1)
    fit(model, "leebert", settings, Table())
    assert_same(tensors(model), tensors(wanted))


# By force


@pytest.mark.parametrize(
    ("recipe", "changes", "rows", "named"),
    [
        ("leebert", {"lr": 0.2}, 40, "config lr"),
        ("leebert", {"epochs": 4}, 40, "config epochs"),
        ("leebert", {"batch_size": 4}, 40, "config batch_size"),
        ("leebert", {}, 60, "data train hash.*data train rows"),
        ("leebert-lle", {}, 40, "recipe name.*topology"),
        (mx.recipes.leebert(cycle=3), {}, 40, "recipe phase 0 learner"),
    ],
)
def test_force_goes_on_and_says_what_differs(recipe, changes, rows, named, left, tmp_path):
    shutil.copytree(left / "stopped", tmp_path, dirs_exist_ok=True)
    step = saved_state(tmp_path)["position"]["step"]
    assert step > 0
    wanted = config(output=tmp_path, epochs=3, checkpoint_every=1, resume=True, force=True)
    settings = replace(wanted, **changes)
    with pytest.warns(UserWarning, match=f"{named}.*by force"):
        history = fit(chain(), recipe, settings, Table(rows))
    assert history.steps[step - 1] != history.steps[step]
    assert history.epochs[-1]["epoch"] == settings.epochs - 1
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["recipe"]["name"] == "leebert"
    assert len(facts["resumed"]) == 1


@pytest.mark.filterwarnings("ignore:the checkpoint")
@pytest.mark.parametrize(
    ("recipe", "changes", "exits", "named"),
    [
        ("leebert", {}, 3, "model exits.*can't go on as this one"),
        ("leebert", {"optimizer": "adamw"}, 4, "config optimizer.*can't go on as this one"),
        ("deebert", {}, 4, "recipe phases.*can't go on as this one"),
        (mx.recipes.leebert(learner=CLO2("raw")), {}, 4, "loss weights don't fit"),
        ("joint", {}, 4, "loss weights don't fit"),
        ("l2w-den", {}, 4, "loss weights don't fit"),
        (heads_alone(), {}, 4, "optimisers or loss weights don't fit.*parameter group"),
    ],
)
def test_what_does_not_fit_is_refused_even_by_force(recipe, changes, exits, named, left, tmp_path):
    shutil.copytree(left / "epoch", tmp_path, dirs_exist_ok=True)
    model = chain(exits)
    before = tensors(model)
    settings = config(output=tmp_path, epochs=2, resume=True, force=True, **changes)
    with pytest.raises(ValueError, match=named):
        fit(model, recipe, settings, Table())
    assert_same(tensors(model), before)


@pytest.mark.parametrize("part", ["backbone", "heads.1", "heads.1.linear.bias"])
def test_other_frozen_parts_are_named(part, tmp_path):
    def frozen():
        model = chain(2)
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(part))
        return model

    settings = config(output=tmp_path / "one", epochs=1)
    fit(chain(2), "joint", settings, Table())
    settings = replace(settings, resume=True, force=True)
    named = rf"model frozen \(\[\] there, \['{part}'\] here\); it can't go on as this one"
    with pytest.raises(ValueError, match=named):
        fit(frozen(), "joint", settings, Table())
    settings = config(output=tmp_path / "other", epochs=1)
    fit(frozen(), "joint", settings, Table())
    fit(frozen(), "joint", replace(settings, resume=True), Table())
    with pytest.raises(ValueError, match=rf"\['{part}'\] there, \[\] here"):
        fit(chain(2), "joint", replace(settings, resume=True), Table())


# Out of memory


class Hungry(nn.Module):
    """Asks for more memory than there is, from a given pass on."""

    def __init__(self, passes):
        super().__init__()
        self._passes = passes

    def forward(self, x):
        self._passes -= self.training
        if self._passes < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x


def test_out_of_memory_says_what_to_lower_and_the_checkpoint_stands(tmp_path):
    model = chain()
    model.backbone.stage_module(0).append(Hungry(7))
    settings = config(output=tmp_path, epochs=3, checkpoint_every=2)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fit(model, "joint", settings, Table())
    said = str(caught.value)
    for part in ("batch_size=8", "to 4 with accumulation=2", "'no'", "bf16", "2.00 GiB"):
        assert part in said
    assert saved_state(tmp_path)["position"]["step"] == 6
    model.backbone.stage_module(0)[-1]._passes = 10**6
    fit(model, "joint", replace(settings, resume=True), Table())
    wanted = chain()
    wanted.backbone.stage_module(0).append(Hungry(10**6))
    fit(wanted, "joint", replace(settings, output=None), Table())
    assert_same(tensors(model), tensors(wanted))


@pytest.mark.parametrize("may_mix", [True, False])
def test_a_cpu_that_is_full_is_explained_too(may_mix):
    with (
        pytest.raises(torch.OutOfMemoryError, match=r"batch_size.*can't allocate") as caught,
        out_of_memory.explained(config(), TrainingSet(Table(), CLASSES), may_mix),
    ):
        torch.empty(10**15)
    assert ("bf16" in str(caught.value)) == may_mix


def test_other_errors_are_left_as_they_are():
    with (
        pytest.raises(RuntimeError, match=r"^shapes$"),
        out_of_memory.explained(config(), TrainingSet(Table(), CLASSES)),
    ):
        raise RuntimeError("shapes")


def test_the_command_line_says_it_in_a_line(tmp_path, monkeypatch):
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.Stepper, "step", step)
    ended = command("train", "--task", "digits", "--output", tmp_path, "--no-progress")
    assert ended.code == 2
    assert ended.err.startswith("multiexit: out of memory with --batch-size 64")
    assert ended.err.count("\n") == 1


def test_the_command_line_ends_likewise_when_a_loss_is_no_number(tmp_path):
    words = ("--task", "digits", "--output", tmp_path, "--no-progress")
    ended = command("train", *words, "--lr", 1e30, "--max-steps", 20)
    assert ended.code == 2
    assert "is nan at step" in ended.err or "NaN or infinite" in ended.err
