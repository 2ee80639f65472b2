"""Bounds on what early exits cost, that hold with a chosen confidence.

Letters: S settings of a policy, from the safest to the fastest, B calibration rows.

Both ways assume that the calibration rows and those to come are exchangeable: drawn alike, and the
model not trained or selected on them.
"""

import math
import warnings

from torch import Tensor

from multiexit import problems
from multiexit.arguments import check_share, unknown
from multiexit.evaluation.outputs import Outputs
from multiexit.losses.labels import IGNORED, as_answers
from multiexit.policies import ExitPolicy
from multiexit.policies.base import need_classes


def learn_then_test(loss_SB: Tensor, risk: float, delta: float) -> int | None:
    """The last setting that is certified, testing one after another until the first fails.

    With probability at least 1 − δ over the calibration rows, the mean loss of the setting
    returned is at most the risk. Each test's p-value is Hoeffding's and Bentkus' bound for means of
    n losses in [0, 1], with r the observed mean and α the risk,

        p = min(exp(−n·h(min(r, α), α)), e·P(Bin(n, α) ≤ ⌈n·r⌉)),
        h(a, b) = a log(a/b) + (1 − a) log((1 − a)/(1 − b)),

    and tests in a fixed order need no correction for their number.

    Args:
        loss_SB: losses in [0, 1] of each setting on each row.
        risk: α, in (0, 1).
        delta: δ, in (0, 1).

    Returns:
        The setting's index, or None if even the first fails.

    Reference: Angelopoulos et al., "Learn then Test", 2021, section 3; for early exits, Schuster et
    al., "Confident Adaptive Language Modeling", NeurIPS 2022, section 4.
    """
    check_share("risk", risk, "(0, 1)")
    check_share("delta", delta, "(0, 1)")
    certified = None
    for index, mean in enumerate(loss_SB.double().mean(1).tolist()):
        if p_value(mean, loss_SB.shape[1], risk) > delta:
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


def p_value(mean: float, n: int, risk: float) -> float:
    """A bound on how likely n losses in [0, 1] have so low a mean if the true one is the risk.

    Args:
        mean: of the losses.
        n: how many.
        risk: α, in (0, 1).
    """
    from scipy.stats import binom  # which takes a second to import

    a = min(mean, risk)
    divergence = a * math.log(a / risk) if a > 0 else 0.0
    divergence += (1 - a) * math.log((1 - a) / (1 - risk)) if a < 1 else 0.0
    hoeffding = math.exp(-n * divergence)
    # Means of losses that are 0 or 1 come back as whole numbers only up to rounding.
    bentkus = math.e * float(binom.cdf(math.ceil(n * mean - 1e-9), n, risk))
    return min(1.0, hoeffding, bentkus)


def rows_needed(risk: float, delta: float | None) -> int:
    """The number of rows without any loss that it takes to certify a risk.

    (1 − α)^n ≤ δ, or with no δ, `conformal`: 1 / (n + 1) ≤ α

    Args:
        risk: α, in (0, 1).
        delta: δ, in (0, 1), or None.

    >>> rows_needed(0.05, 0.1), rows_needed(0.05, None)
    (45, 19)
    """
    if delta is None:
        return math.ceil(1 / risk - 1 - 1e-9)
    return math.ceil(math.log(delta) / math.log(1 - risk))


def check_rows(rows: int, risk: float, delta: float | None) -> None:
    """Refuse fewer calibration rows than it takes at the least.

    Args:
        rows: how many there are.
        risk, delta: as for `rows_needed`.

    Raises:
        ValueError: with how many it takes.
    """
    needed = rows_needed(risk, delta)
    if rows < needed:
        raise ValueError(
            f"{rows} rows can't certify a risk of {risk}: even without any loss it takes {needed} "
            "rows to calibrate on"
        )


LOSSES = ("disagreement", "accuracy")


def check_loss(kind: str) -> None:
    """Refuse what is no loss of `losses`, by a ValueError."""
    if kind not in LOSSES:
        raise unknown("loss", kind, LOSSES)


def check_classes(C: int, problem: str | None = None) -> None:
    """Refuse regression, by a ValueError."""
    need_classes(
        problems.classes_of_decision(problem, C),
        "a bounded risk",
        "Patience(patience, tolerance=…) with a speedup or a score",
    )


def warn_one_answer(outputs: Outputs) -> None:
    """Warn where one answer is all that is said, or all there is: agreement then says nothing.

    A model that answers the same whatever comes agrees with itself at every exit, and any bound
    on early exits' losses is kept by it.
    """
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
            stacklevel=3,
        )
    elif len(labelled) == 1:
        warnings.warn(
            f"all {rows} {units} to calibrate on have the label {labelled[0]!s:.60}: what is "
            "chosen and certified on them says nothing about others",
            stacklevel=3,
        )


def losses(
    answer_SBC: Tensor,
    full_BC: Tensor,
    labels_B: Tensor,
    kind: str,
    problem: str | None = None,
    asked_BT: Tensor | None = None,
) -> Tensor:
    """The loss of leaving early on each row, 0 or 1; a row's answer is that of all its decisions.

    Args:
        answer_SBC: what each setting answers, logits [S, B, C].
        full_BC: what the last exit answers, logits [B, C].
        labels_B: the labels [B], as the problem has them.
        kind: `"disagreement"`: another answer than the last exit's. `"accuracy"`: wrong where the
            last exit is right, so that the mean bounds the loss of accuracy.
        problem: the model's; None is classification.
        asked_BT: of tokens, which are asked for; None is all. Of these, all that have a label must
            be right for a row to be right.

    Returns:
        0 or 1, float64 [S, B].

    Raises:
        ValueError: another kind, or regression.
    """
    check_loss(kind)
    check_classes(full_BC.shape[-1], problem)
    problem = problems.resolve(problem, full_BC.shape[-1])
    early_SB, full_B = (problems.answer(z, problem) for z in (answer_SBC, full_BC))
    if kind == "disagreement":
        return (~problems.same(early_SB, full_B, problem, asked_BT)).double()
    right_B = as_answers(labels_B, problem)
    if problem == "token-classification":
        labelled_BT = labels_B != IGNORED
        asked_BT = labelled_BT if asked_BT is None else asked_BT & labelled_BT
    full_right_B, early_right_SB = (
        problems.same(answer, right_B, problem, asked_BT) for answer in (full_B, early_SB)
    )
    return (full_right_B & ~early_right_SB).double()


def realised(outputs: Outputs, policy: ExitPolicy, kind: str) -> float:
    """The mean of `losses` when rows leave where a policy says.

    Args:
        outputs: from `multiexit.collect`.
        policy: that stops the rows.
        kind: of the loss.

    Raises:
        ValueError: another kind, or regression.
    """
    _, answer_BC = outputs.answers(policy)
    return float(losses_of(outputs, answer_BC[None], kind).mean())


def losses_of(outputs: Outputs, answer_SBC: Tensor, kind: str) -> Tensor:
    """`losses` of answers to a set's rows, [S, B].

    Args:
        outputs: from `multiexit.collect`.
        answer_SBC: what each setting answers.
        kind: of the loss.
    """
    full_BC, labels_B = outputs.logits_MBC[-1], outputs.labels_B
    return losses(answer_SBC, full_BC, labels_B, kind, outputs.problem, outputs.asked_BT)
