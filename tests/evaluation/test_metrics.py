"""The metrics against their plain formulas."""

import json
import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import WIDTH, Table, chain, config, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import multiexit as mx
from multiexit.evaluation import metrics, results
from multiexit.evaluation.metrics import METRICS
from multiexit.problems import PROBLEMS

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


@given(SCORES)
@settings(deadline=None)
def test_variance_explained(rows):
    x, y = (list(map(float, column)) for column in zip(*rows, strict=True))
    got = run("r2", [list(map(float, row)) for row in rows])["r2"]
    missed = sum((b - a) ** 2 for a, b in zip(x, y, strict=True))
    if len(set(y)) == 1:
        assert got == float(missed == 0)
    else:
        assert got == pytest.approx(1 - missed / sum((b - sum(y) / len(y)) ** 2 for b in y))


def test_the_first_entry_is_the_score():
    rows = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    for name, metric in METRICS.items():
        of_labels = name in metrics.SUITED["multi-label"]
        answers = tuple(np.stack([x, x], 1) for x in rows) if of_labels else rows
        if name == "entity_f1":
            answers = tuple([[f"B-{kind}" for kind in x]] for x in rows)
        if name == "cosine":
            answers = tuple(np.stack([x, 1 - x], 1) for x in rows)
        got = metric(*answers)
        assert next(iter(got)) == "score", name
        assert all(type(value) is float for value in got.values()), name


def test_one_row_is_no_correlation():
    assert METRICS["pearson_spearman"](np.array([1.0]), np.array([2.0]))["score"] == 0.0


def test_more_than_two_classes():
    got = METRICS["accuracy"](np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1]))
    assert got["score"] == 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(deadline=None)
def test_f1_of_more_than_two_classes_is_the_mean_over_those_that_occur(rows):
    predicted, labels = np.array(rows).T
    got = metrics.measure("accuracy_f1", predicted, labels, 4)
    f1s = []
    for c in sorted({value for pair in rows for value in pair}):
        tp, fp, _, fn = counts([(int(p == c), int(y == c)) for p, y in rows])
        f1s.append(2 * tp / (2 * tp + fp + fn))
    assert got["macro_f1"] == pytest.approx(sum(f1s) / len(f1s))
    assert got["score"] == pytest.approx((got["accuracy"] + got["macro_f1"]) / 2)


def test_f1_of_two_classes_is_that_of_class_1():
    predicted, labels = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert metrics.measure("accuracy_f1", predicted, labels, 2)["f1"] == pytest.approx(2 / 3)


# Metrics and tasks


def no_score(predicted, labels):
    return {"macro_f1": 0.5}


def of_one_argument(predicted):
    return 1.0


@pytest.mark.parametrize(
    ("metric", "classes", "message"),
    [
        ("bleu", 2, "no metric 'bleu'; there are"),
        ("accuracy", 1, "'accuracy' can't judge regression.*pearson_spearman and r2 can"),
        ("accuracy_f1", 1, "can't judge regression"),
        ("matthews", 1, "can't judge regression"),
        ("pearson_spearman", 3, "'pearson_spearman' can't judge 3 classes; accuracy and"),
        (no_score, 3, r"'no_score' gives \['macro_f1'\]; one entry must be 'score'"),
        (of_one_argument, 2, "'of_one_argument' can't judge 2 classes"),
        (lambda p, y: None, 2, r"finite numbers; it gives {'score': None"),
        (lambda p, y: {"score": 1.0, "roc": math.nan}, 2, r"finite numbers; it gives {'roc': nan}"),
        (lambda p, y: math.inf, 1, "finite numbers"),
        (lambda p, y: True, 2, "finite numbers"),
        (lambda p, y: np.ones(2), 2, "finite numbers"),
        (lambda p, y: {"score": "good"}, 2, "finite numbers"),
    ],
)
def test_a_metric_that_cannot_judge_the_model_is_refused_before_training(metric, classes, message):
    model = chain(2, classes=classes)
    recipe = replace(mx.recipes.joint(), policy=mx.FixedExit(0))
    with pytest.raises(ValueError, match=message):
        mx.Trainer(
            model, recipe, mx.TrainConfig(metric=metric) if callable(metric) else named(metric)
        )


def named(metric):
    """A configuration with a metric that may not be there."""
    with patch.dict(METRICS, {metric: METRICS.get(metric)}):
        made = mx.TrainConfig(metric=metric)
    return made


@pytest.mark.parametrize("classes", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("problem", "metric"),
    [(problem, name) for problem, suited in metrics.SUITED.items() for name in (None, *suited)],
)
def test_the_others_are_tried_and_pass(problem, metric, classes):
    if classes >= PROBLEMS[problem].least:
        metrics.check(metric, classes, problem, ["O", *(f"B-{i}" for i in range(1, classes))])


def test_a_metric_registered_by_name_is_tried_too():
    with patch.dict(METRICS, {"mine": no_score}), pytest.raises(ValueError, match="'mine' gives"):
        metrics.check("mine", 3)


def share_of_class_0(predicted, labels):
    assert predicted.shape == labels.shape
    return np.float32((predicted == 0).mean())


class Weighed:
    """A metric that is an object."""

    def __call__(self, predicted, labels):
        return {"other": 1, "score": torch.tensor(0.5)}


@pytest.mark.parametrize("metric", [share_of_class_0, Weighed()])
def test_a_function_judges_a_run_and_is_written_by_its_name(metric, tmp_path):
    called = metrics.name(metric)
    dev = Table(9)
    history = fit(chain(2), "joint", config(metric=metric, output=tmp_path), Table(), dev)
    outputs = mx.collect(chain(2), dev, metric)
    wanted = mx.exit_scores(outputs)
    assert set(wanted[0]) == (
        {"score", called} if called == "share_of_class_0" else {"score", "other"}
    )
    assert next(iter(wanted[0])) == "score"
    best = max(row["mean"] for row in history.epochs)
    assert history.best["mean"] == best
    assert json.loads((tmp_path / "run.json").read_text())["config"]["metric"] == called
    assert json.loads((tmp_path / "history.json").read_text())["epochs"][0]["exits"][0]["score"]
    rows = mx.sweep(outputs, [mx.MaxProb(0.5)])
    assert results.results_json(outputs, rows)["metric"] == called
    again = config(metric=metric, output=tmp_path, resume=True)
    fit(chain(2), "joint", again, Table(), dev)
    with pytest.raises(ValueError, match=f"config metric \\('{called}' there, None here\\)"):
        fit(chain(2), "joint", replace(again, metric=None), Table(), dev)


def test_values_reach_a_metric_as_floats():
    seen = []

    def distance(predicted, labels):
        seen.append((predicted.dtype, labels.dtype))
        return -float(abs(predicted - labels).mean())

    rows = TensorDataset(torch.randn(8, WIDTH), torch.randn(8))
    mx.exit_scores(mx.collect(chain(2, classes=1), rows, distance))
    metrics.check(distance, 1)
    assert set(seen) == {(np.dtype("float32"), np.dtype("float32"))}


def test_tokens_without_a_label_do_not_count():
    labels = np.array([[0, 1, -100], [2, -100, -100]])
    predicted = np.array([[0, 2, 1], [2, 0, 0]])
    right = metrics.measure("accuracy", predicted, labels, 3, "token-classification")
    assert right["accuracy"] == pytest.approx(2 / 3)
    names = ["O", "B-PER", "I-PER"]
    got = metrics.measure("entity_f1", predicted, labels, 3, "token-classification", names)
    # Of O B-PER | I-PER, which begins an entity by itself, O I-PER | I-PER is said.
    assert got["f1"] == got["score"] == 1.0
    nothing = np.full_like(labels, -100)
    with pytest.raises(ValueError, match="no token that is asked for has a label"):
        metrics.measure("accuracy", predicted, nothing, 3, "token-classification")


def test_entities_are_read_from_tags_alone():
    for names in (None, ["no", "yes"], ["O", "B-"]):
        with pytest.raises(ValueError, match="entity_f1 reads tags such as 'O', 'B-PER'"):
            metrics.fitting("entity_f1", 2, "token-classification", names)
    with pytest.raises(ValueError, match="can't judge 2 classes"):
        metrics.fitting("entity_f1", 2)


def test_entities_are_right_as_a_whole():
    labels = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    guesses = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC"]]
    # Three entities; four are said, of which two are right.
    got = mx.metrics.entity_f1(guesses, labels)
    assert (got["precision"], got["recall"]) == (0.5, pytest.approx(2 / 3))
    assert got["f1"] == pytest.approx(2 * 2 / (3 + 4))
