"""Checks of labels.

Letters: N rows, T tokens, C outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiexit import problems

IGNORED = -100
"""The label of a token that isn't learned from, as in `torch.nn.CrossEntropyLoss`."""


def check_labels(
    labels: Tensor,
    num_classes: int,
    where: str = "labels",
    problem: str | None = None,
    soft: bool = True,
) -> None:
    """Refuse labels that a network with `num_classes` outputs can't be trained on, or judged by.

    On a GPU only their shape and type are looked at, so that it is not waited for.

    Args:
        labels: of classification integers in 0..C-1 [N] (of two classes booleans too), or shares of
            the classes [N, C]; of regression finite floats [N], of several numbers [N, C]; of
            several labels 0 or 1, or shares of yes in between [N, C]; of tokens classes [N, T],
            −100 for those that aren't learned from; of an embedding vectors [N, C], floats.
        num_classes: C, how many outputs there are.
        where: what to call the data in the message, such as `"train"` or a file.
        problem: a key of `multiexit.problems.PROBLEMS`; None is classification, or with one output
            regression.
        soft: whether shares of the classes will do, which nothing can be judged by.

    Raises:
        ValueError: names the first bad value, its row, and what is allowed.
    """
    _check_tensor(labels, where)
    problem = problems.resolve(problem, num_classes)
    shares = problem == "classification" and labels.ndim == 2 and labels.is_floating_point()
    if shares and not soft:
        raise ValueError(
            f"{where}: labels are shares of classes, {tuple(labels.shape)}, which answers can't be "
            "judged by: give plain classes, [N]"
        )
    check_label_shape(labels, (len(labels) if labels.ndim else 0, num_classes), problem, where)
    if labels.device.type == "cpu" and not labels.is_complex() and labels.numel():
        _check_values(labels, num_classes, where, problem, shares)
    floating = labels.is_floating_point()
    if problem == "multi-label":
        unfit = labels.is_complex()
    elif problem in ("regression", "embedding") or shares:
        unfit = not floating
    else:
        boolean = labels.dtype == torch.bool
        unfit = floating or labels.is_complex() or (boolean and num_classes != 2)
    if unfit:
        expected = {"regression": "float32 for regression", "embedding": "float32 for vectors"}.get(
            problem, "int64 for classes"
        )
        raise ValueError(f"{where}: labels are {labels.dtype}; they must be {expected}")


def as_answers(labels: Tensor, problem: str) -> Tensor:
    """The answers that labels ask for, as `multiexit.problems.answer` gives them.

    Args:
        labels: as for `check_labels`; of shares the likeliest class counts, and yes above 1/2.
        problem: a key of `multiexit.problems.PROBLEMS`.

    >>> as_answers(torch.tensor([[0.7, 0.3]]), "classification").tolist()
    [0]
    """
    if problem == "multi-label":
        return (labels > 0.5).long()
    return labels.argmax(-1) if problem == "classification" and labels.ndim == 2 else labels


def check_label_shape(
    labels: Tensor, outputs: Sequence[int], problem: str | None = None, where: str = "labels"
) -> None:
    """Refuse labels whose shape doesn't go with a network's outputs.

    Args:
        labels: of a batch, or of a set.
        outputs: the shape of one exit's outputs, [N, C], or of tokens [N, T, C] where T is known.
        problem, where: as for `check_labels`.

    Raises:
        ValueError: with the labels' shape and the right one.
    """
    _check_tensor(labels, where)
    N, C = outputs[0], outputs[-1]
    problem = problems.resolve(problem, C)
    shape = tuple(labels.shape)
    if problem == "embedding":
        good = shape == (N, C)
        wanted = f"a vector a row, [N, {C}], or left out: nothing else can be learned from"
    elif problem == "multi-label" or (problem == "regression" and C > 1):
        good = shape == (N, C)
        wanted = f"one number for each of the {C} outputs of a row, [N, {C}]"
    elif problem == "token-classification":
        good = labels.ndim == 2 and shape == (N, *outputs[1:-1], *shape[len(outputs) - 1 :])
        wanted = "one class a token, [N, T]"
    else:
        good = shape == (N,)
        wanted = "one number a row, [N]"
        if problem == "classification" and labels.is_floating_point():
            good = good or shape == (N, C)
            wanted += f", or shares of the classes, [N, {C}]"
        elif problem == "classification" and shape == (N, C):
            wanted += "; for several labels a row make the model with problem='multi-label'"
    if not good:
        raise ValueError(f"{where}: labels have shape {shape} for {N} rows; they must be {wanted}")


def _check_tensor(labels: object, where: str) -> None:
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"{where}: labels are a tensor, got {type(labels).__name__}: torch.as_tensor(labels)"
        )


def _check_values(labels: Tensor, num_classes: int, where: str, problem: str, shares: bool) -> None:
    values = labels if labels.is_floating_point() else labels.long()
    if problem == "embedding":
        long_N1 = values.abs().amax(1, keepdim=True) > 0
        good, allowed = values.isfinite() & long_N1, "finite vectors that aren't 0"
    elif problem == "regression":
        good, allowed = values.isfinite(), "finite scores"
    elif problem == "multi-label":
        good, allowed = (values >= 0) & (values <= 1), "0 or 1, or shares of yes in between"
    elif shares:
        sums_N = values.float().sum(1)
        good = (values >= 0).all(1) & ((sums_N - 1).abs() < 1e-2)
        if not good.all():
            row = int((~good).nonzero()[0])
            raise ValueError(
                f"{where}: labels [N, {num_classes}] are shares of the classes, from 0 and summing "
                f"to 1; row {row} (counted from 0) is {labels[row].tolist()!s:.80}, which sums "
                f"to {float(sums_N[row]):.4g} ({int((~good).sum())} such rows in all). For several "
                "labels a row make the model with problem='multi-label'"
            )
        return
    else:
        good = (values >= 0) & (values < num_classes) & (values == values.floor())
        allowed = f"whole numbers from 0 to {num_classes - 1} ({num_classes} classes)"
        if problem == "token-classification":
            good |= values == IGNORED
            allowed += f", or {IGNORED}"
    if not good.all():
        place = (~good).nonzero()[0].tolist()
        row = f"row {place[0]}" + (f", place {place[1]}" if len(place) > 1 else "")
        raise ValueError(
            f"{where}: label {labels[tuple(place)].item()} in {row} (counted from 0), and "
            f"{int((~good).sum())} bad labels in all; labels must be {allowed}"
        )
