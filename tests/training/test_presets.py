"""Settings to start from: each can do what it says."""

import pytest

from multiexit import presets, recipes
from multiexit.data.glue_tasks import TASKS
from multiexit.training.experiment import recipe_for


@pytest.mark.parametrize("task", TASKS)
def test_the_letter_has_the_rates_of_table_3(task):
    config, letter = presets.glue(task), presets.glue(task, letter=True)
    row = presets.TABLE_3.get(task, presets.TABLE_3["rte"])
    assert (letter.lr, letter.omega_lr, letter.batch_size) == row[:3]
    assert (config.lr, config.batch_size) == (letter.lr, letter.batch_size)


@pytest.mark.parametrize("name", [n for n in recipes.RECIPES if "leebert" in n or "clo" in n])
def test_images_are_distilled_at_a_higher_temperature_by_all_of_leebert(name):
    def tau(task, **options):
        return {phase.temperature.value for phase in recipe_for(name, task, options).phases}

    assert tau("cifar10") == tau("image") == {4.0}
    assert tau("mrpc") == tau("text") == {1.0}
    assert tau("cifar10", temperature=2.0) == {2.0}


def test_a_method_with_a_temperature_of_its_own_keeps_it():
    own = recipes.recipe("dbt").phases[0].temperature.value
    assert recipe_for("dbt", "cifar10", {}).phases[0].temperature.value == own


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
