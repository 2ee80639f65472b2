"""GLUE's metrics, accuracy, and a user's own: from answers and labels to named scores.

A metric takes answers [N] and labels [N] as arrays: class numbers, or for regression floats. It
gives a number, or a dict of numbers in which `"score"` is the one to compare by: more is better.

scikit-learn and SciPy are imported where they are used: together they take as long as torch.
"""

import warnings
from collections.abc import Callable, Mapping
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiexit.arguments import unknown

Metric = Callable[[NDArray[Any], NDArray[Any]], float | Mapping[str, float]]
"""`(predicted_N, labels_N) -> score`, or figures by name with a `"score"`."""


def accuracy(predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]) -> dict[str, float]:
    """Share of rows that are right, in 0..1 (SST-2, MNLI, QNLI, RTE, CIFAR).

    Example:
        >>> import numpy as np, multiexit as mx
        >>> mx.metrics.accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1]))
        {'score': 0.75, 'accuracy': 0.75}
    """
    from sklearn.metrics import accuracy_score

    value = float(accuracy_score(labels_N, predicted_N))
    return {"score": value, "accuracy": value}


def accuracy_f1(
    predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]
) -> dict[str, float]:
    """Accuracy, F1 of class 1, and their mean as the score, in 0..1 (MRPC, QQP).

    Example:
        >>> import numpy as np, multiexit as mx
        >>> scores = mx.metrics.accuracy_f1(np.array([1, 1, 0, 0]), np.array([1, 1, 1, 0]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'score': 0.775, 'accuracy': 0.75, 'f1': 0.8}
    """
    from sklearn.metrics import accuracy_score, f1_score

    right = float(accuracy_score(labels_N, predicted_N))
    f1 = float(f1_score(labels_N, predicted_N, zero_division=0.0))  # type: ignore[arg-type]
    return {"score": (right + f1) / 2, "accuracy": right, "f1": f1}


def accuracy_macro_f1(
    predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]
) -> dict[str, float]:
    """Accuracy, F1 averaged over the classes that occur, and their mean as the score, in 0..1.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> scores = mx.metrics.accuracy_macro_f1(np.array([0, 1, 2, 0]), np.array([0, 1, 2, 2]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'score': 0.764, 'accuracy': 0.75, 'macro_f1': 0.778}
    """
    from sklearn.metrics import accuracy_score, f1_score

    right = float(accuracy_score(labels_N, predicted_N))
    f1 = float(f1_score(labels_N, predicted_N, average="macro", zero_division=0.0))  # type: ignore[arg-type]
    return {"score": (right + f1) / 2, "accuracy": right, "macro_f1": f1}


def matthews(predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]) -> dict[str, float]:
    """Matthews' correlation coefficient, in −1..1 (CoLA).

    Example:
        >>> import numpy as np, multiexit as mx
        >>> scores = mx.metrics.matthews(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
        >>> round(scores["mcc"], 3)
        0.577
    """
    from sklearn.metrics import matthews_corrcoef

    value = float(matthews_corrcoef(labels_N, predicted_N))
    return {"score": value, "mcc": value}


def pearson_spearman(
    predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]
) -> dict[str, float]:
    """Pearson's and Spearman's correlations, and their mean as the score, in −1..1 (STS-B).

    A constant prediction correlates with nothing: 0.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> scores = mx.metrics.pearson_spearman(np.array([1, 2, 9]), np.array([1, 2, 3]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'score': 0.959, 'pearson': 0.918, 'spearman': 1.0}
    """
    from scipy.stats import pearsonr, spearmanr

    if len(labels_N) < 2 or np.ptp(predicted_N) == 0 or np.ptp(labels_N) == 0:
        return {"score": 0.0, "pearson": 0.0, "spearman": 0.0}
    pearson = float(pearsonr(predicted_N, labels_N)[0])  # type: ignore[arg-type]
    spearman = float(spearmanr(predicted_N, labels_N)[0])  # type: ignore[arg-type]
    return {"score": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "accuracy_f1": accuracy_f1,
    "matthews": matthews,
    "pearson_spearman": pearson_spearman,
}
"""Metrics by name. Of more than two classes `"accuracy_f1"` is `accuracy_macro_f1`."""

OF_CLASSES = {
    "accuracy": "accuracy (%)",
    "accuracy_f1": "mean of accuracy and F1 (%)",
    "matthews": "Matthews' correlation (× 100)",
}
OF_VALUES = {"pearson_spearman": "mean of Pearson's and Spearman's correlation (× 100)"}
"""What a metric of `METRICS` judges, with the name of an axis or column of its score."""


def fitting(metric: str | Metric | None, num_classes: int) -> str | Metric:
    """A metric that suits so many classes; for None accuracy, or Pearson and Spearman of one.

    Args:
        metric: a key of `METRICS`, a function, or None.
        num_classes: C, 1 for regression.

    Raises:
        ValueError: an unknown name, or a metric of classes for regression or the other way round.

    Example:
        >>> import multiexit as mx
        >>> mx.metrics.fitting(None, num_classes=3), mx.metrics.fitting(None, num_classes=1)
        ('accuracy', 'pearson_spearman')
    """
    suited, others = (OF_CLASSES, OF_VALUES) if num_classes > 1 else (OF_VALUES, OF_CLASSES)
    if metric is None:
        return next(iter(suited))
    if callable(metric):
        return metric
    if metric not in METRICS:
        raise ValueError(f"{unknown('metric', metric, sorted(METRICS))}, or give a function")
    if metric in others:
        task = f"{num_classes} classes" if num_classes > 1 else "regression (num_classes=1)"
        raise ValueError(f"metric {metric!r} can't judge {task}; {' and '.join(suited)} can")
    return metric


def check(metric: str | Metric | None, num_classes: int) -> None:
    """Try a metric on a few made-up rows, so that it doesn't fail after hours of training.

    Args:
        metric: a key of `METRICS`, a function, or None.
        num_classes: C, 1 for regression.

    Raises:
        ValueError: as `fitting` and `measure` do.

    Example:
        >>> import multiexit as mx
        >>> mx.metrics.check(lambda predicted_N, labels_N: {"mean": 0.5}, num_classes=2)
        Traceback (most recent call last):
        ValueError: the metric '<lambda>' gives ['mean']; one entry must be 'score', to compare by
    """
    metric = fitting(metric, num_classes)
    num_labels = num_classes if num_classes > 1 else 3
    labels_N = np.arange(4 * num_labels) % num_labels
    predicted_N = np.where(
        np.arange(4 * num_labels) < 2 * num_labels, labels_N, np.roll(labels_N, 1)
    )
    if num_classes == 1:
        predicted_N, labels_N = (x.astype(np.float32) / 2 for x in (predicted_N, labels_N))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure(metric, predicted_N, labels_N, num_classes)


def measure(
    metric: str | Metric, predicted_N: NDArray[Any], labels_N: NDArray[Any], num_classes: int
) -> dict[str, float]:
    """Judge answers by a metric.

    Args:
        metric: a key of `METRICS`, or a function.
        predicted_N: the answers [N]: class numbers, or floats of regression.
        labels_N: the labels [N].
        num_classes: C, 1 for regression.

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
    if function is accuracy_f1 and num_classes > 2:
        function = accuracy_macro_f1
    title = f"the metric {name(metric)!r}"
    try:
        result = function(predicted_N, labels_N)
    except Exception as error:
        task = f"{num_classes} classes" if num_classes > 1 else "regression"
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
    return {**OF_CLASSES, **OF_VALUES}.get(metric, f"{metric} (%)")
