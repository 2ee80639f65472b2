"""Θ's optimiser and its rate."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from multiexit.training import schedules
from multiexit.training.config import TrainConfig
from multiexit.training.sharding import is_sharded


def build_optimizer(
    parameters: Sequence[nn.Parameter],
    config: TrainConfig,
    factors: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """Make AdamW, whose decay spares biases and norms, or SGD with momentum, whose decay doesn't.

    Args:
        parameters: Θ.
        config: with the optimiser's name, rate, decay and momentum.
        factors: of the rate, a parameter's own; each group has one, as `"factor"`. None is 1.
    """
    by_factor: dict[float, list[nn.Parameter]] = {}
    for p in parameters:
        by_factor.setdefault(1.0 if factors is None else factors[p], []).append(p)
    if config.optimizer == "sgd":
        sgd = torch.optim.SGD(
            [{"params": ps, "factor": factor} for factor, ps in by_factor.items()],
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=False,
            fused=not any(map(is_sharded, parameters)),  # has no rule for shards
        )
        if config.momentum:
            sgd.register_step_pre_hook(_begin_momenta)
        return sgd
    groups = [
        {"params": [p for p in ps if (p.ndim > 1) == decays], "factor": factor, **decay}
        for factor, ps in by_factor.items()
        for decays, decay in (
            (True, {"weight_decay": config.weight_decay}),
            (False, {"weight_decay": 0.0}),
        )
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], config.lr, fused=True)


def _begin_momenta(optimizer: torch.optim.Optimizer, *args: object) -> None:
    """Give each parameter that has its first gradient a momentum of zeros.

    Fused SGD makes them at its first step alone, and fails at a parameter first reached later, as
    experts and conditional layers are.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def strided_as(value: Tensor, p: Tensor) -> Tensor:
    """The same values, in the same shape, strided as a parameter.

    Fused optimisers go through parameters, gradients and their own state in the order of memory,
    without a look at strides.
    """
    return value if value.stride() == p.stride() else torch.empty_like(p).copy_(value)


def restride(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the parameters' strides: files keep none."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[name] = strided_as(value, p)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate at step 0..steps − 1.

    After a linear warm-up over `warmup · steps`: constant; down to 0 on a line or half a cosine;
    or ×0.1 at each milestone, a fraction of the whole. Other names are schedules of transformers,
    and what that computes, from as many steps of warm-up.

    Args:
        config: with the rate, the schedule and the warm-up.
        step: of Θ in the phase, counted from 0.
        steps: how many the phase has.

    >>> config = TrainConfig(lr=1.0, schedule="linear", warmup=0.2)
    >>> [learning_rate(config, step, steps=10) for step in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warm = int(config.warmup * steps)
    if config.schedule not in schedules.OWN:
        options = tuple(sorted(config.schedule_options.items()))
        factor = schedules.library_factor(config.schedule, options, config.lr, warm, steps)
        return config.lr * factor(step)
    if step < warm:
        return config.lr * (step + 1) / warm
    remaining = (steps - step) / max(steps - warm, 1)
    match config.schedule:
        case "linear":
            return config.lr * remaining
        case "cosine":
            return config.lr * (1 + math.cos(math.pi * (1 - remaining))) / 2
        case "step":
            return config.lr * 0.1 ** sum(step >= m * steps for m in config.milestones)
        case _:
            return config.lr
