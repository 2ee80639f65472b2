"""Bounds on what early exits cost, that hold with a chosen confidence.

Letters: S settings of a policy, from the safest to the fastest, B calibration rows.

Both ways assume that the calibration rows and those to come are exchangeable: drawn alike, and the
model not trained or selected on them.
"""

import warnings

from torch import Tensor

from multiexit import problems
from multiexit.arguments import check_share
from multiexit.evaluation.outputs import Outputs
from multiexit.evaluation.p_values import P_VALUES, rows_needed
from multiexit.losses.labels import IGNORED
from multiexit.policies import ExitPolicy
from multiexit.problems import are_vectors
from multiexit_runner.user_line import user_level


def learn_then_test(
    loss_SB: Tensor, risk: float, delta: float, bound: str = "hoeffding-bentkus"
) -> int | None:
    """The last setting that is certified, testing one after another until the first fails.

    With probability at least 1 − δ over the calibration rows, the mean loss of the setting
    returned is at most the risk. Each test has a p-value (`multiexit.evaluation.p_values`), and
    tests in a fixed order need no correction for their number. Of several losses, each with a risk
    of its own, the safest of their settings keeps all risks: else the first setting that breaks one
    of them has passed this risk's test, which has a chance of at most δ.

    Args:
        loss_SB: losses in [0, 1] of each setting on each row.
        risk: α, in (0, 1).
        delta: δ, in (0, 1).
        bound: a key of `multiexit.evaluation.p_values.P_VALUES`.

    Returns:
        The setting's index, or None if even the first fails.

    Reference: Angelopoulos et al., "Learn then Test", 2021, section 3; for early exits, Schuster et
    al., "Confident Adaptive Language Modeling", NeurIPS 2022, section 4.
    """
    check_share("risk", risk, "(0, 1)")
    check_share("delta", delta, "(0, 1)")
    certified = None
    for index, loss_B in enumerate(loss_SB.double()):
        if P_VALUES[bound](loss_B, risk, delta) > delta:
            break
        certified = index
    return certified


def conformal(loss_SB: Tensor, risk: float) -> int | None:
    """The fastest setting whose expected loss on a new row is at most the risk.

        the last s with (n·r_s + 1) / (n + 1) ≤ α,

    r_s the mean over rows of the largest loss that a row has at s or any safer setting. The bound
    is on the mean over draws of the calibration rows too, with no confidence beside it.

    Args:
        loss_SB: losses in [0, 1] of each setting on each row.
        risk: α, in (0, 1).

    Returns:
        The setting's index, or None if even the first has too much loss.

    Reference: Angelopoulos et al., "Conformal Risk Control", ICLR 2024, section 2.
    """
    check_share("risk", risk, "(0, 1)")
    n = loss_SB.shape[1]
    mean_S = loss_SB.double().cummax(0).values.mean(1)
    bounded_S = (n * mean_S + 1) / (n + 1) <= risk
    return int(bounded_S.sum()) - 1 if bounded_S[0] else None  # the means rise: those come first


def check_rows(rows: int, risk: float, delta: float | None, bound: str) -> None:
    """Refuse fewer calibration rows than it takes at the least.

    Args:
        rows: how many there are.
        risk, delta, bound: as for `multiexit.evaluation.p_values.rows_needed`.

    Raises:
        ValueError: with how many it takes, and the least risk that they could certify.
    """
    needed = rows_needed(risk, delta, bound)
    if rows < needed:
        whole = (k / 100 for k in range(1, 100))
        least = next((r for r in whole if r > risk and rows_needed(r, delta, bound) <= rows), None)
        larger = "" if least is None else f", or a risk of {least:g} or more"
        raise ValueError(
            f"{rows} rows can't certify a risk of {risk}: even without any loss it takes {needed} "
            f"rows to calibrate on. Give more of them (--share, --data){larger}"
        )


def warn_one_answer(outputs: Outputs) -> None:
    """Warn where one answer is all that is said, or all there is: agreement then says nothing.

    A model that answers the same whatever comes agrees with itself at every exit, and any bound
    on early exits' losses is kept by it.
    """
    if are_vectors(outputs.problem):
        return
    rows, C = len(outputs.labels_B), outputs.num_classes
    if problems.classes_of_decision(outputs.problem, C) == 1 or rows < 2:
        return
    problem = problems.resolve(outputs.problem, C)
    answer_B, label_B = problems.answer(outputs.logits_MBC[-1], problem), outputs.scored_labels
    units = "rows"
    if problem == "token-classification":
        learned_BT, units = label_B != IGNORED, "tokens"
        answer_B, label_B = answer_B[learned_BT], label_B[learned_BT]
        rows = len(label_B)
    answered, labelled = (x.unique(dim=0).tolist() for x in (answer_B, label_B))
    of_classes = "class " if answer_B.ndim == 1 else ""
    if len(answered) == 1:
        warnings.warn(
            f"the last exit answers {of_classes}{answered[0]!s:.60} on all {rows} {units}, which "
            f"have {len(labelled)} different labels: that early exits agree with it, and a "
            "certificate of that, say nothing about how good the answers are",
            stacklevel=user_level(),
        )
    elif len(labelled) == 1:
        warnings.warn(
            f"all {rows} {units} to calibrate on have one label, {of_classes}{labelled[0]!s:.60}: "
            "what is chosen and certified on them says nothing about others",
            stacklevel=user_level(),
        )


def warn_exits_at_chance(outputs: Outputs, policy: ExitPolicy) -> None:
    """Warn where rows leave early at an exit that is right no more often than one class for all.

    Such an exit was not trained, or has learnt nothing. Of classes, one a row; of other answers
    there is no such share.
    """
    M, C = outputs.num_exits, outputs.num_classes
    if problems.resolve(outputs.problem, C) != "classification" or M == 1:
        return
    labels_B = outputs.labels_B
    usual = float(labels_B.bincount().max() / len(labels_B))
    left_M = outputs.answers(policy)[0].bincount(minlength=M)
    right_M = (outputs.logits_MBC.argmax(-1) == labels_B).double().mean(1)
    for exit in range(M - 1):
        if left_M[exit] and right_M[exit] <= usual < right_M[-1]:
            warnings.warn(
                f"{int(left_M[exit])} of {len(labels_B)} rows leave at exit {exit}, which is right "
                f"on {right_M[exit]:.1%} of them all, no more than one class for all of them "
                f"({usual:.1%}): it was not trained, or has learnt nothing",
                stacklevel=user_level(),
            )
