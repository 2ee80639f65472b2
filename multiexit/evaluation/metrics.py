"""GLUE's metrics, accuracy, and a user's own: from answers and labels to named scores.

A metric takes answers [N] and labels [N] as arrays: class numbers, or for regression floats. It
gives a number, or a dict of numbers in which `"score"` is the one to compare by: more is better.
Where tokens are classified, [N] are all tokens that are asked for and have a label; `entity_f1`
alone reads rows, of tags in place of numbers.

scikit-learn and SciPy are imported where they are used: together they take as long as torch.
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
from multiexit.evaluation.tags import entity_f1

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

    A constant prediction correlates with nothing: 0. Of several numbers a row, [N, C], it is the
    mean over them.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> scores = mx.metrics.pearson_spearman(np.array([1, 2, 9]), np.array([1, 2, 3]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'score': 0.959, 'pearson': 0.918, 'spearman': 1.0}
    """
    from scipy.stats import pearsonr, spearmanr

    if predicted_N.ndim == 2:
        parts = [
            pearson_spearman(*columns) for columns in zip(predicted_N.T, labels_N.T, strict=True)
        ]
        return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    if len(labels_N) < 2 or np.ptp(predicted_N) == 0 or np.ptp(labels_N) == 0:
        return {"score": 0.0, "pearson": 0.0, "spearman": 0.0}
    pearson = float(pearsonr(predicted_N, labels_N)[0])  # type: ignore[arg-type]
    spearman = float(spearmanr(predicted_N, labels_N)[0])  # type: ignore[arg-type]
    return {"score": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def r2(predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]) -> dict[str, float]:
    """The share of the labels' variance that the answers explain, R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)².

    1 is exact, 0 as good as their mean ȳ, and less than 0 worse. Unlike correlations it sees that
    answers are off by a factor or a constant. Of several numbers a row, [N, C], it is the mean over
    them. Of labels that are all the same it is 0, or 1 where every answer is that label.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> mx.metrics.r2(np.array([2, 4, 6]), np.array([1, 2, 3]))
        {'score': -6.0, 'r2': -6.0}
    """
    from sklearn.metrics import r2_score

    if len(labels_N) < 2:  # which scikit-learn has no answer for
        value = float(np.array_equal(predicted_N, labels_N))
    else:
        value = float(r2_score(labels_N, predicted_N))
    return {"score": value, "r2": value}


def micro_f1(predicted_NC: NDArray[np.generic], labels_NC: NDArray[np.generic]) -> dict[str, float]:
    """F1 of the yeses of all labels together, and the share of rows that are all right, in 0..1.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> scores = mx.metrics.micro_f1(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'score': 0.8, 'micro_f1': 0.8, 'macro_f1': 0.833, 'subset_accuracy': 0.5}
    """
    from sklearn.metrics import f1_score

    yes_NC = labels_NC.astype(float) > 0.5  # of shares, the likelier
    micro, macro = (
        float(f1_score(yes_NC, predicted_NC, average=average, zero_division=0.0))  # type: ignore[arg-type]
        for average in ("micro", "macro")
    )
    whole = subset_accuracy(predicted_NC, labels_NC)["score"]
    return {"score": micro, "micro_f1": micro, "macro_f1": macro, "subset_accuracy": whole}


def subset_accuracy(
    predicted_NC: NDArray[np.generic], labels_NC: NDArray[np.generic]
) -> dict[str, float]:
    """Share of rows whose labels are all right, in 0..1.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> mx.metrics.subset_accuracy(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]))
        {'score': 0.5, 'subset_accuracy': 0.5}
    """
    value = float((np.asarray(predicted_NC) == (labels_NC.astype(float) > 0.5)).all(1).mean())
    return {"score": value, "subset_accuracy": value}


def cosine(predicted_NC: NDArray[Any], labels_NC: NDArray[Any]) -> dict[str, float]:
    """Mean cosine of vectors to those they should be, in −1..1.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> mx.metrics.cosine(np.array([[1.0, 0], [0.6, 0.8]]), np.array([[2.0, 0], [0, 1]]))
        {'score': 0.9, 'cosine': 0.9}
    """
    lengths_N = np.linalg.norm(predicted_NC, axis=1) * np.linalg.norm(labels_NC, axis=1)
    value = float(np.mean((predicted_NC * labels_NC).sum(1) / lengths_N))
    return {"score": value, "cosine": value}


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
