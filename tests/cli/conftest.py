"""Runs of the command line that its tests look at."""

import random

import pytest
import torch
from helpers import command
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
)

from multiexit.data.digits import load as load_digits


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test asks the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A run on the digits, one epoch."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    ended = command("train", "--task", "digits", "--epochs", 1, "--output", folder)
    assert ended.code == 0, ended.err
    return folder, ended


WORDS = ["the", "a", "cat", "dog", "saw", "ate", "runs", "slept", "fish", "house", "quickly",
         "today", "not", "red", "blue", "old", "new"]  # fmt: skip


@pytest.fixture(scope="session")
def mrpc(tmp_path_factory):
    """A tiny BERT with its tokenizer, a folder of MRPC's form, and a run of it."""
    place = tmp_path_factory.mktemp("mrpc")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (place / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape = BertConfig(vocab_size=len(vocabulary), intermediate_size=32, **sizes)
    BertModel(shape).save_pretrained(place / "bert")
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place / "bert")
    draw = random.Random(0)
    (place / "glue" / "MRPC").mkdir(parents=True)
    for split, rows in (("train", 48), ("dev", 16)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for row in range(rows):
            one = " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))
            two = one if row % 2 else " ".join(draw.choices(WORDS, k=6))
            lines.append(f"{row % 2}\t{row}\t{row}\t{one}\t{two}")
        (place / "glue" / "MRPC" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    ended = command(
        *("train", "--task", "mrpc", "--backbone", place / "bert", "--epochs", 2),
        *("--batch-size", 8, "--lr", 1e-3, "--recipe", "leebert", "--option", "temperature=2"),
        *("--data-dir", place / "glue", "--output", place / "run", "--checkpoint-every", 2),
    )
    assert ended.code == 0, ended.err
    return place, ended


@pytest.fixture(scope="session")
def tiny_glue(tmp_path_factory):
    """A folder with SST-2's files of random words, and a BERT and a DistilBERT of six layers."""
    folder = tmp_path_factory.mktemp("glue")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    size = len(vocabulary)
    wide = {"num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=size, hidden_size=16, **wide))
    sizes = {"dim": 16, "n_layers": 6, "n_heads": 4, "hidden_dim": 32}
    distilled = DistilBertModel(DistilBertConfig(vocab_size=size, **sizes))
    for name, encoder in (("bert", bert), ("distilbert", distilled)):
        encoder.save_pretrained(folder / name)
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / name)
    (folder / "SST-2").mkdir()
    for split, rows in (("train", 40), ("dev", 12)):
        lines = [f"{WORDS[row % 6]} {WORDS[row % 5]}\t{row % 2}" for row in range(rows)]
        (folder / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Ten digits of the test set as PNG files, and their inputs as the data set makes them."""
    test = load_digits().test
    files = []
    for row in range(10):
        pixels = test.images[row, 0].numpy()
        files.append(tmp_path / f"digit {row}.png")
        Image.fromarray(pixels).save(files[-1])
    return files, torch.stack([test[row][0] for row in range(10)])
