"""The training loop: epochs, seeds, data, trackers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from helpers import (
    CLASSES,
    Scores,
    Table,
    Tainted,
    Watched,
    assert_same,
    chain,
    changed,
    config,
    convnet,
    fit,
    images,
    phased,
    tensors,
)
from torch.utils.data import DataLoader, Dataset, Subset

import multiexit as mx
from multiexit.losses.weights.learners import SLO


def test_max_steps_count_for_every_method():
    reads = {}
    for name in ("joint", "leebert"):
        watched = Watched(Table())
        history = fit(chain(), name, config(max_steps=7), watched)
        assert history.steps[-1]["step"] == 7
        reads[name] = watched.reads
    assert reads == {"joint": 7, "leebert": 7 + 1}


def test_accumulation_ends_with_the_epoch():
    watched = Watched(Table(40))
    history = fit(chain(), "joint", config(batch_size=8, accumulation=3), watched)
    assert [row["step"] for row in history.steps] == [1, 2, 3, 4]  # 3 + 2 batches, twice
    assert watched.reads == 10


def test_reading_losses_rarely_changes_nothing():
    def run(log_every):
        model = chain()
        recipe = mx.recipes.leebert(learner=SLO("raw"))
        return model, fit(model, recipe, config(log_every=log_every, omega_lr=0.1), Table())

    (often, each), (rarely, fives) = run(1), run(5)
    assert_same(tensors(often), tensors(rarely))
    losses = torch.tensor([row["loss"] for row in each.steps])
    assert [row["step"] for row in fives.steps] == [5, 10]
    torch.testing.assert_close(
        torch.tensor([row["loss"] for row in fives.steps]), losses.view(2, 5).mean(1)
    )
    assert fives.weights == [each.weights[4], each.weights[9]]


@pytest.mark.parametrize("name", ["leebert", "leebert-group-dro"])
def test_without_a_rate_omega_may_move_by_two_in_a_phase(name):
    def run(omega_lr):
        model = chain()
        history = fit(model, name, config(epochs=3, omega_lr=omega_lr, log_every=1), Table())
        return model, history.steps[-1]["step"]

    model, steps = run(None)
    assert_same(tensors(model), tensors(run(2 / steps)[0]))
    with pytest.raises(AssertionError):
        assert_same(tensors(model), tensors(run(4 / steps)[0]))


def test_a_second_fit_starts_anew():
    settings = config(epochs=1)
    with pytest.raises(FloatingPointError):
        fit(chain(), "joint", settings, Tainted(range(40)))
    trainer = mx.Trainer(chain(), mx.recipe("joint"), settings)
    assert len(trainer.fit(Table()).epochs) == 1
    assert len(trainer.fit(Table()).epochs) == 1


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        model = convnet()
        history = fit(model, "leebert", config(seed=seed), images())
        return tensors(model), history.steps

    (one, first), (two, second), (other, _) = run(3), run(3), run(4)
    assert_same(one, two)
    assert first == second
    assert changed(one, other)


# Data


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_bring_the_same_rows(workers):
    model = chain()
    fit(model, "leebert", config(workers=workers, epochs=1), Table())
    alone = chain()
    fit(alone, "leebert", config(epochs=1), Table())
    assert_same(tensors(model), tensors(alone))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_epoch_is_augmented_anew(workers):
    """The same image all over: only its crops can tell one epoch from another."""
    train = images(8)
    train.images[:], train.labels[:] = train.images[0], 0
    still = config(lr=1e-12, epochs=4, batch_size=8, workers=workers)
    history = fit(convnet(dropout=0.0), "joint", still, train)
    losses = [row["loss"] for row in history.steps]
    gaps = [abs(a - b) for i, a in enumerate(losses) for b in losses[:i]]
    assert min(gaps) > 1e-4, losses


@pytest.mark.parametrize("rows", [images, Table])
def test_a_part_of_a_set_trains_as_the_set_does(rows):
    make = convnet if rows is images else chain
    some, all_of_it = make(), make()
    fit(some, "leebert", config(), Subset(rows(), range(40)), Subset(rows(), range(5)))
    fit(all_of_it, "leebert", config(early_stopping=None), rows(), Subset(rows(), range(5)))
    assert_same(tensors(some), tensors(all_of_it))


def test_a_loader_gives_its_rows_and_its_batch_size():
    by_loader, by_set = chain(), chain()
    fit(by_loader, "joint", config(batch_size=3), DataLoader(Table(), batch_size=8, shuffle=True))
    fit(by_set, "joint", config(batch_size=8), Table())
    assert_same(tensors(by_loader), tensors(by_set))


def test_a_dict_with_labels_is_a_batch():
    class Named(Table):
        def __getitem__(self, row):
            return {"x": self.x[row], "labels": self.labels[row]}

    named, paired = chain(), chain()
    class_of = mx.MultiExitModel(named.backbone, CLASSES)
    class_of.load_state_dict(paired.state_dict())
    fit(class_of, "joint", config(), Named())
    fit(paired, "joint", config(), Table())
    assert_same(tensors(class_of), tensors(paired))


def test_regression_learns():
    model = chain(classes=1)
    recipe = replace(mx.recipe("leebert"), policy=mx.Patience(1, tolerance=0.1))
    history = fit(model, recipe, config(epochs=8, lr=0.05), Scores(64), Scores(32))
    assert history.best["mean"] > 0.8
    assert set(history.best["exits"][0]) == {"score", "pearson", "spearman"}


def test_a_dataset_type_is_enough(tmp_path):
    """A set that has no more than __len__ and __getitem__ trains, and leaves a whole folder."""

    class Least(Dataset):
        def __init__(self):
            self.rows = Table()

        def __len__(self):
            return 40

        def __getitem__(self, row):
            return self.rows[row]

    model = chain()
    fit(model, "leebert", config(output=tmp_path), Least())
    assert {path.name for path in Path(tmp_path).iterdir()} == {
        "checkpoints",
        "history.json",
        "model",
        "run.json",
    }


# Trackers


def test_a_tracker_writes_its_file(tmp_path):
    settings = config(output=tmp_path, trackers=("tensorboard",))
    fit(chain(), "joint", settings, Table(), Table(12, seed=1))
    assert list(tmp_path.rglob("*tfevents*"))


class Told:
    """What accelerate starts in place of W&B."""

    name, requires_logging_directory, main_process_only = "wandb", False, True

    def __init__(self, run_name, **options):
        self.project, self.options, self.rows = run_name, options, []
        self.all.append(self)

    def start(self):
        self.started = True

    def store_init_configuration(self, values):
        self.values = values

    def log(self, values, step=None, **kwargs):
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


def test_a_tracker_is_told_the_run_its_settings_and_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(Told, "all", [], raising=False)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Told)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    settings = config(output=tmp_path, trackers=("wandb",), metric="matthews", log_every=5)
    recipe = phased({"train": "last", "coefficients": mx.coefficients.last_only}, {})
    fit(chain(), recipe, settings, Table(), Table(12, seed=1))
    (told,) = Told.all  # of both phases
    assert (told.project, told.options, told.finished) == (
        "multiexit",
        {"name": str(tmp_path)},
        True,
    )
    assert told.values["recipe"] == "phased"
    assert (told.values["metric"], told.values["lr"], told.values["clip"]) == (
        "matthews",
        0.1,
        "None",
    )
    assert all(isinstance(value, str | int | float) for value in told.values.values())
    steps = [step for step, _ in told.rows]
    assert steps == sorted(steps)  # W&B drops what comes for a step before
    assert steps[-1] == 20


def test_trackers_must_exist_and_need_a_folder(tmp_path):
    with pytest.raises(ValueError, match="output"):
        fit(chain(), "joint", config(trackers=("tensorboard",)), Table())
    with pytest.raises(ValueError, match="bogus"):
        fit(chain(), "joint", config(trackers=("bogus",), output=tmp_path), Table())
    assert not list(tmp_path.iterdir())
