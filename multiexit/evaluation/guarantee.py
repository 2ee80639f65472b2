"""Bounds on what early exits cost, that hold with a chosen confidence.

Letters: S settings of a policy, from the safest to the fastest, B calibration rows.

Both ways assume that the calibration rows and those to come are exchangeable: drawn alike, and the
model not trained or selected on them.
"""

import math
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit import problems
from multiexit.arguments import check_share, unknown
from multiexit.evaluation.outputs import Outputs
from multiexit.losses.labels import IGNORED, as_answers
from multiexit.policies import ExitPolicy
from multiexit.policies.base import need_classes
from multiexit.policies.certificate import LOSS
from multiexit.policies.simulating import simulate
from multiexit.problems import are_vectors

ROUNDING = 1e-6
"""By how much a cosine must be larger to be larger."""


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


def upper_bound(mean: float, n: int, delta: float) -> float:
    """The smallest risk that n losses of this mean certify by themselves, up to 1e-6.

    It is the smallest α with p ≤ δ, p as in `learn_then_test`. Of settings from the safest on, the
    last whose bound, and whose every safer one's, is at most α is the one that `learn_then_test`
    gives for the risk α.

    Args:
        mean: of the losses.
        n: how many.
        delta: δ, in (0, 1).

    >>> upper_bound(0.0, 45, 0.1) <= 0.05 < upper_bound(0.0, 44, 0.1)
    True
    """
    low, high = min(mean, 1.0), 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(mean, n, middle) <= delta else (middle, high)
    return high


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


OF_CLASSES = ("disagreement", "accuracy")
OF_VECTORS = ("cosine", "rank@1", "rank@10")


def check_loss(kind: str) -> None:
    """Refuse what is no loss of `losses`, by a ValueError."""
    if not isinstance(kind, str) or LOSS.fullmatch(kind) is None:
        raise unknown("loss", kind, OF_CLASSES + OF_VECTORS)


def fitting(kind: str | None, problem: str | None) -> str:
    """The loss of that name; for None the first that suits the problem.

    Raises:
        ValueError: a loss of other outputs.
    """
    suited = OF_VECTORS if are_vectors(problem) else OF_CLASSES
    kind = suited[0] if kind is None else kind
    check_loss(kind)
    if (kind in OF_CLASSES) == are_vectors(problem):
        what = "vectors" if are_vectors(problem) else "classes"
        raise ValueError(f"loss {kind!r} isn't one of {what}; {', '.join(suited)} are")
    return kind


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
            stacklevel=3,
        )
    elif len(labelled) == 1:
        warnings.warn(
            f"all {rows} {units} to calibrate on have the label {labelled[0]!s:.60}: what is "
            "chosen and certified on them says nothing about others",
            stacklevel=3,
        )


def warn_exits_at_chance(outputs: Outputs, policy: ExitPolicy) -> None:
    """Warn where rows leave early at an exit that is right no more often than one class for all.

    Such an exit was not trained, or has learnt nothing. Of classes, one a row; of other answers
    there is no such share.
    """
    M, _, C = outputs.logits_MBC.shape
    if problems.resolve(outputs.problem, C) != "classification" or M == 1:
        return
    labels_B = outputs.labels_B
    usual = float(labels_B.bincount().max() / len(labels_B))
    left_M = simulate(policy, outputs.logits_MBC).bincount(minlength=M)
    right_M = (outputs.logits_MBC.argmax(-1) == labels_B).double().mean(1)
    for exit in range(M - 1):
        if left_M[exit] and right_M[exit] <= usual < right_M[-1]:
            warnings.warn(
                f"{int(left_M[exit])} of {len(labels_B)} rows leave at exit {exit}, which is right "
                f"on {right_M[exit]:.1%} of them all, no more than one class for all of them "
                f"({usual:.1%}): it was not trained, or has learnt nothing",
                stacklevel=3,
            )


def losses(
    answer_SBC: Tensor,
    full_BC: Tensor,
    labels_B: Tensor,
    kind: str,
    problem: str | None = None,
    asked_BT: Tensor | None = None,
    corpus_NC: Tensor | None = None,
) -> Tensor:
    """The loss of leaving early on each row, in 0..1; a row's answer is that of all its decisions.

    Args:
        answer_SBC: what each setting answers, logits [S, B, C].
        full_BC: what the last exit answers, logits [B, C].
        labels_B: the labels [B], as the problem has them.
        kind: `"disagreement"`: another answer than the last exit's. `"accuracy"`: wrong where the
            last exit is right, so that the mean bounds the loss of accuracy. Of vectors
            `"cosine"`: (1 − cos(v, v_last)) / 2. `"rank@k"`: 1 where the nearest row of the
            corpus by the last exit's vector isn't among the k nearest by the early one, ties aside.
        problem: the model's; None is classification.
        asked_BT: of tokens, which are asked for; None is all. Of these, all that have a label must
            be right for a row to be right.
        corpus_NC: vectors of the rows that are searched in for `"rank@k"`, from the last exit.

    Returns:
        float64 [S, B].

    Raises:
        ValueError: another kind, no corpus where one is searched, or regression.
    """
    check_loss(kind)
    if kind == "cosine":
        return (1 - F.cosine_similarity(answer_SBC.double(), full_BC.double(), dim=-1)) / 2
    if kind not in OF_CLASSES:
        return _rank_losses(answer_SBC, full_BC, int(kind.removeprefix("rank@")), corpus_NC)
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


def _rank_losses(answer_SBC: Tensor, full_BC: Tensor, k: int, corpus_NC: Tensor | None) -> Tensor:
    """1 where k rows or more are nearer than the one that is the nearest by the last exit."""
    corpus_NC = checked_corpus(corpus_NC, k, full_BC.shape[-1]).to(full_BC.dtype)
    nearest_BC = corpus_NC[(full_BC @ corpus_NC.T).argmax(-1)]
    loss_SB = [
        ((answer_BC @ corpus_NC.T) > (answer_BC * nearest_BC).sum(-1, keepdim=True) + ROUNDING)
        .sum(-1)
        .ge(k)
        for answer_BC in answer_SBC
    ]
    return torch.stack(loss_SB).double()


def checked_corpus(corpus_NC: Tensor | None, k: int, C: int) -> Tensor:
    """The corpus's vectors with length 1.

    Args:
        corpus_NC: as it was given.
        k: how many nearest rows count.
        C: a vector's entries.

    Raises:
        ValueError: there is none, or too few rows, or what are no finite vectors of C entries.
    """
    good = isinstance(corpus_NC, Tensor) and corpus_NC.is_floating_point()
    if not good or corpus_NC.ndim != 2 or corpus_NC.shape[1] != C or len(corpus_NC) <= k:  # type: ignore[union-attr]
        got = tuple(corpus_NC.shape) if isinstance(corpus_NC, Tensor) else corpus_NC
        raise ValueError(
            f"rank@{k} searches a corpus: pass corpus=, the last exit's vectors of more than {k} "
            f"other rows, floats [N, {C}]; got {got!r:.80}"
        )
    assert corpus_NC is not None
    length_N = corpus_NC.norm(dim=-1)
    if not (length_N.isfinite() & (length_N > 0)).all():
        raise ValueError("the corpus has vectors that are 0, NaN or infinite")
    return corpus_NC / length_N[:, None]


def check_apart(corpus_NC: Tensor, full_BC: Tensor) -> None:
    """Refuse a corpus that holds all the rows to calibrate on, by a ValueError.

    Each would find itself, and rows to come won't: they would not be drawn alike.
    """
    corpus_NC = checked_corpus(corpus_NC, 0, full_BC.shape[-1]).to(full_BC.dtype)
    if bool(((full_BC @ corpus_NC.T).amax(-1) > 1 - ROUNDING).all()):
        raise ValueError(
            f"the corpus holds all {len(full_BC)} rows to calibrate on, so that each finds itself, "
            "which new rows won't: give a corpus of other rows"
        )


def realised(
    outputs: Outputs, policy: ExitPolicy, kind: str, corpus_NC: Tensor | None = None
) -> float:
    """The mean of `losses` when rows leave where a policy says.

    Args:
        outputs: from `multiexit.collect`.
        policy: that stops the rows.
        kind: of the loss.
        corpus_NC: as for `losses`.

    Raises:
        ValueError: another kind than the outputs', or regression.
    """
    kind = fitting(kind, outputs.problem)
    _, answer_BC = outputs.answers(policy)
    return float(losses_of(outputs, answer_BC[None], kind, corpus_NC).mean())


def losses_of(
    outputs: Outputs, answer_SBC: Tensor, kind: str, corpus_NC: Tensor | None = None
) -> Tensor:
    """`losses` of answers to a set's rows, [S, B].

    Args:
        outputs: from `multiexit.collect`.
        answer_SBC: what each setting answers.
        kind: of the loss.
        corpus_NC: as for `losses`.
    """
    full_BC, labels_B, asked_BT = outputs.logits_MBC[-1], outputs.labels_B, outputs.asked_BT
    return losses(answer_SBC, full_BC, labels_B, kind, outputs.problem, asked_BT, corpus_NC)
