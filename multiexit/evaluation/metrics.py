"""GLUE's metrics, accuracy, and a user's own: from answers and labels to named scores.

A metric takes answers [N] and labels [N] as arrays: class numbers, or for regression floats. It
gives a number, or a dict of numbers in which `"score"` is the one to compare by: more is better.
Where tokens are classified, [N] are all tokens that are asked for and have a label; `entity_f1`
alone reads rows, of tags in place of numbers.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiexit import problems
from multiexit.arguments import unknown
from multiexit.evaluation import tags
from multiexit.evaluation.scores import (
    accuracy,
    accuracy_f1,
    accuracy_macro_f1,
    cosine,
    matthews,
    micro_f1,
    pearson_spearman,
    r2,
    subset_accuracy,
)
from multiexit.evaluation.tags import entity_f1

Metric = Callable[[NDArray[Any], NDArray[Any]], float | Mapping[str, float]]
"""`(predicted_N, labels_N) -> score`, or figures by name with a `"score"`."""


METRICS: dict[str, Callable[..., float | Mapping[str, float]]] = {
    "accuracy": accuracy,
    "accuracy_f1": accuracy_f1,
    "matthews": matthews,
    "pearson_spearman": pearson_spearman,
    "r2": r2,
    "micro_f1": micro_f1,
    "subset_accuracy": subset_accuracy,
    "entity_f1": entity_f1,
    "cosine": cosine,
}
"""Metrics by name. Of more than two classes `"accuracy_f1"` is `accuracy_macro_f1`."""

OF_CLASSES = {
    "accuracy": "accuracy (%)",
    "accuracy_f1": "mean of accuracy and F1 (%)",
    "matthews": "Matthews' correlation (× 100)",
}
OF_LABELS = {"micro_f1": "F1 over all labels (%)", "subset_accuracy": "accuracy of whole rows (%)"}
OF_TAGS = {**OF_CLASSES, "entity_f1": "F1 of entities (%)"}
OF_VALUES = {
    "pearson_spearman": "mean of Pearson's and Spearman's correlation (× 100)",
    "r2": "share of variance explained, R² (%)",
}
OF_VECTORS = {"cosine": "mean cosine (× 100)"}
"""What a metric of `METRICS` judges, with the name of an axis or column of its score."""

OF_DIFFERENCES = ("matthews", "pearson_spearman", "r2")
"""Metrics that need different labels."""

SUITED = {
    "classification": OF_CLASSES,
    "regression": OF_VALUES,
    "multi-label": OF_LABELS,
    "token-classification": OF_TAGS,
    "embedding": OF_VECTORS,
}
"""The metrics of `METRICS` by problem, the usual one first."""


def fitting(
    metric: str | Metric | None,
    num_classes: int,
    problem: str | None = None,
    names: Sequence[Any] | None = None,
) -> str | Metric:
    """A metric that suits a model's answers; for None the first that suits.

    Args:
        metric: a key of `METRICS`, a function, or None.
        num_classes: C, how many outputs there are.
        problem: the model's; None is classification, or with one output regression.
        names: the classes' names, which must be tags for `entity_f1`.

    Raises:
        ValueError: an unknown name, or a metric of other answers.

    Example:
        >>> import multiexit as mx
        >>> mx.metrics.fitting(None, num_classes=3), mx.metrics.fitting(None, num_classes=1)
        ('accuracy', 'pearson_spearman')
    """
    problem = problems.resolve(problem, num_classes)
    suited = SUITED[problem]
    if metric is None:
        return next(iter(suited))
    if callable(metric):
        return metric
    if metric not in METRICS:
        raise ValueError(f"{unknown('metric', metric, sorted(METRICS))}, or give a function")
    if metric not in suited and any(metric in of for of in SUITED.values()):
        task = _task(num_classes, problem)
        raise ValueError(f"metric {metric!r} can't judge {task}; {' and '.join(suited)} can")
    if metric == "entity_f1":
        tags.check_tags(names)
    return metric


def check(
    metric: str | Metric | None,
    num_classes: int,
    problem: str | None = None,
    names: Sequence[Any] | None = None,
) -> None:
    """Try a metric on a few made-up rows, so that it doesn't fail after hours of training.

    Args:
        metric: a key of `METRICS`, a function, or None.
        num_classes: C, how many outputs there are.
        problem: the model's; None is classification, or with one output regression.
        names: the classes' names, or None.

    Raises:
        ValueError: as `fitting` and `measure` do.

    Example:
        >>> import multiexit as mx
        >>> mx.metrics.check(lambda predicted_N, labels_N: {"mean": 0.5}, num_classes=2)
        Traceback (most recent call last):
        ValueError: the metric '<lambda>' gives ['mean']; one entry must be 'score', to compare by
    """
    problem = problems.resolve(problem, num_classes)
    metric = fitting(metric, num_classes, problem, names)
    num_labels = {"regression": 3, "multi-label": 2}.get(problem, num_classes)
    labels_N = np.arange(4 * num_labels) % num_labels
    predicted_N = np.where(
        np.arange(4 * num_labels) < 2 * num_labels, labels_N, np.roll(labels_N, 1)
    )
    if problem == "regression":
        predicted_N, labels_N = (x.astype(np.float32) / 2 for x in (predicted_N, labels_N))
    if problem == "multi-label" or (problem == "regression" and num_classes > 1):
        predicted_N, labels_N = (
            np.stack([np.roll(x, output) for output in range(num_classes)], -1)
            for x in (predicted_N, labels_N)
        )
    if problem == "token-classification":
        predicted_N, labels_N = (x.reshape(2, -1) for x in (predicted_N, labels_N))
    if problems.are_vectors(problem):
        predicted_N, labels_N = np.random.default_rng(0).normal(size=(2, 8, num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure(metric, predicted_N, labels_N, num_classes, problem, names)


def measure(
    metric: str | Metric,
    predicted_N: NDArray[Any],
    labels_N: NDArray[Any],
    num_classes: int,
    problem: str | None = None,
    names: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Judge answers by a metric.

    Args:
        metric: a key of `METRICS`, or a function.
        predicted_N: the answers (`multiexit.problems.answer`): class numbers [N], floats of
            regression [N] or [N, C], 0 and 1 of several labels [N, C], classes of tokens [N, T],
            vectors [N, C].
        labels_N: the labels, of the same shape; −100 of tokens that don't count.
        num_classes: C, how many outputs there are.
        problem: the model's; None is classification, or with one output regression.
        names: the classes' names, or None.

    Returns:
        Figures by name, `"score"` first; a function's single number under its own name too.

    Raises:
        ValueError: no finite number, no dict of them with a `"score"`, or an error in the metric.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> def right(predicted_N, labels_N):
        ...     return (predicted_N == labels_N).sum()
        >>> mx.metrics.measure(right, np.array([0, 1, 1]), np.array([0, 1, 0]), num_classes=2)
        {'score': 2.0, 'right': 2.0}
    """
    function = METRICS[metric] if isinstance(metric, str) else metric
    answers: tuple[Any, Any] = predicted_N, labels_N
    if problem == "token-classification":
        rows = function is entity_f1
        answers = tags.by_row(*answers, names) if rows else tags.flat(*answers)
    if function is accuracy_f1 and num_classes > 2:
        function = accuracy_macro_f1
    title = f"the metric {name(metric)!r}"
    try:
        result = function(*answers)
    except Exception as error:
        task = _task(num_classes, problems.resolve(problem, num_classes))
        raise ValueError(f"{title} can't judge {task}: {error}") from error
    if isinstance(result, Mapping) and "score" not in result:
        raise ValueError(
            f"{title} gives {sorted(result)}; one entry must be 'score', to compare by"
        )
    scores = (
        dict(result) if isinstance(result, Mapping) else {"score": result, name(metric): result}
    )
    values = {str(key): _as_float(value) for key, value in scores.items()}
    if bad := {key: scores[key] for key, value in values.items() if not isfinite(value)}:
        raise ValueError(f"{title} must give finite numbers; it gives {bad}")
    return {"score": values["score"], **values}


def _task(num_classes: int, problem: str) -> str:
    """A model's answers, for a message."""
    return {
        "classification": f"{num_classes} classes",
        "regression": f"regression (num_classes={num_classes})",
        "multi-label": f"{num_classes} labels a row",
        "token-classification": f"tokens of {num_classes} classes",
        "embedding": f"vectors of {num_classes} entries",
    }[problem]


def name(metric: str | Metric | None) -> str:
    """The name of a metric; a function goes by its own.

    Example:
        >>> import multiexit as mx
        >>> mx.metrics.name(mx.metrics.matthews), mx.metrics.name("accuracy")
        ('matthews', 'accuracy')
    """
    if metric is None or isinstance(metric, str):
        return str(metric)
    return getattr(metric, "__qualname__", None) or type(metric).__qualname__


def _as_float(value: Any) -> float:
    """A number of any library as a float; NaN for what is none."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")


def label(metric: str) -> str:
    """The name of an axis or column of this metric's score.

    Example:
        >>> import multiexit as mx
        >>> mx.metrics.label("accuracy"), mx.metrics.label("mine")
        ('accuracy (%)', 'mine (%)')
    """
    named = {**OF_TAGS, **OF_VALUES, **OF_LABELS, **OF_VECTORS}
    return named.get(metric, f"{metric} (%)")
