"""Texts and labels from lists, arrays and tables, and the rows that can't be used."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from multiexit.data.images import ImageDataset
from multiexit.data.raw_values import numbers, strings

TABLE = pd.DataFrame({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]})
HALF = TABLE[TABLE.label == 1]  # without a row 0


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1],
        (0, 1),
        range(2),
        np.array([0, 1], dtype=np.uint8),
        torch.tensor([0, 1], dtype=torch.int16),
        [torch.tensor(0), np.int32(1)],
        [False, True],
        np.array([False, True]),
        torch.tensor([False, True]),
        pd.Series([0, 1], index=[5, 3]),
        pd.Series([0, 1], dtype="Int64"),
        pd.Series([False, True], dtype="boolean"),
        pd.Series(pd.Categorical([0, 1])),
        pd.Index([0, 1]),
        TABLE.label[:2],
        (label for label in (0, 1)),
        {"a": 0, "b": 1}.values(),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_class_numbers(labels):
    made = numbers(labels)
    assert (made.tolist(), made.dtype) == ([0, 1], torch.int64)


@pytest.mark.parametrize("scores", [[0.5, 1], np.array([0.5, 1.0]), pd.Series([0.5, 1], [8, 9])])
def test_scores(scores):
    made = numbers(scores)
    assert (made.tolist(), made.dtype) == ([0.5, 1.0], torch.float32)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["neg", "pos"], r"labels\[0\] is 'neg': give class numbers"),
        ([0, "1"], r"labels\[1\] is '1': give class numbers"),
        (pd.Series(["a", "b"], dtype="category"), r"labels\[0\] is 'a'"),
        ([1, None], r"labels\[1\] is missing"),
        ([0.5, float("nan")], r"labels\[1\] is missing"),
        (pd.Series([1, None]), r"labels\[1\] is missing"),
        (pd.Series([1, None], dtype="Int64"), r"labels\[1\] is missing"),
        ([0.5, np.inf], r"labels\[1\] is inf"),
        ([0, 1j], r"labels\[1\] is 1j"),
        ([0, 2**63], r"labels\[1\] is 9223372036854775808"),
        ([[0, 1], [1]], r"rows of \[1, 2\] numbers; all must have as many"),
        ([[0, 1], [1, None]], r"labels\[1\]\[1\] is missing"),
        ([[0, 1], [1, "a"]], r"labels\[1\]\[1\] is 'a': give class numbers"),
        ([0, [1, 2]], r"one number a row, \[N\], or several, \[N, C\]; got shape \(2, 2\)"),
        (np.zeros((2, 2, 3)), r"got shape \(2, 2, 3\)"),
        (torch.zeros(2, 1, 1), r"one number a row.*got shape \(2, 1, 1\)"),
        ({0: 1, 1: 0}, "a list of numbers, one a row, got dict"),
        ({0, 1}, "got set"),
        ("01", "got str"),
        (1, "got int"),
        (np.array(1), r"one number a text, got shape \(\)"),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_labels_that_are_no_numbers_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        numbers(labels)


@pytest.mark.parametrize(
    "texts",
    [
        ["b", "d"],
        np.array(["b", "d"]),
        HALF.text,
        HALF.text.astype("string"),
        pd.Index(["b", "d"]),
        iter("bd"),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_texts(texts):
    made = strings(texts)
    assert made == ["b", "d"]
    assert all(type(text) is str for text in made)


def test_texts_of_all_planes_pass():
    texts = ["", "\0", "ä\u2028", "😀", "\ufffd", "\udc80".encode("utf-8", "replace").decode()]
    assert strings(texts) == texts


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("ab", "texts is one string"),
        (["fine", json.loads('"cut \\ud83d"')], r"texts\[1\] holds '\\ud83d', half a character"),
        (["\udcff"], r"texts\[0\] holds '\\udcff'"),
        (["a", None], r"texts\[1\] is None"),
        (["a", float("nan")], r"texts\[1\] is nan"),
        (pd.Series(["a", pd.NA], dtype="string"), r"texts\[1\] is <NA>"),
        (["a", b"b"], r"texts\[1\] is b'b'"),
        ([["a", "b"]], r"texts\[0\] is \['a', 'b'\]"),
        ({"a": 1}, "a list of strings, one a row, got dict"),
        ({"a", "b"}, "got set"),
        (b"ab", "got bytes"),
        (TABLE, r"one string a text, got shape \(4, 2\)"),
        (5, "got int"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_texts_that_cannot_be_read_are_named(texts, message):
    with pytest.raises(ValueError, match=message):
        strings(texts)


@pytest.mark.parametrize("labels", [HALF.label, HALF.label.to_numpy() == 1, [1, 1]])
def test_images_take_labels_of_any_kind(labels):
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    made = ImageDataset(pixels, labels, (0.5,), (0.5,)).labels
    assert (made.tolist(), made.dtype) == ([1, 1], torch.int64)
    with pytest.raises(ValueError, match=r"labels\[0\] is 'cat'"):
        ImageDataset(pixels, ["cat", "dog"], (0.5,), (0.5,))


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 1, 1], [True, False, True]],
        [np.array([0, 1, 1]), torch.tensor([1, 0, 1])],
        np.array([[0, 1, 1], [1, 0, 1]]),
        torch.tensor([[0, 1, 1], [1, 0, 1]]),
        pd.Series([[0, 1, 1], (1, 0, 1)]),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_several_labels_a_row(labels):
    got = numbers(labels)
    assert got.dtype == torch.int64
    assert got.tolist() == [[0, 1, 1], [1, 0, 1]]
    assert numbers([[0.5, 1], [1, 0]]).dtype == torch.float32
