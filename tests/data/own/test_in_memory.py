"""Tables in memory, as other libraries hold them."""

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from multiexit.data import load
from multiexit.data.text import TextDataset

TEXTS = [f"good film {row}" for row in range(20)]


def quiet(_):
    pass


def several(names, numbers):
    features = {
        "text": datasets.Value("string"),
        "labels": datasets.Sequence(datasets.ClassLabel(names=names)),
    }
    data = {"text": TEXTS, "labels": numbers}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


@pytest.mark.parametrize("kind", ["memory", "parquet"])
def test_several_labels_are_called_as_the_set_calls_them(kind, tokenizer, tmp_path):
    splits = {
        "train": several(["z", "a", "m"], [[0], [0, 1]] * 10),
        "validation": several(["a", "m", "z"], [[2], [0, 2]] * 10),
    }
    source = datasets.DatasetDict(splits)
    if kind == "parquet":
        source = tmp_path
        for split, data in splits.items():
            data.to_parquet(str(tmp_path / f"{split}.parquet"))
    task = load(source, tokenizer, notes=quiet)
    assert task.labels == ("z", "a", "m")
    expected = [[1, 0, 0], [1, 1, 0]] * 10
    assert task.train.labels.tolist() == task.sets["validation"].labels.tolist() == expected
    other = datasets.DatasetDict(splits | {"validation": several(["a", "other"], [[0], [1]] * 10)})
    with pytest.raises(ValueError, match="row 1: a label 'other' that isn't among z, a, m"):
        load(other, tokenizer, notes=quiet)


class Series:
    """A column of polars: what it has of pandas' is no `tolist`."""

    def __init__(self, values):
        self.to_list = lambda: list(values)


class Frame:
    """A table of polars: what multiexit may ask of one."""

    def __init__(self, **columns):
        self.columns, self.values = list(columns), columns

    def to_dict(self):
        return {name: Series(values) for name, values in self.values.items()}

    def __getitem__(self, name):
        return Series(self.values[name])


class LazyFrame:
    columns = ("text", "label")

    def collect(self):
        raise AssertionError("only the user knows whether that fits")


def test_frames_of_polars_are_read(tokenizer):
    task = load(Frame(text=TEXTS, label=["z", "a"] * 10), tokenizer, notes=quiet)
    assert (task.labels, len(task.train)) == (("a", "z"), 16)
    with pytest.raises(ValueError, match="row 1: no label, None; 10 such rows"):
        load(Frame(text=TEXTS, label=["a", None] * 10), tokenizer, notes=quiet)
    with pytest.raises(ValueError, match=r"LazyFrame, not read yet: give data.collect\(\)"):
        load(LazyFrame(), tokenizer, notes=quiet)


def test_streams_are_refused_and_splits_of_other_names_left_alone(tokenizer):
    data = datasets.Dataset.from_dict({"text": TEXTS, "label": ["z", "a"] * 10})
    stream = data.to_iterable_dataset()
    for source in (stream, datasets.IterableDatasetDict({"train": stream})):
        with pytest.raises(ValueError, match=r"a stream \(IterableDataset\).*without streaming"):
            load(source, tokenizer, notes=quiet)
    assert len(load(list(stream.take(10)), tokenizer, notes=quiet).train) == 8
    notes = []
    splits = datasets.DatasetDict(dict.fromkeys(["train", "test", "unsupervised"], data))
    assert [*load(splits, tokenizer, notes=notes.append).sets] == ["test"]
    assert notes[0] == "data: the splits unsupervised are left alone"
    del splits["train"]
    with pytest.raises(ValueError, match="data: no training set; there is test, unsupervised"):
        load(splits, tokenizer, notes=quiet)


def test_columns_may_be_numbered(tokenizer):
    frame = pandas.DataFrame([[text, row % 2] for row, text in enumerate(TEXTS)])
    assert len(load(frame, tokenizer, text=0, label=1, notes=quiet).train) == 16
    assert load(frame, tokenizer, label=[1], notes=quiet).labels == ("0", "1")
    flipped = frame[[1, 0]].set_axis([0, 1], axis=1)
    assert load(flipped, tokenizer, label=0, notes=quiet).labels == ("0", "1")
    with pytest.raises(ValueError, match=r"no column '2'. It has \['0', '1'\]"):
        load(frame, tokenizer, text=0, label=2, notes=quiet)


def pixels_of(kind):
    """Twenty images, as arrays of one kind."""
    wide = np.random.default_rng(0).integers(0, 255, (20, 18, 24, 3), dtype=np.uint8)
    return {
        "[H, W, C]": [*wide],
        "[C, H, W]": [torch.from_numpy(image).permute(2, 0, 1) for image in wide],
        "pillow": [Image.fromarray(image) for image in wide],
    }[kind]


def test_pixels_are_the_images_that_pillow_has_of_them(tokenizer):
    there = None
    for kind in ("pillow", "[H, W, C]", "[C, H, W]"):
        rows = [{"image": image, "label": row % 2} for row, image in enumerate(pixels_of(kind))]
        task = load(rows, size=16, augment="none", notes=quiet)
        there = there or task
        for (one, _), (other, _) in zip(task.train, there.train, strict=True):
            assert torch.equal(one, other)
    grey = load({"image": np.stack(pixels_of("[H, W, C]"))[..., 0], "label": [0, 1] * 10}, size=16)
    assert grey.train[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("image", "named", "message"),
    [
        (
            torch.rand(3, 16, 16),
            None,
            "'image' is a Tensor of torch.float32, .* wanted are files'.*uint8",
        ),
        (np.zeros((16, 16, 3)), "image", "is no image but a ndarray of float64: wanted are files'"),
        ([[[0, 1]]], None, "'image' is a list of lists, .* wanted are files'"),
        (
            np.zeros((3, 16, 3), np.uint8),
            None,
            r"shape \(3, 16, 3\), which could be \[H, W, C\] or",
        ),
        (
            np.zeros((5, 16, 5), np.uint8),
            None,
            "'image' is a ndarray of uint8, which can't be read",
        ),
    ],
)
def test_other_arrays_are_no_images(image, named, message):
    rows = [{"image": image, "label": row % 2} for row in range(20)]
    with pytest.raises(ValueError, match=message):
        load(rows, size=16, image=named, notes=quiet)


def test_no_tokenizer_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="tokenizer is a NoneType: give one of transformers"):
        TextDataset.from_texts(None, ["a fine film"])
