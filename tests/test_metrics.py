"""The metrics against their plain formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiexit.metrics import METRICS

LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
SCORES = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=20
)  # many ties


def counts(rows: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    """True and false positives, true and false negatives, of (predicted, label)."""
    return tuple(rows.count(pair) for pair in ((1, 1), (1, 0), (0, 0), (0, 1)))


def run(name: str, rows: list) -> dict[str, float]:
    predicted, labels = np.array(rows).T
    return METRICS[name](predicted, labels)


@given(LABELS)
@settings(deadline=None)
def test_accuracy_and_f1(rows):
    tp, fp, tn, fn = counts(rows)
    got = run("accuracy_f1", rows)
    assert got["accuracy"] == pytest.approx((tp + tn) / len(rows))
    assert got["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0.0)
    assert got["score"] == pytest.approx((got["accuracy"] + got["f1"]) / 2)
    assert run("accuracy", rows) == {"score": got["accuracy"], "accuracy": got["accuracy"]}


@given(LABELS)
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_matthews(rows):
    tp, fp, tn, fn = counts(rows)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    wanted = (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0
    got = run("matthews", rows)
    assert got["score"] == got["mcc"] == pytest.approx(wanted, abs=1e-12)


def pearson(x: list[float], y: list[float]) -> float:
    mx_, my = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mx_) * (b - my) for a, b in zip(x, y, strict=True))
    below = sum((a - mx_) ** 2 for a in x) * sum((b - my) ** 2 for b in y)
    return above / math.sqrt(below)


def ranks(x: list[float]) -> list[float]:
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


@given(SCORES)
@settings(deadline=None)
def test_correlations(rows):
    x, y = (list(map(float, column)) for column in zip(*rows, strict=True))
    got = run("pearson_spearman", [list(map(float, row)) for row in rows])
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert got == {"score": 0.0, "pearson": 0.0, "spearman": 0.0}
        return
    assert got["pearson"] == pytest.approx(pearson(x, y), abs=1e-9)
    assert got["spearman"] == pytest.approx(pearson(ranks(x), ranks(y)), abs=1e-9)
    assert got["score"] == pytest.approx((got["pearson"] + got["spearman"]) / 2)


def test_the_first_entry_is_the_score():
    for name, metric in METRICS.items():
        got = metric(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
        assert next(iter(got)) == "score", name
        assert all(type(value) is float for value in got.values()), name


def test_one_row_is_no_correlation():
    assert METRICS["pearson_spearman"](np.array([1.0]), np.array([2.0]))["score"] == 0.0


def test_more_than_two_classes():
    got = METRICS["accuracy"](np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1]))
    assert got["score"] == 0.5
