"""A model with some of its exits: those that are worth being asked.

Letters: M exits, B batch rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import fields

import torch

from multiexit import policies
from multiexit.heads import CertainHead, ChainedHead
from multiexit.latency import Latency
from multiexit.model import MultiExitModel
from multiexit.outputs import Outputs
from multiexit.policies import ExitPolicy, FixedExit


def keep_exits(model: MultiExitModel, exits: Sequence[int]) -> MultiExitModel:
    """The same model without its other exits. Backbone and weights are shared, not copied.

    Its policy goes with it where that means the same: a `FixedExit` at an exit that stays counts
    the ones that are left. One with a number per exit stays behind with a warning: calibrate it
    again.

    Args:
        model: trained.
        exits: indices of exits, rising, counted from 0. Stages behind the last one are not run.

    Raises:
        ValueError: none, one that isn't there, or not rising; heads that read what earlier heads
            left.
    """
    kept = list(exits)
    if not kept or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < model.num_exits:
        raise ValueError(f"exits to keep must rise within 0..{model.num_exits - 1}; got {kept}")
    chained = next((h for h in model.heads if isinstance(h, ChainedHead)), None)
    if chained is not None and not isinstance(chained, CertainHead):
        raise ValueError(
            f"a {type(chained).__name__} reads what all earlier heads left; exits can't be taken "
            "from under it: train with the exits you want"
        )
    stages = [model.exits[exit] for exit in kept]
    made = MultiExitModel(
        model.backbone, model.num_classes, stages, model.head, model.pool, model.labels
    )
    made.heads = torch.nn.ModuleList(model.heads[exit] for exit in kept)
    made.temperature_M.copy_(model.temperature_M[kept])
    made.preprocessing = dict(model.preprocessing)
    made.policy = _policy(model.policy, kept)
    if model.latency is not None:
        made.latency = model.latency.with_exits(kept)
    made.training, made.heads.training = model.training, model.heads.training
    return made


def _policy(policy: ExitPolicy | None, kept: list[int]) -> ExitPolicy | None:
    """What a model's policy is with fewer exits; none, with a warning, where it means another."""
    if isinstance(policy, FixedExit) and policy.exit in kept:
        return FixedExit(kept.index(policy.exit))
    per_exit = any(isinstance(value, tuple) for value in _numbers(policy))
    if not per_exit and not isinstance(policy, FixedExit):
        return policy
    warnings.warn(
        f"the policy {policy} is of exits that aren't all kept: the model with exits {kept} has "
        "none; set its policy, or calibrate it again",
        stacklevel=3,
    )
    return None


def exits_that_pay(
    outputs: Outputs, policy: ExitPolicy, latency: Latency, batch_size: int = 1
) -> list[int]:
    """The exits to keep so that a batch is answered soonest.

    Asking an exit costs time, and saves it for rows that leave there. Exit after exit is given up,
    each time the one without which the mean time is least, until no other is worth it:

        mean time = Latency.expected_ms(shares of rows by exit, batch size)

    Rows that would have left at an exit that is given up leave later, as the policy then decides.

    Args:
        outputs: from `multiexit.collect` on data like that to come.
        policy: that will stop them; one number for all exits.
        latency: from `multiexit.profile`, of the same model.
        batch_size: of the batches to come.

    Raises:
        ValueError: a latency table of other exits, or a policy with a number per exit.

    Example:
        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.rand(8, 3, 32, 32), torch.arange(8) % 2)
        >>> latency = mx.profile(model, batch_sizes=(1,), repeats=1)
        >>> kept = mx.exits_that_pay(mx.collect(model, data), mx.MaxProb(0.9), latency)
        >>> smaller = mx.keep_exits(model, kept)
    """
    M = outputs.num_exits
    if len(latency.stages_ms) != M:
        raise ValueError(f"the latency table has {len(latency.stages_ms)} exits, the outputs {M}")
    if any(isinstance(value, tuple) for value in _numbers(policy)):
        raise ValueError(f"{policy} has a number per exit; give one with a single number")

    def mean_ms(kept: list[int]) -> float:
        certainty = None if outputs.certainty_MB is None else outputs.certainty_MB[kept]
        exit_B, _ = policies.answers(policy, outputs.logits_MBC[kept], certainty)
        shares_M = exit_B.bincount(minlength=len(kept)).double() / len(exit_B)
        return latency.with_exits(kept).expected_ms(shares_M.tolist(), batch_size)

    kept = list(range(M))
    best = mean_ms(kept)
    while len(kept) > 1:
        fewer = [[*kept[:m], *kept[m + 1 :]] for m in range(len(kept) - 1)]
        times = [mean_ms(some) for some in fewer]
        if min(times) > best:
            break
        best = min(times)
        kept = fewer[times.index(best)]
    return kept


def _numbers(policy: ExitPolicy | None) -> list[object]:
    return [] if policy is None else [getattr(policy, f.name) for f in fields(policy)]
