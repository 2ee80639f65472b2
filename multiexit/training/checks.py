"""Refusals before a run begins."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from multiexit import policies, problems
from multiexit.data import hub
from multiexit.data.batches import has_labels, is_rows, labels_of
from multiexit.evaluation import metrics
from multiexit.evaluation.budget import Budget
from multiexit.evaluation.experts import Experts
from multiexit.losses.labels import check_labels
from multiexit.model.model import MultiExitModel
from multiexit.policies.base import need_classes
from multiexit.problems import are_vectors, refuse_vectors
from multiexit.recipes import Recipe
from multiexit.runtime import evaluating
from multiexit.training import layer_decay, precision
from multiexit.training.config import TrainConfig
from multiexit.training.phase import learns_from_labels
from multiexit.training.phase_checks import check_phase
from multiexit.training.training_pass import criterion
from multiexit_runner.user_line import user_level


def check(model: MultiExitModel, recipe: Recipe) -> None:
    """Refuse a recipe that can't train this model, before any work.

    Raises:
        ValueError: a topology that doesn't fit the exits, a phase with nothing to train or no
            term to train on, a policy that can't serve this many classes.
    """
    if not any(p.requires_grad for p in model.heads.parameters()):
        warnings.warn(
            "all heads are frozen, so none of them learns; adapters go into the backbone alone, "
            "peft.inject_adapter_in_model(lora, model.backbone)",
            stacklevel=user_level(),
        )
    _check_network(model, recipe)
    _check_tokens(model, recipe)
    for index in range(len(recipe.phases)):
        check_phase(model, recipe, index)
    chained = recipe.head.partition("+")[2] if isinstance(recipe.head, str) else ""
    if chained and isinstance(model.head, str) and not model.head.endswith(f"+{chained}"):
        raise ValueError(
            f"{recipe.name!r} trains heads that are chained by '+{chained}', and this model's are "
            f"{model.head!r}: make it with head='{model.head}+{chained}'"
        )
    if recipe.finish is not None:  # calibrates confidences
        refuse_vectors(model.problem, f"the recipe {recipe.name!r}", "'embedding'")
        K = problems.classes_of_decision(model.problem, model.num_classes)
        need_classes(K, f"the recipe {recipe.name!r}", "'berxit', or 'pabee' with a tolerance")
    if isinstance(recipe.finish, Budget | Experts):
        recipe.finish.check(model)
    _check_policy(model, recipe)


def _check_network(model: MultiExitModel, recipe: Recipe) -> None:
    """Whether a network that is to stay as it is has learnt, and one that has is to stay so."""
    if recipe.pretrained and model.last_exit_is_new:
        raise ValueError(
            f"{recipe.name!r} with pretrained=True keeps the network as it is, and this model's "
            f"last exit is new, with random weights: wrap a network that has a classifier of "
            f"{model.num_classes} classes (or pass it, classifier=…) and put the last exit behind "
            "its last stage; load a trained model; or leave pretrained out, to train it first"
        )
    if recipe.pretrained is False and not model.last_exit_is_new:
        warnings.warn(
            f"this network's last exit is trained already, and {recipe.name!r} begins by training "
            "the whole network again: pretrained=True (on the command line --option "
            "pretrained=true) keeps it as it is and trains the early exits",
            stacklevel=user_level(),
        )


def check_all(model: MultiExitModel, recipe: Recipe, config: TrainConfig) -> None:
    """Refuse parts that don't go together; weights in half precision become float32.

    Args:
        model, recipe, config: as `check_parts` lets them pass.

    Raises:
        ValueError: with what is wrong, and what would be right.
    """
    model.check_complete("trained")
    precision.trainable_weights(model)
    check(model, recipe)
    policies.check(recipe.policy, model.num_exits, model.num_classes, model.problem)
    metrics.check(config.metric, model.num_classes, model.problem, model.labels)
    criterion(model, config).check(model.num_classes)
    check_options(model, recipe, config)


def _check_tokens(model: MultiExitModel, recipe: Recipe) -> None:
    """Refuse, where tokens are classified, what is made for one answer a row."""
    if model.problem != "token-classification":
        return
    reasons = {
        f"heads chained by {recipe.head!r}": isinstance(recipe.head, str) and "+" in recipe.head,
        "weights of rows": any(phase.learner.weighs_rows for phase in recipe.phases),
        "a teacher's states of a row's first token": recipe.name == "pkd",
    }
    if (why := next((reason for reason, holds in reasons.items() if holds), None)) is not None:
        raise ValueError(
            f"{recipe.name!r} goes by {why}, and token-classification has an answer for each "
            "token: use a recipe such as 'joint', 'pabee', 'deebert' or 'leebert'"
        )


def check_parts(model: Any, recipe: Any, config: Any) -> None:
    """Refuse what is no model, recipe or configuration, as names and swapped arguments are.

    Args:
        model, recipe, config: what a trainer is given.

    Raises:
        ValueError: with the argument, what it is, and what would be right.
    """
    for name, value, kind, such_as in (
        ("model", model, MultiExitModel, "MultiExitModel(multiexit.wrap(…), num_classes=2)"),
        ("recipe", recipe, Recipe, "recipe('joint')"),
        ("config", config, TrainConfig, "TrainConfig(epochs=3)"),
    ):
        if not isinstance(value, kind):
            got = repr(value) if isinstance(value, str) else type(value).__name__
            raise ValueError(f"{name} must be such as multiexit.{such_as}; got {got}")


def check_sets(
    model: MultiExitModel,
    recipe: Recipe,
    config: TrainConfig,
    train: Any,
    dev: Any,
    unlabelled: Any,
) -> None:
    """Refuse what would fail or be left out long after the start.

    Args:
        model, recipe, config: of the trainer.
        train, dev, unlabelled: the sets that `Trainer.fit` is given.

    Raises:
        ValueError: an empty dev set or one that can be read once, none where one is needed, class
            names in another order, labels outside the classes, or unlabelled rows that no phase
            would read.
    """
    rows = dev.dataset if isinstance(dev, DataLoader) else dev
    if is_rows(rows) and hasattr(rows, "__len__") and len(rows) == 0:  # type: ignore[arg-type]
        raise ValueError("the dev set is empty: pass None to train without one")
    if _read_once(rows):
        raise ValueError(
            f"dev is read each epoch, and a {type(rows).__name__} can be read once: give a data "
            "set, a DataLoader or a list of batches"
        )
    hub.check_names(train, model.labels, "the training set")
    hub.check_names(dev, model.labels, "the dev set")
    labels = labels_of(dev)
    may_lack = are_vectors(model.problem) and not has_labels((None, labels))
    if labels is not None and not may_lack:
        check_labels(labels, model.num_classes, "the dev set", model.problem, soft=False)
        metric = metrics.fitting(config.metric, model.num_classes, model.problem, model.labels)
        _warn_blind(metric, labels)
    if dev is None and recipe.finish is not None:
        raise ValueError(
            f"{recipe.name!r} calibrates the trained model on a dev set: pass dev= "
            "(on the command line --validation 0.1)"
        )
    if dev is None and config.evaluate_every is not None:
        raise ValueError(
            f"evaluate_every={config.evaluate_every} needs a dev set to score exits on: pass dev= "
            "(on the command line --validation 0.1)"
        )
    if unlabelled is not None and all(_learn_from_labels(model, recipe)):
        raise ValueError(
            f"every phase of {recipe.name!r} learns from labels: unlabelled= is for "
            "phases that learn from teachers alone, such as FastBERT's second"
        )


def _learn_from_labels(model: MultiExitModel, recipe: Recipe) -> list[bool]:
    """Whether each phase learns from labels."""
    shares_M = model.cost().shares_M
    return [learns_from_labels(phase, shares_M) for phase in recipe.phases]


def _read_once(rows: Any) -> bool:
    """Whether what gives rows or batches is an iterator, or hands out the same one each time."""
    counted = hasattr(rows, "__len__") and not isinstance(rows, IterableDataset)
    return isinstance(rows, Iterable) and not counted and iter(rows) is iter(rows)


def _warn_blind(metric: str | metrics.Metric, labels_N: Tensor) -> None:
    """Warn of a dev set with the same labels, where the metric scores any model alike on them."""
    if metric in metrics.OF_DIFFERENCES and len(labels_N) and (labels_N == labels_N[:1]).all():
        warnings.warn(
            f"the dev set has no label but {labels_N[0].tolist()} ({len(labels_N)} rows), of which "
            f"{metric!r} says nothing: give rows with different labels (on the command line a "
            "larger --validation), or another metric",
            stacklevel=user_level(),
        )


def check_options(model: MultiExitModel, recipe: Recipe, config: TrainConfig) -> None:
    """Refuse ways to run a training pass that this model or recipe doesn't go with.

    Args:
        model, recipe, config: of the trainer.

    Raises:
        ValueError: names the option, the recipe or backbone, and why.
    """
    if config.channels_last and all(p.ndim != 4 for p in model.parameters()):
        raise ValueError(
            "channels_last is a layout of images for convolutions, and this model has none: "
            "leave it out"
        )
    _check_sampling(model, config)
    if config.label_smoothing and not any(_learn_from_labels(model, recipe)):
        warnings.warn(
            f"label_smoothing={config.label_smoothing} has no effect with {recipe.name!r}, which "
            "learns from teachers alone",
            stacklevel=user_level(),
        )
    if config.layer_decay is not None:
        layer_decay.factors(model, config.layer_decay)
    if not config.compile:
        return
    if any(phase.learner.looks_back for phase in recipe.phases):
        raise ValueError(
            f"compile doesn't go with {recipe.name!r}: a hypergradient goes through Θ's step again "
            "with the same dropout, and compiled dropout draws otherwise: leave compile out"
        )
    if not model.backbone.same_path:
        raise ValueError(
            f"compile doesn't go with {type(model.backbone).__name__}, which draws at each step "
            "which layers run: leave compile out"
        )


def _check_sampling(model: MultiExitModel, config: TrainConfig) -> None:
    """Refuse drawing by classes, and mixing, of rows that have none or are no images."""
    problem = problems.resolve(model.problem, model.num_classes)
    if config.sampling is not None and problem != "classification":
        raise ValueError(
            f"sampling={config.sampling!r} needs one class a row, and this model's problem is "
            f"{problem}: leave it out"
        )
    for name in ("mixup", "cutmix"):
        if getattr(config, name) is None:
            continue
        if problem not in ("classification", "multi-label"):
            raise ValueError(f"{name} mixes classes, and {problem} has none: leave it out")
        example = model.backbone.example_inputs()
        if [value.ndim for value in example.values() if value.is_floating_point()] != [4]:
            raise ValueError(
                f"{name} mixes images [B, C, H, W], and this network reads {', '.join(example)}: "
                "leave it out"
            )


def _check_policy(model: MultiExitModel, recipe: Recipe) -> None:
    """Refuse a policy that this model can't be run by, on one row of the backbone's example."""
    with torch.no_grad(), evaluating(model):
        outputs = model.run((), model.backbone.example_inputs())
    try:
        policies.answers(recipe.policy, outputs.logits_MBC, outputs.certainty_MB, model.problem)
    except ValueError as error:
        raise ValueError(
            f"{recipe.name!r} stops by {recipe.policy}, which can't serve this model of "
            f"{model.num_classes} output(s): {error}. Or give the recipe another policy: "
            "dataclasses.replace(recipe, policy=…)"
        ) from error
