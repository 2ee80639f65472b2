"""Schedules of transformers, by their names there."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

OWN = ("linear", "cosine", "step", "constant")
"""Schedules of this package, which `multiexit.training.optimizer` computes."""

LIBRARY = (
    "cosine_with_restarts",
    "polynomial",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
"""Schedules of transformers, which computes them."""

GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
"""What a schedule of transformers takes and is no option of it."""


def check(name: str, options: Any, lr: float) -> None:
    """Refuse options that a schedule doesn't have or can't use; it is tried on made-up steps.

    Args:
        name: of the schedule, one of `OWN` or `LIBRARY`.
        options: its own, by name.
        lr: λ1.

    Raises:
        ValueError: with the option, and what would be right.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"schedule_options are values by name, {{'power': 2}}; got {options!r}")
    if name in OWN:
        if options:
            raise ValueError(f"schedule={name!r} has no options, got {dict(options)}")
        return
    known = _options(name)
    if wrong := sorted(set(map(str, options)) - known):
        raise ValueError(f"schedule={name!r} has the options {sorted(known)}, got {wrong}")
    try:
        factor_at = library_factor(name, tuple(sorted(options.items())), lr, 1000, 10_000)
        factors = [float(factor_at(step)) for step in range(0, 10_000, 97)]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"schedule={name!r} can't be used with schedule_options={dict(options)}: {error}"
        ) from error
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors):
        raise ValueError(
            f"schedule={name!r} with schedule_options={dict(options)} gives rates below 0 or none"
        )


def _options(name: str) -> set[str]:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    made_by: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    return set(inspect.signature(made_by).parameters) - GIVEN


@lru_cache(maxsize=64)
def library_factor(
    name: str, options: tuple[tuple[str, Any], ...], lr: float, warm: int, steps: int
) -> Callable[[int], float]:
    """The factor of λ1 at each step, as transformers has it.

    Args:
        name: one of `LIBRARY`.
        options: its own, as pairs.
        lr: λ1, by which it divides rates that are given as such.
        warm: steps of warm-up.
        steps: of the phase.
    """
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    scheduler: Any = get_scheduler(name, optimizer, warm, steps, dict(options))
    return scheduler.lr_lambdas[0]
