"""Rows of a set worth looking at, and how far each exit's confidence can be trusted.

Letters: M exits, B rows, N decisions, C outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multiexit import problems
from multiexit.evaluation.outputs import Outputs
from multiexit.files import schema
from multiexit.policies import ExitPolicy
from multiexit.policies.registry import to_json

NAME = "examples.json"
FORMAT = 1
EACH = 8
BINS = 10

_ROW = schema.table(
    {"row": schema.anything, "label": schema.text, "exit": schema.anything,
     "answers": schema.listed(schema.anything)},
    rest=schema.anything,
)  # fmt: skip
TABLE = schema.table(
    {
        "format": schema.anything,
        "policy": schema.table({"class": schema.text}, rest=schema.anything),
        "calibration": schema.optional(schema.listed(schema.anything)),
        "groups": schema.optional(
            schema.table(
                {}, {name: schema.listed(_ROW) for name in ("easy", "hard", "lost", "won")}
            )
        ),
    }
)
"""The schema of what `examples_json` gives."""


def examples_json(
    outputs: Outputs,
    policy: ExitPolicy,
    shown: Callable[[int], dict[str, Any]],
    names: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """The easiest and hardest rows under a policy with each exit's answer, and the calibration.

    Args:
        outputs: of the set.
        policy: by which rows leave.
        shown: a row's input as plain data: `{"text": [...]}`, `{"image": "data:…"}` or `{}`.
        names: of the classes; None is their numbers.

    Returns:
        Plain data. `groups` has up to eight rows each: `easy`, right and first to leave; `hard`,
        last to leave, wrong ones first; `lost`, wrong where they leave though the last exit is
        right; `won`, the other way round. None for tokens and vectors. `calibration` has `bins`
        and their mean error `ece` of each exit, None of all but classes and several labels.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.evaluation.examples import examples_json
        >>> logits_MBC = torch.tensor([[[3.0, 0], [1, 0]], [[0, 2], [0, 2]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(logits_MBC, torch.tensor([0, 1]), cost)
        >>> found = examples_json(outputs, mx.MaxProb(0.9), lambda row: {"text": [f"row {row}"]})
        >>> found["groups"]["easy"][0]["text"], found["groups"]["easy"][0]["answers"]
        (['row 0'], [['0', 0.9526], ['1', 0.8808]])
    """
    return {
        "format": FORMAT,
        "policy": to_json(policy),
        "calibration": calibration(outputs),
        "groups": _groups(outputs, policy, shown, names),
    }


def calibration(outputs: Outputs) -> list[dict[str, Any]] | None:
    """How often answers of a confidence are right, by exit: ten bins, and their mean error.

        ECE_m = Σ_k n_k / N · |right_k − confidence_k|,

    with n_k decisions of max p in ((k − 1)/10, k/10].

    Args:
        outputs: of classes or several labels; None for others, and for labels that are shares.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    problem, labels = problems.resolve(outputs.problem, outputs.num_classes), outputs.labels_B
    if problem == "multi-label" and bool(((labels == 0) | (labels == 1)).all()):
        labels_N = labels.long().flatten()
    elif problem == "classification" and not labels.is_floating_point():
        labels_N = labels
    else:
        return None
    found = []
    for logits_BC in outputs.logits_MBC:
        sure_N, answer_N = problems.decisions(logits_BC, problem).softmax(-1).max(-1)
        right_N = (answer_N == labels_N).double()
        bin_N = (sure_N.double() * BINS).ceil().long().clamp(1, BINS) - 1
        bins = []
        for k in bin_N.unique().tolist():
            here = bin_N == k
            sure, right = float(sure_N[here].double().mean()), float(right_N[here].mean())
            bins.append({"confidence": sure, "right": right, "rows": int(here.sum())})
        ece = sum(b["rows"] * abs(b["right"] - b["confidence"]) for b in bins) / len(labels_N)
        found.append({"ece": ece, "bins": bins})
    return found


def _groups(
    outputs: Outputs,
    policy: ExitPolicy,
    shown: Callable[[int], dict[str, Any]],
    names: Sequence[Any] | None,
) -> dict[str, list[dict[str, Any]]] | None:
    problem = problems.resolve(outputs.problem, outputs.num_classes)
    labels = outputs.labels_B
    if problem not in ("classification", "multi-label", "regression"):
        return None
    if problem == "classification" and labels.is_floating_point():
        labels = labels.argmax(-1)
    if problem == "multi-label":
        labels = (labels > 0.5).long()
    exit_B, answer_BC = outputs.answers(policy)
    sure_B = problems.confidence(answer_BC, problem)
    order = {"easy": (exit_B, -sure_B), "hard": (-exit_B, sure_B)}
    if problem == "regression":
        picks = {
            name: _sorted(torch.ones(len(exit_B)).bool(), *keys) for name, keys in order.items()
        }
    else:
        right_B = problems.same(problems.answer(answer_BC, problem), labels, problem)
        last_B = problems.same(problems.answer(outputs.logits_MBC[-1], problem), labels, problem)
        picks = {
            "easy": _sorted(right_B, *order["easy"]),
            "hard": _sorted(torch.ones_like(right_B), -exit_B, right_B, sure_B),
            "lost": _sorted(~right_B & last_B, -sure_B),
            "won": _sorted(right_B & ~last_B, -sure_B),
        }
    answers = problems.answer(outputs.logits_MBC, problem)
    sure_MB = problems.confidence(outputs.logits_MBC, problem)

    def described(row: int) -> dict[str, Any]:
        said = [_words(answers[m, row], problem, names) for m in range(outputs.num_exits)]
        return {
            "row": row,
            **shown(row),
            "label": _words(labels[row], problem, names),
            "exit": int(exit_B[row]),
            "answers": [
                [word, round(float(sure), 4)]
                for word, sure in zip(said, sure_MB[:, row], strict=True)
            ],
        }

    return {name: [described(row) for row in rows] for name, rows in picks.items()}


def _sorted(among_B: Tensor, *keys: Tensor) -> list[int]:
    """The first few of some rows, by rising keys."""
    rows = among_B.nonzero().flatten().tolist()
    columns = [key.tolist() for key in keys]
    return sorted(rows, key=lambda row: [column[row] for column in columns])[:EACH]


def _words(answer: Tensor, problem: str, names: Sequence[Any] | None) -> str:
    """An answer or a label in words."""

    def name(index: int) -> str:
        return str(index) if names is None else str(names[index])

    if problem == "regression":
        return ", ".join(f"{value:.2f}" for value in answer.flatten().tolist())
    if problem == "multi-label":
        return ", ".join(name(int(index)) for index in answer.nonzero().flatten()) or "none"
    return name(int(answer))
