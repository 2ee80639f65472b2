"""Refusals of a recipe's phase before a run begins.

Letters: M exits, T times and turns.
"""

import torch
from torch import Tensor

from multiexit.losses import topology
from multiexit.losses.gradients import Surgery
from multiexit.losses.matrix import check_divergence
from multiexit.losses.temperature import Constant
from multiexit.losses.weights.checks import check_learner
from multiexit.losses.weights.hypergradient import Directional
from multiexit.model.model import MultiExitModel
from multiexit.problems import are_vectors
from multiexit.randomness import layer_states
from multiexit.recipes import Phase, Recipe
from multiexit.runtime import evaluating
from multiexit.training.phase import factors_throughout, trained_parameters
from multiexit.training.training_pass import Terms, TrainingPass


def check_phase(model: MultiExitModel, recipe: Recipe, index: int) -> None:
    """Refuse a phase that can't train this model.

    Args:
        model: what is trained.
        recipe: the method.
        index: the number of its phase, counted from 0.

    Raises:
        ValueError: it names the phase, what is wrong, and what would be right.
    """
    phase, M = recipe.phases[index], model.num_exits
    where = f"phase {index} of {recipe.name!r}"
    check_divergence(phase.divergence, model.problem)
    if are_vectors(model.problem) and phase.temperature != Constant():
        raise ValueError(
            f"{where} has the temperature {phase.temperature}, and the vectors of an embedding "
            "have none: leave it at 1"
        )
    A_TMM = factors_throughout(phase, model.cost().shares_M)
    if phase.extra is None and not A_TMM.any():
        raise ValueError(
            f"{where} has no loss term for {M} exit(s), so nothing to learn: give the model "
            "early exits, or use the recipe 'joint'"
        )
    if not trained_parameters(model, phase) & {p for p in model.parameters() if p.requires_grad}:
        raise ValueError(
            f"{where} trains {_trained_part(phase)}, and this model has none of that to train: "
            f"it has {M} exit(s), head {model.head!r}"
        )
    check_learner(phase.learner, topology.resolve(phase.topology, M))
    if phase.extra is not None:
        _run_once(model, phase)
    if phase.surgery is not None:
        _check_split(phase.surgery, A_TMM)
    if phase.learner.looks_back or phase.surgery is not None:
        _check_checkpoints(model, recipe)
    if phase.learner.looks_back:
        _look_back_once(model, phase, recipe)


def _run_once(model: MultiExitModel, phase: Phase) -> None:
    """One pass over one row of the backbone's own example: what the extra loss lacks, it says."""
    batch = {**model.backbone.example_inputs(), "labels": blank_labels(model)}
    with torch.no_grad(), evaluating(model):
        extra = TrainingPass(model, phase)(batch, 1.0).extra
    if isinstance(extra, int | float) and not extra:  # none here; in training there may be
        return
    if not isinstance(extra, Tensor) or extra.ndim:
        shown = list(extra.shape) if isinstance(extra, Tensor) else repr(extra)
        raise ValueError(
            f"extra must return a scalar tensor, which is added to the loss; got {shown}: return "
            "such as loss_B.mean()"
        )


def _check_split(surgery: Surgery, A_TMM: Tensor) -> None:
    """Refuse parts of the loss that don't add up to it."""
    for A_MM in A_TMM:
        parts = list(surgery.split(A_MM))
        fits = bool(parts) and all(part.shape == A_MM.shape for part in parts)
        if not fits or not torch.allclose(torch.stack(parts).sum(0), A_MM):
            raise ValueError(
                f"{type(surgery).__name__}.split() gives {[part.tolist() for part in parts]}, and "
                f"the factors are {A_MM.tolist()}: its parts must have their shape, and must sum "
                "to these"
            )


def _check_checkpoints(model: MultiExitModel, recipe: Recipe) -> None:
    """Refuse transformers' older way to compute activations again, which knows one backward."""
    for part in model.backbone.modules():
        way = getattr(part, "_gradient_checkpointing_func", None)
        options = getattr(way, "keywords", {})
        if getattr(part, "gradient_checkpointing", False) and options.get("use_reentrant"):
            raise ValueError(
                f"{recipe.name!r} takes gradients of parts of the loss, and this network computes "
                "activations again with use_reentrant=True, which gives those of all of it alone: "
                "call gradient_checkpointing_enable({'use_reentrant': False}), or leave it out and "
                "train with checkpoint_gradients=True"
            )


def _look_back_once(model: MultiExitModel, phase: Phase, recipe: Recipe) -> None:
    """A derivative of one row's losses, which each step will need of its own."""
    batch = {**model.backbone.example_inputs(), "labels": blank_labels(model)}
    parameters = list(trained_parameters(model, phase))
    values = [p.detach() for p in parameters]
    along = Directional(Terms(TrainingPass(model, phase)), parameters, compare=False)
    try:
        with evaluating(model):
            along(values, values, (batch, 1.0), layer_states(values[0].device))
    except ValueError as error:
        raise ValueError(f"{recipe.name!r} differentiates a step of training: {error}") from error


def blank_labels(model: MultiExitModel) -> Tensor:
    """Labels of one row that the model's problem may have: all 0, or all 1 of a vector."""
    if are_vectors(model.problem):
        return torch.ones(1, model.num_classes)
    if model.problem == "classification":
        return torch.zeros(1, dtype=torch.int64)
    if model.problem == "token-classification":
        example = model.backbone.example_inputs()
        return torch.zeros(*next(iter(example.values())).shape[:2], dtype=torch.int64)
    several = model.num_classes > 1 or model.problem == "multi-label"
    return torch.zeros(1, model.num_classes) if several else torch.zeros(1)


def _trained_part(phase: Phase) -> str:
    return repr(phase.train) if isinstance(phase.train, str) else phase.train.__name__
