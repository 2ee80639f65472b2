"""Choose a policy's number for a target.

Letters: M exits, C classes.
"""

from collections.abc import Mapping

from torch import Tensor

from multiexit.evaluation.exit_losses import Loss
from multiexit.evaluation.grids import policy_settings
from multiexit.evaluation.guarantee import warn_exits_at_chance, warn_one_answer
from multiexit.evaluation.outputs import Outputs, need_outputs
from multiexit.evaluation.targets import Target
from multiexit.model.latency import Latency
from multiexit.policies import ExitPolicy


def calibrate(
    outputs: Outputs,
    policy: type[ExitPolicy] | ExitPolicy,
    *,
    speedup: float | None = None,
    score: float | None = None,
    milliseconds: float | None = None,
    risk: float | Mapping[Loss, float] | None = None,
    by: str = "layers",
    latency: Latency | None = None,
    batch_size: int = 1,
    confidence: float | None = 0.9,
    loss: Loss | None = None,
    corpus: Tensor | None = None,
) -> ExitPolicy:
    """The setting of a policy's number that serves one target.

    For a speed-up, or milliseconds per batch: the slowest setting that is fast enough; of several,
    the one that scores best. A faster one that scores more on these rows mostly has luck. For a
    score: the fastest one among those that score as much.

    For a risk: the fastest one whose mean loss on new rows is at most the risk, with this
    confidence (`multiexit.evaluation.guarantee.learn_then_test`), or on average with
    `confidence=None` (`multiexit.evaluation.guarantee.conformal`). That holds if the rows collected
    here and the new ones are drawn alike, and the model was neither trained nor selected on them.
    Such a policy has a `certificate`, and isn't judged on the rows that it was calibrated on.

    Tries every whole number, or thresholds that lie close together near both ends, over the range
    in which the policy's number makes a difference (`multiexit.policies.number`), on the collected
    outputs. Warns where the last exit answers one class only, or the rows are all of one class, and
    where rows leave at an exit that is right no more often than one answer for all.

    Where a row is several decisions, it disagrees with the last exit if one of them does, and is
    right if all of them are; of tokens those that are asked for are decisions.

    Args:
        outputs: from `multiexit.collect`, on data that is not the evaluation's.
        policy: a policy class with one field that has no default: its number. Or a policy, whose
            first field is chosen and whose others stay: `PatientConfident(0.2, patience=2)`.
        speedup: of the policy over the full network, at least this.
        score: the metric's main figure on these rows, at least this.
        milliseconds: that a batch takes on average, at most this.
        risk: largest mean loss, in (0, 1); or several, by loss, which are all kept with this
            confidence at once: `{"accuracy": 0.02, "brier": 0.01}`.
        by: what `speedup` means, and "fastest" for a score: `"layers"`, `"macs"` or `"time"`.
        latency: from `multiexit.profile`, for time and milliseconds.
        batch_size: rows of a batch, for time and milliseconds.
        confidence: with which the risk is kept, in (0, 1), or None.
        loss: `"disagreement"` with the last exit (the default), `"accuracy"`: wrong where the last
            exit is right, `"brier"`: how much higher the Brier score is, or `"consistency"`: how
            far probabilities are from the last exit's. Of vectors `"cosine"` (the default), or
            `"rank@10"`: the nearest row of the corpus by the last exit is not among the 10 nearest
            (`multiexit.evaluation.exit_losses.losses`). Or your own: a function of early answers
            [B, C], the last exit's [B, C] and labels that gives each row's loss in 0..1, [B], from
            that row alone; or a tensor of the losses of leaving at each exit [M, B].
        corpus: the vectors that a rank is among, from the last exit, [N, C]: fixed beforehand, and
            not those of the rows to calibrate on. A certificate speaks of this corpus alone.

    Returns:
        A policy, with a certificate where a risk was the target.

    Raises:
        ValueError: no target or two, what has no effect beside it, a class with more to choose, a
            target that no setting reaches (the message says what one reaches), a risk that these
            rows can't certify, time without a latency table, a loss of other outputs, a corpus that
            holds the rows.

    Example:
        Three of four rows are sure enough to leave at the first of two exits:

        >>> import torch, multiexit as mx
        >>> first_BC = torch.tensor([[0.0, 0], [0, 1], [2, 0], [0, 3]])
        >>> last_BC = torch.tensor([[4.0, 0], [0, 4], [4, 0], [0, 4]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.stack([first_BC, last_BC]), torch.tensor([0, 1, 0, 1]), cost)
        >>> policy = mx.calibrate(outputs, mx.MaxProb, speedup=1.5)
        >>> mx.judge(outputs, policy).speedup_layers
        1.6
    """
    need_outputs(outputs)
    target = Target(
        speedup=speedup,
        score=score,
        milliseconds=milliseconds,
        risk=risk,
        by=by,
        latency=latency,
        batch_size=batch_size,
        confidence=confidence,
        loss=loss,
        corpus=corpus,
    )
    settings = policy_settings(policy, outputs.num_exits, outputs.num_classes, outputs.problem)
    warn_one_answer(outputs)
    chosen = target.choose(outputs, settings)
    warn_exits_at_chance(outputs, chosen)
    return chosen
