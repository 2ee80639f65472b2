"""What a network's outputs say of a row, and how they come apart into decisions.

A row's answer is one decision or several, each among K classes, or a number; or it is a vector:

    problem                 outputs      decisions of a row
    "classification"        [B, C]       1, among C classes
    "multi-label"           [B, C]       C, each between no and yes: (0, z), since
                                         softmax(0, z) = (1 - sigmoid(z), sigmoid(z))
    "regression"            [B, C]       C numbers
    "token-classification"  [B, T, C]    T, each among C classes
    "embedding"             [B, C]       1, a vector of length 1 with C entries

Losses are means over decisions, and a policy stops a row when it would stop all its decisions.

Letters: B batch rows, T tokens, C outputs, P decisions of a row, K what a decision is among.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.arguments import unknown


class Problem(NamedTuple):
    """One kind of answer.

    Args:
        split: from outputs […, B, C] to decisions [..., B, P, K].
        join: the way back.
        classes: C to K; 1 of numbers.
        single: whether a row is one decision.
        least: the smallest C.
        vectors: whether a decision is a vector of length 1: no classes, no softmax.
    """

    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]
    classes: Callable[[int], int]
    single: bool = False
    least: int = 1
    vectors: bool = False


def _no_and_yes(z: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(z), z], -1)


def _log_odds(no_and_yes: Tensor) -> Tensor:
    return no_and_yes[..., 1] - no_and_yes[..., 0]


PROBLEMS: dict[str, Problem] = {
    "classification": Problem(
        lambda z: z.unsqueeze(-2), lambda d: d.squeeze(-2), lambda C: C, single=True, least=2
    ),
    "multi-label": Problem(_no_and_yes, _log_odds, lambda C: 2),
    "regression": Problem(lambda z: z.unsqueeze(-1), lambda d: d.squeeze(-1), lambda C: 1),
    "token-classification": Problem(lambda z: z, lambda d: d, lambda C: C, least=2),
    "embedding": Problem(
        lambda z: z.unsqueeze(-2),
        lambda d: d.squeeze(-2),
        lambda C: C,
        single=True,
        least=2,
        vectors=True,
    ),
}


def resolve(problem: str | None, num_classes: int) -> str:
    """The problem's name; None is classification, or with one output regression.

    Args:
        problem: a key of `PROBLEMS`, or None.
        num_classes: C.

    Raises:
        ValueError: an unknown name, or too few outputs.

    >>> resolve(None, 3), resolve(None, 1), resolve("multi-label", 1)
    ('classification', 'regression', 'multi-label')
    """
    if problem is None:
        return "regression" if num_classes == 1 else "classification"
    if problem not in PROBLEMS:
        raise unknown("problem", problem, PROBLEMS)
    if num_classes < PROBLEMS[problem].least:
        if PROBLEMS[problem].vectors:
            raise ValueError(f"a vector has 2 entries at least, got num_classes={num_classes}")
        raise ValueError(
            f"{problem} is among at least 2 classes, got num_classes={num_classes}: one number is "
            "'regression', one yes or no is 'multi-label'"
        )
    return problem


def answer(outputs: Tensor, problem: str | None) -> Tensor:
    """What outputs say: a class or number for each decision of each row.

    Args:
        outputs: logits […, B, C], or of tokens […, B, T, C].
        problem: a key of `PROBLEMS`, or None as for `resolve`.

    Returns:
        Classes, int64, or numbers: [..., B] where a row is one decision, [..., B, C] of several
        labels (1 is yes) or numbers, and [..., B, T] of tokens. Vectors as they are.

    >>> answer(torch.tensor([[2.0, -1.0]]), "multi-label").tolist()
    [[1, 0]]
    """
    C = outputs.shape[-1]
    kind = PROBLEMS[resolve(problem, C)]
    if kind.vectors:
        return outputs
    decisions = kind.split(outputs)
    values = decisions.squeeze(-1) if kind.classes(C) == 1 else decisions.argmax(-1)
    return values.squeeze(-1) if kind.single or (kind.classes(C) == 1 and C == 1) else values


def decisions(outputs: Tensor, problem: str | None) -> Tensor:
    """All decisions of a batch, row after row: outputs [..., B, C] as [..., N, K], N = B·P.

    >>> decisions(torch.zeros(2, 5, 3), "multi-label").shape
    torch.Size([2, 15, 2])
    """
    return PROBLEMS[resolve(problem, outputs.shape[-1])].split(outputs).flatten(-3, -2)


def confidence(outputs: Tensor, problem: str | None, asked_BT: Tensor | None = None) -> Tensor:
    """How sure outputs are of a row: max p of its least sure decision, […, B]; 1 of numbers.

    A row stops by `MaxProb` where this reaches the threshold.

    Args:
        outputs: logits […, B, C].
        problem: a key of `PROBLEMS`, or None as for `resolve`.
        asked_BT: of tokens, which are asked for; a row where none is has confidence 1.

    >>> confidence(torch.tensor([[4.0, 0.0]]), "multi-label").tolist()  # sigmoid(4), and 1/2
    [0.5]
    """
    split = PROBLEMS[resolve(problem, outputs.shape[-1])].split
    sure = split(outputs).softmax(-1).amax(-1)
    return (sure if asked_BT is None else sure.masked_fill(~asked_BT, 1.0)).amin(-1)


def same(one: Tensor, other: Tensor, problem: str, asked_BT: Tensor | None = None) -> Tensor:
    """Whether answers agree in all decisions of each row, bool […, B].

    Args:
        one, other: as `answer` gives them.
        problem: a key of `PROBLEMS`.
        asked_BT: of tokens, which are asked for; others don't matter.

    >>> same(torch.tensor([[1, 0], [1, 1]]), torch.tensor([[1, 0], [1, 0]]), "multi-label").tolist()
    [True, False]
    """
    agree = one == other
    if PROBLEMS[problem].single:
        return agree
    return (agree if asked_BT is None else agree | ~asked_BT).all(-1)


def are_vectors(problem: str | None) -> bool:
    """Whether outputs are vectors of length 1, not logits."""
    return problem in PROBLEMS and PROBLEMS[problem].vectors  # type: ignore[index]


def outputs_of(raw: Tensor, problem: str) -> Tensor:
    """A network's outputs, from what its heads give: vectors get length 1.

    Args:
        raw: […, B, C], or of tokens […, B, T, C].
        problem: a key of `PROBLEMS`.

    >>> outputs_of(torch.tensor([[3.0, 4.0]]), "embedding")
    tensor([[0.6000, 0.8000]])
    """
    return F.normalize(raw, dim=-1) if are_vectors(problem) else raw


def refuse_vectors(problem: str | None, what: str, instead: str) -> None:
    """Refuse vectors, which are in no class, by a ValueError.

    Args:
        problem: the model's, or None.
        what: needs classes, for the message.
        instead: what does for vectors.

    >>> refuse_vectors("embedding", "a temperature", "none")
    Traceback (most recent call last):
    ValueError: a temperature needs classes, and the outputs of an embedding are vectors: use none
    """
    if are_vectors(problem):
        raise ValueError(
            f"{what} needs classes, and the outputs of an embedding are vectors: use {instead}"
        )


def classes_of_decision(problem: str | None, num_classes: int) -> int:
    """K: how many classes a decision is among, 1 of numbers; the C entries of a vector.

    Args:
        problem: a key of `PROBLEMS`, or None as for `resolve`.
        num_classes: C.

    >>> classes_of_decision("multi-label", 20), classes_of_decision("regression", 3)
    (2, 1)
    """
    return PROBLEMS[resolve(problem, num_classes)].classes(num_classes)
