"""Temperatures that make exits' confidences honest.

Letters: M exits, B batch rows, C classes.
"""

import math
import warnings
from typing import Any

from torch import Tensor

from multiexit import problems
from multiexit.evaluation.outputs import Outputs, need_outputs
from multiexit.losses.criterion import Criterion
from multiexit.losses.matrix import row_losses
from multiexit.model.model import MultiExitModel
from multiexit.policies.base import need_classes
from multiexit.problems import refuse_vectors
from multiexit_runner.user_line import user_level

RANGE = math.log(100.0)


def fit_temperatures(model: MultiExitModel, outputs: Outputs) -> None:
    """Divide each exit's logits by the temperature under which its labels are likeliest.

        T_m = argmin_T Σ_b −log softmax(z_mb / T)(y_b),    0.01 ≤ T ≤ 100

    times the temperature that z_mb were divided by when they were collected, so that the same
    outputs give the same temperatures again; where outputs don't know it, times the model's own.

    Of several labels it is the sum over all of them, with softmax(0, z); of tokens over those that
    are asked for and have a label. Answers stay the same; confidences, and so what a threshold
    means, change: a calibration table of the model, and its policy's certificate, are dropped. A
    temperature at an end of the range is warned of. The temperatures are kept in
    `model.temperature_M`, and saved with it.

    Args:
        model: whose outputs these are; changed in place.
        outputs: on held-out data that is not the evaluation's.

    Raises:
        ValueError: no rows; regression, or vectors; outputs of another number of exits or classes.

    Example:
        p is 0.88 on rows of which 3/4 are right; logits divided by 2 / log 3 = 1.82 say 3/4:

        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8))), 2)
        >>> logits_MBC = torch.tensor([2.0, 0.0]).expand(1, 4, 2)
        >>> outputs = mx.Outputs(logits_MBC, torch.tensor([0, 0, 0, 1]), model.cost())
        >>> mx.fit_temperatures(model, outputs)
        >>> model.temperature_M.round(decimals=2)
        tensor([1.8200])

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; per exit in
    Schwartz et al., "The Right Tool for the Job", ACL 2020, section 3.
    """
    need_outputs(outputs)
    refuse_vectors(model.problem, "a temperature", "none")
    need_classes(problems.classes_of_decision(model.problem, model.num_classes), "a temperature")
    exits, classes = len(outputs.logits_MBC), outputs.logits_MBC.shape[-1]
    if (exits, classes) != (model.num_exits, model.num_classes):
        raise ValueError(
            f"the outputs are of {exits} exits and {classes} classes, and the model has "
            f"{model.num_exits} and {model.num_classes}"
        )
    from scipy.optimize import minimize_scalar  # which takes a second to import

    criterion = Criterion(model.problem)
    before_M = model.temperature_M if outputs.temperature_M is None else outputs.temperature_M
    for exit, logits_BC in enumerate(outputs.logits_MBC.double()):
        optimum: Any = minimize_scalar(
            _loss,
            bounds=(-RANGE, RANGE),
            args=(logits_BC, outputs.scored_labels, criterion),
            method="bounded",
        )
        if abs(optimum.x) > RANGE - 1e-3:
            why = (
                "answers hardly tell its classes apart"
                if optimum.x > 0
                else "hardly an answer of it is wrong on these rows"
            )
            warnings.warn(
                f"exit {exit}: its temperature is at the end of what is tried, "
                f"{math.exp(optimum.x):.3g}, since {why}; its confidences mean little",
                stacklevel=user_level(),
            )
        model.temperature_M[exit] = before_M[exit] * math.exp(optimum.x)
    model.calibration = None
    if model.policy is not None:
        model.policy = model.policy.with_certificate(None)


def _loss(
    log_temperature: float, logits_BC: Tensor, labels_B: Tensor, criterion: Criterion
) -> float:
    """Mean negative log-likelihood of logits divided by the temperature."""
    logits_1BC = logits_BC[None] / math.exp(log_temperature)
    return float(row_losses(logits_1BC, labels_B, criterion).mean())
