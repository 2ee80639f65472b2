"""A model with some of its exits: those that are worth being asked.

Letters: M exits, B batch rows.
"""

import warnings
from collections.abc import Sequence

import torch

from multiexit.arguments import rising
from multiexit.model.heads import ChainedHead
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy
from multiexit_runner.user_line import user_level


def keep_exits(model: MultiExitModel, exits: Sequence[int]) -> MultiExitModel:
    """Make the same model without its other exits. Backbone and weights are shared, not copied.

    Of a subclass it makes a plain `MultiExitModel`.

    Its policy goes with it where that means the same: a `FixedExit` at an exit that stays counts
    the ones that are left. One with a number per exit stays behind with a warning: calibrate it
    again. A certificate is of all exits that were there, and goes with all of them alone.

    Args:
        model: trained.
        exits: indices of exits, rising, counted from 0. Stages behind the last one are neither run
            nor trained, but stay in the model and in its folder: the backbone's description is of
            the whole network, by which the model is loaded, and may get later exits again.
            `multiexit.truncate` leaves them out.

    Raises:
        ValueError: none, one that isn't there, or not rising; heads that read what earlier heads
            left.

    Example:
        >>> import multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10, exits=[2, 5, 8])
        >>> mx.keep_exits(model, [0, 2]).exits
        (2, 8)
    """
    indices = rising("exits to keep", exits, 0, model.num_exits)
    readers = (h for h in model.heads if isinstance(h, ChainedHead) and h.reads_earlier)
    if (chained := next(readers, None)) is not None:
        raise ValueError(
            f"a {type(chained).__name__} reads what all earlier heads left; exits can't be taken "
            "from under it: train with the exits you want"
        )
    stages = [model.exits[exit] for exit in indices]
    with torch.random.fork_rng(devices=[]):  # for heads that are replaced at once
        subset = MultiExitModel(
            model.backbone,
            model.num_classes,
            stages,
            model.head,
            model.pool,
            model.labels,
            model.problem,
        )
    subset.heads = torch.nn.ModuleList(model.heads[exit] for exit in indices)
    subset.temperature_M = torch.nn.Buffer(model.temperature_M[indices])
    subset.preprocessing = dict(model.preprocessing)
    subset.policy = _subset_policy(model.policy, indices)
    if subset.policy is not None and len(indices) < model.num_exits:
        subset.policy = subset.policy.with_certificate(None)
    if model.latency is not None:
        subset.latency = model.latency.with_exits(indices)
    subset.training, subset.heads.training = model.training, model.heads.training
    return subset


def _subset_policy(policy: ExitPolicy | None, indices: list[int]) -> ExitPolicy | None:
    """A model's policy with fewer exits; none, with a warning, where it would mean another."""
    same = None if policy is None else policy.with_exits(indices)
    if policy is None or same is not None:
        return same
    warnings.warn(
        f"the policy {policy} is of exits that aren't all kept: the model with exits {indices} has "
        "none; set its policy, or calibrate it again",
        stacklevel=user_level(),
    )
    return None
