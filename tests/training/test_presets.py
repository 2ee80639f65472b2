"""Settings to start from: each can do what it says."""

import math

import pytest

from multiexit import presets
from multiexit.data.glue_tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_omega_can_move_by_two_in_a_run_of_glue(task):
    config = presets.glue(task)
    batches = math.ceil(math.ceil(presets.TRAIN_ROWS[task] / 2) / config.batch_size)
    assert config.omega_lr * config.epochs * batches == pytest.approx(2, rel=0.02)
    letter = presets.glue(task, letter=True)
    row = presets.TABLE_3.get(task, presets.TABLE_3["rte"])
    assert (letter.lr, letter.omega_lr, letter.batch_size) == row[:3]
    assert (config.lr, config.batch_size) == (letter.lr, letter.batch_size)


MADE = {
    "glue": presets.glue("mrpc"),
    "letter": presets.glue("mrpc", letter=True),
    "texts": presets.texts(),
    "images": presets.images(),
}


@pytest.mark.parametrize("name", MADE)
def test_a_run_can_stop_before_its_end(name):
    """The first epoch is better than none, so patience p is over after epoch p + 1 at least."""
    config = MADE[name]
    assert config.early_stopping + 1 < config.epochs


def test_a_trained_network_is_trained_on_at_a_tenth_of_the_rate():
    fresh, trained = presets.cifar(), presets.cifar("fine-tune")
    assert trained.lr == fresh.lr / 10
    assert trained.epochs < fresh.epochs
    assert presets.cifar("fine-tune", epochs=3).epochs == 3
