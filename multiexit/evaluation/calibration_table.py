"""What each setting of a policy gives, for choosing among them later, call by call.

Letters: S settings, B rows.
"""

from itertools import accumulate

import torch

from multiexit import problems
from multiexit.arguments import check_share
from multiexit.evaluation import guarantee, metrics
from multiexit.evaluation.exit_losses import bound_of
from multiexit.evaluation.grids import policy_settings
from multiexit.evaluation.judging import Row, judge, sweep
from multiexit.evaluation.outputs import Outputs, need_outputs
from multiexit.evaluation.p_values import upper_bound
from multiexit.evaluation.targets import counts_of, losses_of_settings
from multiexit.policies import CalibrationTable, ExitPolicy, FixedExit, Setting
from multiexit.problems import are_vectors
from multiexit_runner.drift import packed

STEP = 1 / 64
"""By which share of the network's layers two settings of a table differ at least."""


def calibration_table(
    outputs: Outputs,
    policy: type[ExitPolicy] | ExitPolicy,
    *,
    confidence: float = 0.9,
) -> CalibrationTable:
    """Score, speed and a bound on the loss of a policy's settings, from the slowest to the fastest.

    The bound B_s is on what setting s loses on new rows against the last exit,

        B_s = max over s and all slower settings t of min {α : p_t(α) ≤ 1 − confidence}

    with p of `multiexit.evaluation.p_values`: binomial, and of vectors betting. The fastest setting
    with B_s ≤ α is the one that `multiexit.calibrate` gives for the risk α: for one α that is fixed
    beforehand its mean loss on rows drawn alike is at most α, with this confidence. The loss of a
    row is 1 where its answer is wrong and the last exit's is right, so that it bounds the loss of
    accuracy; of vectors (1 − cosine) / 2. Numbers have none.

    Of the settings that `calibrate` tries, those are kept whose mean layers differ by a 64th of the
    network's.

    Args:
        outputs: from `multiexit.collect`, on rows that the model was neither trained nor selected
            on, nor is judged on later.
        policy: as for `multiexit.calibrate`.
        confidence: of the bounds, in (0, 1).

    Returns:
        The table, which is saved with a model as `model.calibration`.

    Raises:
        ValueError: a class with more than one number to choose, a policy that doesn't fit the
            outputs, or a confidence outside (0, 1).

    Example:
        >>> import torch, multiexit as mx
        >>> first_BC = torch.tensor([[0.0, 0], [0, 1], [2, 0], [0, 3]])
        >>> last_BC = torch.tensor([[4.0, 0], [0, 4], [4, 0], [0, 4]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.stack([first_BC, last_BC]), torch.tensor([0, 1, 0, 1]), cost)
        >>> table = mx.calibration_table(outputs, mx.MaxProb)
        >>> [(setting.mean_layers, setting.score) for setting in table.settings]
        [(2.0, 1.0), (1.75, 1.0), (1.5, 1.0), (1.25, 1.0), (1.0, 1.0)]
    """
    need_outputs(outputs)
    check_share("confidence", confidence, "(0, 1)")
    settings = policy_settings(policy, outputs.num_exits, outputs.num_classes, outputs.problem)
    guarantee.warn_one_answer(outputs)
    rows = sweep(outputs, settings)
    if rows[0].mean_layers < rows[-1].mean_layers:
        rows = rows[::-1]
    loss = _loss_of(outputs)
    bounds: list[float | None] = [None] * len(rows)
    if loss is not None:
        bounds[:] = _bounds(outputs, [row.policy for row in rows], loss, 1 - confidence)
    kept = _apart(rows, outputs.cost.layers_M[-1])
    return CalibrationTable(
        metric=metrics.name(outputs.metric),
        score=judge(outputs, FixedExit(outputs.num_exits - 1)).score,
        rows=len(outputs.labels_B),
        loss=loss,
        confidence=confidence,
        settings=tuple(
            Setting(
                policy=rows[s].policy,
                score=rows[s].score,
                loss_bound=bounds[s],
                mean_layers=rows[s].mean_layers,
                speedup_layers=rows[s].speedup_layers,
                speedup_macs=rows[s].speedup_macs,
                shares_M=tuple(rows[s].shares_M),
                counts=packed(counts_of(outputs, rows[s].policy)),
            )
            for s in kept
        ),
    )


def _loss_of(outputs: Outputs) -> str | None:
    """The loss that is bounded; None where there is none."""
    if are_vectors(outputs.problem):
        return "cosine"
    regression = problems.classes_of_decision(outputs.problem, outputs.num_classes) == 1
    return None if regression else "accuracy"


def _bounds(outputs: Outputs, policies: list[ExitPolicy], loss: str, delta: float) -> list[float]:
    """B_s of settings from the slowest on."""
    _, loss_SB = losses_of_settings(outputs, policies, loss)
    bounds, before_B = [], None
    for loss_B in loss_SB:
        if before_B is None or not torch.equal(loss_B, before_B):
            bounds.append(upper_bound(loss_B, delta, bound_of(loss)))
        else:
            bounds.append(bounds[-1])
        before_B = loss_B
    return list(accumulate(bounds, max))


def _apart(rows: list[Row], layers: int) -> list[int]:
    """Which settings differ enough; the slowest and the first of the fastest are among them."""
    fastest = min(row.mean_layers for row in rows)
    kept = [0]
    for s, row in enumerate(rows):
        before = rows[kept[-1]].mean_layers
        if before - row.mean_layers >= STEP * layers or before > row.mean_layers == fastest:
            kept.append(s)
    return kept
