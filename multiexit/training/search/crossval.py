"""Settings of a training run, judged by cross-validation inside the training set.

A setting's names are fields of `TrainConfig` and, as `option.NAME`, a recipe's own options.
"""

import inspect
import statistics
from dataclasses import replace
from typing import Any

from multiexit.arguments import unknown
from multiexit.data import tasks
from multiexit.data.splits import fold
from multiexit.data.tasks import TaskData
from multiexit.evaluation.judging import exit_scores
from multiexit.evaluation.outputs import collect
from multiexit.recipes import RECIPES, Recipe
from multiexit.training import experiment
from multiexit.training.config import TrainConfig
from multiexit.training.search.queue import Judge
from multiexit.training.search.space import Choices, Setting, Space

FIELDS = (
    "accumulation",
    "batch_size",
    "clip",
    "early_stopping",
    "epochs",
    "lr",
    "omega_lr",
    "warmup",
    "weight_decay",
)
OPTION = "option."


def options_of(recipe: str) -> list[str]:
    """The options of a recipe as a space names them."""
    return [OPTION + name for name in inspect.signature(RECIPES[recipe]).parameters]


def paper_grid(recipe: str, task: str) -> Space:
    """LeeBERT's grid, as far as a recipe has its parts: λ2 where Ω is learned, C in cycles.

    Raises:
        ValueError: a task of images, for which the paper has no grid.
    """
    if tasks.modality(task) == "image":
        raise ValueError(f"the paper's grid is for text, and {task} is images: give --space")
    phases = experiment.recipe_for(recipe, task, {}).phases
    lacking = set() if any(phase.learner.learns for phase in phases) else {"omega_lr"}
    lacking |= {"option.cycle"} - set(options_of(recipe))
    return {name: values for name, values in SEARCHED.items() if name not in lacking}


def check(space: Space, recipe: str, task: str, config: TrainConfig) -> None:
    """Refuse a name or value that training won't take.

    Args:
        space: what may be chosen, by name.
        recipe, task: their names.
        config: of the run.

    Raises:
        ValueError: it names the value, or lists the names there are.
    """
    names = [*FIELDS, *options_of(recipe)]
    for name, dimension in space.items():
        if name not in names:
            raise unknown(f"setting of {recipe!r} called", name, names)
        ends = (
            dimension.values if isinstance(dimension, Choices) else (dimension.low, dimension.high)
        )
        for value in ends:
            if value is None and name in FIELDS:
                raise ValueError(
                    f"{name} can't be searched at null: leave it out, or give a number"
                )
            try:
                apply({name: value}, recipe, task, {}, config)
            except TypeError as error:
                raise ValueError(f"{name} can't be {value!r}: {error}") from error
    check_effect(recipe, task, config, **dict.fromkeys(space, True))


def check_effect(recipe: str, task: str, config: TrainConfig, **settings: Any) -> None:
    """Refuse settings that have no effect: with a recipe that has no such part, or beside others.

    Args:
        recipe, task: their names.
        config: of the run.
        settings: those given, by name; None is what wasn't.

    Raises:
        ValueError: with the setting, and why.
    """
    if settings.get("omega_lr") is not None:
        phases = experiment.recipe_for(recipe, task, {}).phases
        if not any(phase.learner.learns for phase in phases):
            raise ValueError(
                f"omega_lr: {recipe!r} learns no weights of its loss terms: leave it out"
            )
    for name in ("mixup", "cutmix"):
        asked = settings.get(name) is not None or getattr(config, name) is not None
        if asked and tasks.modality(task) == "text":
            raise ValueError(f"{name} mixes images, and these rows are texts: leave it out")
    if settings.get("epochs") is not None and config.max_steps is not None:
        raise ValueError("epochs and max_steps both say how long: give one")


def split(setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's options and the configuration's fields of a setting."""
    options = {k.removeprefix(OPTION): v for k, v in setting.items() if k.startswith(OPTION)}
    return options, {k: v for k, v in setting.items() if not k.startswith(OPTION)}


def apply(
    setting: Setting, recipe: str, task: str, options: dict[str, Any], config: TrainConfig
) -> tuple[Recipe, TrainConfig]:
    """Make the recipe and the configuration of a setting.

    Args:
        setting: values by name.
        recipe, task: their names.
        options: the recipe's, which the setting's go before.
        config: the fields that the setting leaves.

    Raises:
        ValueError: a value that the recipe or the configuration refuses.
    """
    searched, fields = split(setting)
    if fields.get("clip") == 0:  # as on the command line
        fields["clip"] = None
    return experiment.recipe_for(recipe, task, {**options, **searched}), replace(config, **fields)


def judge(
    task: TaskData,
    recipe: str,
    options: dict[str, Any],
    config: TrainConfig,
    folds: int,
    backbone: str | None = None,
    **train_options: Any,
) -> Judge:
    """A function that trains as `train` would on the rest of a fold, and scores the fold.

    The score is the mean over all exits. The task's reported sets are never read. The seed of the
    configuration draws the folds, and is that of every training.

    Args:
        task: its training set is used.
        recipe, options: the recipe's name and fixed options.
        config: with `output=None`.
        folds: how many, see `multiexit.data.splits.fold`.
        backbone: a name, see `multiexit.training.experiment.backbone_for`.
        train_options: exits, head, pool and validation, see `multiexit.training.experiment.train`.
    """

    def scored(setting: Setting, index: int) -> float:
        tried, settings = apply(setting, recipe, task.known_as, options, config)
        tried = experiment.tolerant(tried, task)
        rest, held_out = fold(task.train, index, folds, config.seed)
        fold_task = replace(task, train=rest, sets={})
        network = experiment.backbone_for(fold_task, backbone, seed=config.seed)
        model, _ = experiment.train(fold_task, network, tried, settings, **train_options)
        scores = exit_scores(collect(model, held_out, task.metric, keys=False))
        return statistics.fmean(row["score"] for row in scores)

    return scored


SEARCHED = {
    "batch_size": Choices((16, 32, 128)),
    "lr": Choices((1e-5, 2e-5, 3e-5, 5e-5)),
    "omega_lr": Choices((1e-5, 1e-4, 1e-3, 5e-3)),
    "option.cycle": Choices((2, 4, 8)),
}
"""LeeBERT, section 4.4: the grid that Table 3 was found on, by cross-validation inside train."""
