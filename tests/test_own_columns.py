"""Own data that was once read, or written, as something else without a word."""

import json
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import torch
from helpers import command
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import multiexit as mx
from multiexit.data import load

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film"]


@pytest.fixture(scope="module")
def tokenizer():
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """The folder of a model that was trained on a column `review`."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=len(WORDS), intermediate_size=16, **sizes))
    model = mx.MultiExitModel(mx.wrap(bert), 2, labels=["no", "yes"]).eval()
    model.policy = mx.MaxProb(0.6)
    data = {"text": "review", "label": ["stars"]}
    model.preprocessing = {"kind": "text", "max_length": 16, "pairs": False, "data": data}
    folder = tmp_path_factory.mktemp("models") / "saved"
    model.save_pretrained(folder, tokenizer)
    return folder


def quiet(_):
    pass


def texts(count: int, label=lambda row: "ab"[row % 2]) -> list[dict[str, Any]]:
    return [{"text": f"good film {row}", "label": label(row)} for row in range(count)]


def write_lines(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def parquet(path, **columns):
    names, arrays = zip(*columns.items(), strict=True)
    pyarrow.parquet.write_table(pyarrow.table(list(arrays), names=list(names)), path)
    return path


def doubled(path):
    columns = [["good", "bad"] * 6, ["a", "b"] * 6, ["c", "d"] * 6]
    table = pyarrow.Table.from_arrays([*map(pyarrow.array, columns)], ["text", "label", "label"])
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1e300, 0.5, 1.5], r"row 0: a number beyond 1e\+18, whose.*, 1e\+300; 4 such rows"),
        ([["a", None], ["b"], ["c"]], "row 0: a label that is no name and no number"),
        (["a\ud800", "b", "c"], r"row 0: a label with half a character \(a lone surrogate\)"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message, tokenizer):
    table = [{"text": f"good {row}", "label": labels[row % 3]} for row in range(12)]
    with pytest.raises(ValueError, match=message):
        load(table, tokenizer, text="text", notes=quiet)


def test_bytes_of_a_parquet_file_are_no_label_and_two_columns_of_one_name_are_none(
    tokenizer, tmp_path
):
    texts = ["good", "bad"] * 6
    path = parquet(tmp_path / "a.parquet", text=texts, label=[b"a", b"b"] * 6)
    with pytest.raises(ValueError, match="a label that is no name and no number, b'a'"):
        load(path, tokenizer, text="text", notes=quiet)
    with pytest.raises(ValueError, match=r"b\.parquet: the column 'label' twice"):
        load(doubled(tmp_path / "b.parquet"), tokenizer, notes=quiet)


def test_of_several_columns_the_one_that_is_wrong_is_shown(tokenizer):
    pairs = [{"text1": "good", "text2": ("bad", "")[row], "label": row} for row in (0, 1)]
    with pytest.raises(ValueError, match=r"row 1: an empty text2, ''\."):
        load(pairs, tokenizer, notes=quiet)
    several = [{"text": "good", "fun": "yes", "long": ("no", "")[row]} for row in (0, 1)]
    with pytest.raises(ValueError, match=r"row 1: no label in 'long'"):
        load(several, tokenizer, label=["fun", "long"], notes=quiet)


def test_files_that_are_read_as_one_are_named_and_splits_of_two_names_refused(tokenizer, tmp_path):
    said = []
    for name in ("reviews.jsonl", "old.jsonl"):
        write_lines(tmp_path / name, texts(10))
    load(tmp_path, tokenizer, notes=said.append)
    assert f"train is 2 files of {tmp_path}: old.jsonl, reviews.jsonl" in said
    for name in ("train-1.jsonl", "train_2.jsonl", "dev.jsonl"):
        write_lines(tmp_path / "splits" / name, texts(10))
    load(tmp_path / "splits", tokenizer, notes=said.append)
    assert f"train is 2 files of {tmp_path / 'splits'}: train-1.jsonl, train_2.jsonl" in said
    write_lines(tmp_path / "splits" / "val.jsonl", texts(10))
    with pytest.raises(ValueError, match=r"dev.jsonl, val.jsonl, each of which could be valid"):
        load(tmp_path / "splits", tokenizer, notes=quiet)


def test_what_has_no_length_and_is_no_row_is_refused(tokenizer):
    with pytest.raises(ValueError, match="column 'text' is a generator; give a list"):
        load({"text": (word for word in "ab"), "label": [0, 1]}, tokenizer, notes=quiet)
    tensors = [{"image": torch.rand(3, 8, 8), "label": row % 2} for row in range(10)]
    with pytest.raises(ValueError, match="a image that is no image but a Tensor"):
        load(tensors, image="image", notes=quiet)


def test_only_classes_are_drawn_class_by_class(tokenizer):
    said = []
    load(texts(10, lambda row: row / 4), tokenizer, problem="regression", notes=said.append)
    assert "no validation set: 2 of 10 rows are drawn for one with seed 0" in said


def test_a_column_of_bytes_comes_out_as_it_went_in(saved, tmp_path):
    photos = [b"\0", b"\1", b"\2"]
    path = parquet(tmp_path / "in.parquet", review=["good", "bad", "film"], photo=photos)
    assert command("predict", saved, path, "--output", tmp_path / "out.parquet").code == 0
    out = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["photo"] for row in out] == photos
    for ended in (
        command("predict", saved, path, "--output", tmp_path / "out.jsonl"),
        command("predict", saved, path),
    ):
        assert (ended.code, ended.out) == (2, "")
        assert "column 'photo' holds bytes: write a .parquet file" in ended.err
    assert not list(tmp_path.glob("out.jsonl*"))


def test_whole_numbers_that_parquet_lacks_are_refused(saved, tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [{"review": "good", "big": 2**70}])
    ended = command("predict", saved, path, "--output", tmp_path / "out.parquet")
    assert ended.code == 2
    assert "column 'big' can't be parquet" in ended.err
    assert command("predict", saved, path, "--output", tmp_path / "out.jsonl").code == 0


def test_a_tsv_is_a_table_for_a_model_that_knows_its_columns(saved, tmp_path):
    path = tmp_path / "in.tsv"
    path.write_text("stars\treview\n1\tgood\n2\tbad film\n")
    answers = [json.loads(line) for line in command("predict", saved, path).out.splitlines()]
    assert [(row["stars"], row["review"]) for row in answers] == [("1", "good"), ("2", "bad film")]


def test_a_data_frame_is_no_list_of_its_columns_names(saved):
    classify = mx.Classifier.from_pretrained(saved)
    frame = pandas.DataFrame({"text": ["good", "bad"]})
    with pytest.raises(ValueError, match="a data frame, of several columns: give one"):
        classify(frame)
    assert classify(frame["text"]) == classify(["good", "bad"])
    with pytest.raises(ValueError, match="got ndarray"):
        classify(np.array("good"))
