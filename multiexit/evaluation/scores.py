"""The scores that metrics go by: of answers and labels as arrays, in which more is better.

Each takes answers [N] and labels [N], or of several labels and numbers [N, C], and gives named
figures, of which `"score"` is the one to compare by. scikit-learn and SciPy are imported where they
are used: together they take as long as torch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    return _with_f1("f1", "binary", predicted_N, labels_N)


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
    return _with_f1("macro_f1", "macro", predicted_N, labels_N)


def _with_f1(
    name: str, average: str, predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]
) -> dict[str, float]:
    """Accuracy, F1 under this name, and their mean as the score."""
    from sklearn.metrics import f1_score

    right = accuracy(predicted_N, labels_N)["accuracy"]
    f1 = float(f1_score(labels_N, predicted_N, average=average, zero_division=0.0))  # type: ignore[arg-type]
    return {"score": (right + f1) / 2, "accuracy": right, name: f1}


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
