"""GLUE's metrics, and accuracy: from predictions and labels to named scores.

Each metric gives a dict whose first entry, `"score"`, is the one to compare by. N rows.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Metric = Callable[[NDArray[np.generic], NDArray[np.generic]], dict[str, float]]


def accuracy(predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]) -> dict[str, float]:
    """Share of rows that are right (SST-2, MNLI, QNLI, RTE, CIFAR)."""
    value = float(accuracy_score(labels_N, predicted_N))
    return {"score": value, "accuracy": value}


def accuracy_f1(
    predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]
) -> dict[str, float]:
    """Accuracy, F1 of class 1, and their mean as the score (MRPC, QQP)."""
    right = float(accuracy_score(labels_N, predicted_N))
    f1 = float(f1_score(labels_N, predicted_N, zero_division=0.0))  # type: ignore[arg-type]
    return {"score": (right + f1) / 2, "accuracy": right, "f1": f1}


def matthews(predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]) -> dict[str, float]:
    """Matthews' correlation coefficient (CoLA)."""
    value = float(matthews_corrcoef(labels_N, predicted_N))
    return {"score": value, "mcc": value}


def pearson_spearman(
    predicted_N: NDArray[np.generic], labels_N: NDArray[np.generic]
) -> dict[str, float]:
    """Pearson's and Spearman's correlations, and their mean as the score (STS-B).

    A constant prediction correlates with nothing: 0.
    """
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
