"""Callbacks, evaluations inside an epoch, and what trackers and the terminal are told."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    Stopped,
    Table,
    Tainted,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    fit,
    images,
    phased,
    saved_state,
    tensors,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import multiexit as mx


class Noting(mx.Callback):
    """Writes down what it is called with."""

    def __init__(self):
        self.calls = []

    def note(self, run, what, *facts):
        self.calls.append((what, run.position.phase, run.position.step, *facts))

    def on_begin(self, run):
        self.note(run, "begin", run.epochs, run.steps)

    def on_step(self, run, row):
        self.note(run, "step", row and row["step"])

    def on_evaluate(self, run, row):
        assert row is run.history.epochs[-1]
        self.note(run, "evaluate", "mean" in row)

    def on_save(self, run, folder):
        assert (folder / "state.json").exists()
        self.note(run, "save", folder.name)

    def on_end(self, run):
        self.note(run, "end")


class Early(mx.Callback):
    def on_epoch_end(self, run):
        """Of another library."""


class Foreign:
    def on_epoch_end(self, args, state):
        """Of another library, which calls it."""


class Shared(mx.Callback, Foreign):
    on_gpu = True

    @property
    def on_disk(self):
        return False


class Short(mx.Callback):
    def on_step(self, run):
        """Without the losses."""


def test_a_method_that_takes_other_facts_is_refused():
    with pytest.raises(ValueError, match=r"Short.on_step is called as on_step\(run, row\), and t"):
        mx.Trainer(chain(), mx.recipe("joint"), config(), callbacks=[Short()])


def test_methods_that_are_never_called_are_told(recwarn):
    def made(*kinds):
        mx.Trainer(chain(), mx.recipe("joint"), config(), callbacks=[kind() for kind in kinds])
        return [str(told.message) for told in recwarn]

    assert made(Shared) == []
    (told,) = made(Early)
    assert told.startswith("Early.on_epoch_end isn't called in training: a callback's methods are")


class Stopping(mx.Callback):
    """Stops the first phase at a step."""

    def __init__(self, step, where="on_step"):
        self.step = step
        setattr(self, where, self.stop)

    def stop(self, run, *facts):
        if run.position.phase == 0 and run.position.step >= self.step:
            run.stop()


def train(model, recipe, settings, *callbacks, train=None, dev=None):
    recipe = mx.recipe(recipe) if isinstance(recipe, str) else recipe
    trainer = mx.Trainer(model, recipe, settings, callbacks=callbacks)
    return trainer.fit(Table() if train is None else train, dev)


def test_callbacks_are_called_at_each_place_of_a_run(tmp_path):
    noting, settings = Noting(), config(log_every=2, output=tmp_path, batch_size=16)
    train(chain(), "joint", settings, noting, dev=Table(9))
    per_epoch = [
        ("step", None),
        ("step", 2),
        ("step", 3),
        ("evaluate", True),
        ("save", "phase-00-step-0000003"),
    ]
    first = [call[:1] + call[3:] for call in noting.calls]
    assert first[:6] == [("begin", 2, 6), *per_epoch]
    assert first[6:8] == [("step", 4), ("step", None)]
    assert first[-2:] == [("save", "phase-00-step-0000006"), ("end",)]
    assert [call[2] for call in noting.calls] == [0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 6, 6]


def test_a_run_is_the_same_whoever_watches():
    class Meddling(mx.Callback):
        def on_step(self, run, row):
            torch.rand(3), np.random.rand(), random.random()
            run.model.eval()

        on_evaluate = on_step

    def run(*callbacks):
        model = convnet()
        history = train(model, "leebert", config(), *callbacks, train=images(), dev=images(9))
        return tensors(model), history.steps

    (alone, steps), (watched, other_steps) = run(), run(Meddling(), Noting())
    assert_same(alone, watched)
    assert steps == other_steps


def test_an_error_of_a_run_ends_it_for_its_callbacks():
    noting = Noting()
    with pytest.raises(FloatingPointError):
        train(chain(), "joint", config(), noting, train=Tainted(range(40)))
    assert noting.calls[-1][0] == "end"


@pytest.mark.parametrize("where", ["on_step", "on_evaluate", "on_save"])
def test_a_stopped_phase_is_scored_and_saved_and_the_next_begins(tmp_path, where):
    recipe = phased({"train": "last", "coefficients": mx.coefficients.last_only}, {})
    settings = config(output=tmp_path, log_every=2, checkpoint_every=1, evaluate_every=3, epochs=4)
    noting = Noting()
    history = train(chain(), recipe, settings, Stopping(3, where), noting, dev=Table(9))
    last = {"on_step": 3, "on_evaluate": 3, "on_save": 4}[where]
    assert [row["step"] for row in history.epochs if row["phase"] == 0 and "mean" in row] == sorted(
        {3, last}
    )
    assert ("save", 0, last, f"phase-00-step-{last:07d}") in noting.calls
    assert max(row["step"] for row in history.steps if row["phase"] == 1) == 20
    counts = Counter(what for what, *_ in noting.calls)
    assert counts["end"] == 1
    again = Noting()
    same = train(chain(), recipe, replace(settings, resume=True), again, dev=Table(9))
    assert (again.calls, same.steps) == ([], history.steps)


def test_a_stopped_run_stays_stopped(tmp_path):
    settings = config(output=tmp_path, epochs=5)
    model = chain()
    history = train(model, "joint", settings, Stopping(7))
    assert history.steps[-1]["step"] == 7
    resumed = chain(seed=3)
    train(resumed, "joint", replace(settings, resume=True))
    assert_same(tensors(model), tensors(resumed))


# Evaluations by steps


def test_exits_are_scored_at_every_so_many_steps():
    settings = config(epochs=3, batch_size=8, evaluate_every=4)
    history = fit(chain(), "joint", settings, Table(), Table(9))
    scored = [(row["epoch"], row["step"]) for row in history.epochs if "mean" in row]
    assert scored == [(0, 4), (1, 8), (2, 12), (2, 15)]  # 5 steps an epoch
    assert [row["step"] for row in history.epochs if "mean" not in row] == [5, 10]


def test_the_best_evaluation_wins_and_its_checkpoint_stays(tmp_path):
    settings = config(epochs=6, evaluate_every=3, lr=0.8, output=tmp_path, keep_checkpoints=1)
    model, dev = chain(), Table(30, seed=5)
    history = fit(model, "joint", settings, Table(), dev)
    means = [row["mean"] for row in history.epochs if "mean" in row]
    assert history.best["mean"] == max(means)
    outputs = mx.collect(model, dev)
    assert [row["score"] for row in mx.exit_scores(outputs)] == [
        row["score"] for row in history.best["exits"]
    ]
    name = f"phase-00-step-{history.best['step']:07d}"
    assert (tmp_path / "checkpoints" / name).exists()


def test_patience_counts_evaluations(capfd):
    settings = config(epochs=50, evaluate_every=2, early_stopping=3, lr=1e-9, progress=True)
    history = fit(chain(), "joint", settings, Table(), Table(9))
    assert [row["step"] for row in history.epochs if "mean" in row] == [2, 4, 6, 8]
    assert history.steps[-1]["step"] == 8
    said = "joint: step 8, 3 evaluations without a better one end it (early stopping)"
    assert capfd.readouterr().err.splitlines()[-1] == said


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_killed_run_with_evaluations_inside_epochs_goes_on_exactly(tmp_path, stop):
    def run(folder, train, resume=False):
        settings = config(
            output=folder, evaluate_every=3, checkpoint_every=2, resume=resume, early_stopping=3
        )
        model = chain(dropout=0.2)
        fit(model, "leebert", settings, train, Table(9))
        return tensors(model), saved_state(folder)

    whole, state = run(tmp_path / "whole", Table(64))
    with pytest.raises(Stopped):
        run(tmp_path / "cut", Watched(Table(64), stop))
    resumed, other = run(tmp_path / "cut", Table(64), resume=True)
    assert_same(whole, resumed)
    state["run"] = other["run"] = None
    assert differences(state, other) == []


# What is told


def figures(folder):
    (path,) = (folder / "multiexit").glob("*tfevents*")  # deeper lie the settings
    events = EventAccumulator(str(path)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_each_exits_loss_and_scores_and_omega(tmp_path):
    settings = config(output=tmp_path, trackers=("tensorboard",), log_every=2)
    history = fit(chain(exits=2), "leebert", settings, Table(), Table(12, seed=1))
    told = figures(tmp_path)
    steps = [row["step"] for row in history.steps]
    for tag, values in {
        "loss": [row["loss"] for row in history.steps],
        "lr": [row["lr"] for row in history.steps],
        "loss/exit 1": [row["own_M"][1] for row in history.steps],
        "omega/exit 0": [row["W_MM"][0][0] for row in history.steps],
        "omega/exit 0 from exit 1": [row["W_MM"][0][1] for row in history.steps],
    }.items():
        assert told[tag] == [(s, pytest.approx(v)) for s, v in zip(steps, values, strict=True)]
    for tag, values in {
        "mean over exits": [row["mean"] for row in history.epochs],
        "score/exit 0": [row["exits"][0]["score"] for row in history.epochs],
    }.items():
        assert [value for _, value in told[tag]] == pytest.approx(values)


def test_stderr_has_a_line_per_epoch(capfd):
    settings = config(progress=True, max_steps=8)
    history = fit(chain(), "leebert", settings, Table(), Table(9))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(history.epochs)
    last = history.epochs[-1]
    for line, row in zip(lines, history.epochs, strict=True):
        assert line.startswith(f"leebert: epoch {row['epoch'] + 1}/3, step {row['step']}/8, loss ")
        assert f"mean {row['mean']:.4f}" in line
        assert f"last {row['exits'][-1]['score']:.4f}" in line
        assert "rows/s" in line
    assert "0:00:00 left" in lines[-1], last
    fit(chain(), "joint", config(), Table(), Table(9))
    assert capfd.readouterr().err == ""


def test_long_epochs_have_lines_inside(capfd, monkeypatch):
    monkeypatch.setattr("multiexit.training.progress.PAUSE", 0.0)
    recipe = phased({}, {"train": "heads"})
    fit(chain(), recipe, config(progress=True, epochs=1, log_every=2), Table())
    lines = [line.split(",")[:3] for line in capfd.readouterr().err.splitlines()]
    assert lines == [
        [f"phased: phase {phase}/2", " epoch 1/1", f" step {step}/5"]
        for phase in (1, 2)
        for step in (2, 4, 5)
    ]


def test_what_is_no_callback_is_refused():
    for wrong, said in (
        ([Noting], "the class Noting"),
        ([print], "built-in function print"),
        (Noting(), "are a list"),
        ("tensorboard", "'t'"),
    ):
        with pytest.raises(ValueError, match=said):
            mx.Trainer(chain(), mx.recipe("joint"), config(), callbacks=wrong)
    with pytest.raises(ValueError, match="evaluate_every=2 needs a dev set"):
        fit(chain(), "joint", config(evaluate_every=2), Table())
