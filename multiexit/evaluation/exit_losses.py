"""What leaving early costs a row, in 0..1: the losses that `multiexit.calibrate` bounds.

Letters: S settings of a policy, M exits, B rows, C classes, T tokens, N rows of a corpus,
P decisions of a row, K what a decision is among.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit import problems
from multiexit.arguments import unknown
from multiexit.evaluation.outputs import Outputs
from multiexit.losses.labels import IGNORED, as_answers
from multiexit.policies import ExitPolicy
from multiexit.policies.base import need_classes
from multiexit.policies.certificate import LOSS
from multiexit.problems import are_vectors

Loss = str | Callable[[Tensor, Tensor, Tensor], Tensor] | Tensor
"""A loss by name; or a function of early answers, the last exit's answers and labels that gives a
number in 0..1 for each row; or such numbers for leaving at each exit [M, B]."""

ROUNDING = 1e-6
"""By how much a cosine must be larger to be larger, and how far off 0..1 float32 puts a loss."""


OF_CLASSES = ("disagreement", "accuracy", "brier", "consistency")
OF_VECTORS = ("cosine", "rank@1", "rank@10")


def check_loss(kind: Loss) -> None:
    """Refuse what is no loss, by a ValueError."""
    if callable(kind) or isinstance(kind, Tensor):
        return
    if not isinstance(kind, str) or LOSS.fullmatch(kind) is None:
        raise unknown("loss", kind, OF_CLASSES + OF_VECTORS)


def bound_of(kind: Loss) -> str:
    """The p-value that a loss is bounded by, a key of `multiexit.evaluation.p_values.P_VALUES`."""
    counted = isinstance(kind, str) and (kind in OF_CLASSES[:2] or kind.startswith("rank@"))
    return "binomial" if counted else "betting"


def name_of(kind: Loss) -> str:
    """What a certificate calls a loss: one of your own by its function's name.

    >>> name_of("brier"), name_of(max), name_of(torch.zeros(2, 3))
    ('brier', 'own:max', 'own:losses')
    """
    if isinstance(kind, str):
        return kind
    name = "losses" if isinstance(kind, Tensor) else getattr(kind, "__name__", type(kind).__name__)
    return f"own:{name[:100]}"


def fitting(kind: Loss | None, problem: str | None) -> Loss:
    """The loss of that name; for None the first that suits the problem; your own suits any.

    Raises:
        ValueError: a loss of other outputs.
    """
    suited = OF_VECTORS if are_vectors(problem) else OF_CLASSES
    kind = suited[0] if kind is None else kind
    check_loss(kind)
    if not isinstance(kind, str):
        return kind
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
            last exit is right, so that the mean bounds the loss of accuracy. `"brier"`: by how much
            the Brier score ½ Σ_c (p_c − y_c)² is higher than at the last exit, 0 where it is lower.
            `"consistency"`: ½ Σ_c (p_c − p_c,last)². Both are means over a row's decisions. Of
            vectors `"cosine"`: (1 − cos(v, v_last)) / 2. `"rank@k"`: 1 where the nearest row of the
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
    if kind in ("brier", "consistency"):
        return _distances(answer_SBC, full_BC, labels_B, kind, problem, asked_BT)
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


def _distances(
    answer_SBC: Tensor,
    full_BC: Tensor,
    labels_B: Tensor,
    kind: str,
    problem: str,
    asked_BT: Tensor | None,
) -> Tensor:
    """How far probabilities are from the last exit's, or how much further from the labels."""
    split = problems.PROBLEMS[problem].split
    early_SBPK, full_BPK = (split(z.double()).softmax(-1) for z in (answer_SBC, full_BC))
    if kind == "consistency":
        loss_SBP = (early_SBPK - full_BPK).square().sum(-1) / 2
    else:
        right_BP = as_answers(labels_B, problem).reshape(full_BPK.shape[:-1])
        if problem == "token-classification":
            labelled_BT = labels_B != IGNORED
            asked_BT = labelled_BT if asked_BT is None else asked_BT & labelled_BT
        right_BPK = F.one_hot(right_BP.clamp(min=0), full_BPK.shape[-1])
        early_SBP, full_BP = ((p - right_BPK).square().sum(-1) / 2 for p in (early_SBPK, full_BPK))
        loss_SBP = early_SBP - full_BP
    counts_BP = torch.ones_like(loss_SBP[0]) if asked_BT is None else asked_BT.double()
    loss_SB = (loss_SBP * counts_BP).sum(-1) / counts_BP.sum(-1).clamp(min=1)
    return loss_SB.clamp(0, 1)


def _own_losses(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    answer_SBC: Tensor,
    full_BC: Tensor,
    labels_B: Tensor,
) -> Tensor:
    """What a function of the user's own gives, checked."""
    # Copies, for it may work in place.
    found = [loss(z_BC.clone(), full_BC.clone(), labels_B.clone()) for z_BC in answer_SBC]
    return torch.stack([checked(loss_B, (len(full_BC),), name_of(loss)) for loss_B in found])


def checked(losses: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Losses as float64, what was rounded put back into 0..1.

    Args:
        losses: of the user's own.
        shape: that they must have.
        name: of the loss.

    Raises:
        ValueError: another shape, or numbers outside of 0..1.
    """
    if not isinstance(losses, Tensor) or losses.shape != shape:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"the loss {name} must be a tensor {[*shape]}, got {got}")
    losses = losses.double()
    wrong = losses[~((losses >= -ROUNDING) & (losses <= 1 + ROUNDING))]
    if len(wrong):
        raise ValueError(f"losses must be in 0..1, and {name} gives {float(wrong[0]):.9g}")
    return losses.clamp(0, 1)


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
    outputs: Outputs, policy: ExitPolicy, kind: Loss, corpus_NC: Tensor | None = None
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
    exit_B, answer_BC = outputs.answers(policy)
    if isinstance(kind, Tensor):
        return float(of_exits(outputs, kind).gather(0, exit_B[None]).mean())
    return float(losses_of(outputs, answer_BC[None], kind, corpus_NC).mean())


def of_exits(outputs: Outputs, loss_MB: Tensor) -> Tensor:
    """Losses of leaving at each exit, [M, B], checked: of the user's own.

    Raises:
        ValueError: another shape, or numbers outside of 0..1.
    """
    return checked(loss_MB, (outputs.num_exits, len(outputs.labels_B)), name_of(loss_MB))


def losses_of(
    outputs: Outputs,
    answer_SBC: Tensor,
    kind: str | Callable[[Tensor, Tensor, Tensor], Tensor],
    corpus_NC: Tensor | None = None,
) -> Tensor:
    """`losses` of answers to a set's rows, or those of a function of your own, [S, B].

    Args:
        outputs: from `multiexit.collect`.
        answer_SBC: what each setting answers.
        kind: of the loss.
        corpus_NC: as for `losses`.
    """
    full_BC, labels_B, asked_BT = outputs.logits_MBC[-1], outputs.labels_B, outputs.asked_BT
    if not isinstance(kind, str):
        return _own_losses(kind, answer_SBC, full_BC, labels_B)
    return losses(answer_SBC, full_BC, labels_B, kind, outputs.problem, asked_BT, corpus_NC)
