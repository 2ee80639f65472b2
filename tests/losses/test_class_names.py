"""How many classes a model has, and what they are called, from whatever holds that."""

import enum
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multiexit as mx
from multiexit.losses import class_names


class Kind(enum.StrEnum):
    NO = "neg"
    YES = "pos"


@pytest.mark.parametrize(
    "labels",
    [
        ["neg", "pos"],
        ("neg", "pos"),
        {"pos": 1, "neg": 0},
        {1: "pos", 0: "neg"},
        {"1": "pos", "0": "neg"},
        {np.int64(0): "neg", np.int64(1): np.str_("pos")},
        {"neg": torch.tensor(0).item(), "pos": np.int64(1)},
        {False: "neg", True: "pos"},
        np.array(["neg", "pos"]),
        pd.Series(["pos", "neg", "pos"])[lambda s: s.index > 0][::1],
        pd.Index(["neg", "pos"]),
        pd.Series(["neg", "pos"], index=[7, 3]),
        pd.Categorical(["pos", "neg"]).categories,
        {"neg": 0, "pos": 1}.keys().__iter__(),
        Kind,
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_names_come_in_the_order_of_their_numbers(labels):
    made = class_names.names(labels, 2)
    assert made == ["neg", "pos"]
    assert all(type(name) is str for name in made)


@given(st.lists(st.text(), min_size=1, max_size=9, unique=True), st.randoms())
def test_both_mappings_say_the_same_in_any_order(names, random):
    pairs = list(enumerate(names))
    random.shuffle(pairs)
    wanted = list(names)
    by_number = dict(pairs)
    assert class_names.names(by_number, len(names)) == wanted
    assert class_names.names(json.loads(json.dumps(by_number)), len(names)) == wanted
    by_name = {name: number for number, name in pairs}
    digits = all(name.isascii() and name.isdecimal() for name in names)
    if not digits or sorted(map(int, names)) != list(range(len(names))):
        assert class_names.names(by_name, len(names)) == wanted


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (np.unique([3, 7]), [3, 7]),
        (torch.tensor([3, 7]), [3, 7]),
        ({"3": 0, "7": 1}, ["3", "7"]),
        ({0: 3, 1: 7}, [3, 7]),
        ({3: 0, 7: 1}, [3, 7]),
        ({0: 0, 1: 1}, [0, 1]),
        ([False, np.True_], [False, True]),
        ([np.float32(0.5), 2.0], [0.5, 2.0]),
    ],
)
def test_numbers_as_names_are_plain(labels, wanted):
    made = class_names.names(labels, 2)
    assert made == wanted
    assert list(map(type, made)) == list(map(type, wanted))
    json.dumps(made)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("ab", "a list of 2 names.*got 'ab'"),
        (b"ab", "a list of 2 names"),
        ({"a", "b"}, "a set, which has no order"),
        (frozenset("ab"), "a set"),
        (5, "a list of 2 names.*got 5"),
        (["x", "x"], r"must differ; \['x'\]"),
        ([1, "1"], "must differ"),
        (["a"], "1 label names for 2 classes"),
        (["a", "b", "c"], "3 label names for 2 classes"),
        (["a", None], r"labels\[1\] is missing"),
        ([float("nan"), "a"], r"labels\[0\] is missing"),
        (["a", pd.NA], r"labels\[1\] is missing"),
        (["a", b"b"], r"labels\[1\] is b'b'"),
        ([["a"], ["b"]], r"labels\[0\] is \['a'\]"),
        ({1: "a", 2: "b"}, "doesn't number the classes"),
        ({0: "a"}, "doesn't number the classes"),
        ({"a": 0, "b": 2}, "doesn't number the classes"),
        ({"a": 0, "b": 0}, "doesn't number the classes"),
        ({}, "doesn't number the classes"),
        ({0: "x", 1: "x"}, "must differ"),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_what_names_no_classes_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        class_names.names(labels, 2)


def test_a_mapping_that_can_be_read_either_way_is_refused():
    assert class_names.names({0: 1, 1: 0}, 2) == [1, 0]
    with pytest.raises(ValueError, match="either way"):
        class_names.names({0: 1, 1: 2, 2: 0}, 3)


@pytest.mark.parametrize("number", [2, np.int64(2), np.uint8(2)])
def test_a_whole_number_of_any_kind_counts(number):
    assert type(class_names.count(number)) is int


@pytest.mark.parametrize("number", [True, np.True_, 0, -1, 2.0, "2", torch.tensor(2)])
def test_anything_else_is_no_number_of_classes(number):
    with pytest.raises(ValueError, match="num_classes must be a whole number from 1"):
        class_names.count(number)


def test_a_model_keeps_and_saves_them(tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20, size=8), np.int64(2), labels=np.unique([3, 7]))
    model.save_pretrained(tmp_path)
    loaded = mx.MultiExitModel.from_pretrained(tmp_path)
    assert (loaded.num_classes, loaded.labels) == (2, [3, 7])
    named = mx.MultiExitModel(mx.cifar_resnet(20, size=8), 2, labels={"pos": 1, "neg": 0})
    assert named.labels == ["neg", "pos"]
