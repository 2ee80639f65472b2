"""Tiny models with their inputs, for classifiers with torch and without."""

import csv
import json

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

import multiexit as mx
from multiexit.data import image_files

WORDS = ["the", "a", "cat", "dog", "saw", "ate", "runs", "fish", "house", "not", "red", "blue"]
LABELS = ["bad", "fair", "good"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Random texts of 1 to 9 words."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 10))) for _ in range(count)]


def tokenizer_in(folder) -> BertTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return BertTokenizerFast(str(folder / "vocab.txt"))


def text_model(
    tokenizer, problem="classification", pairs=False, classes=3, exits="all"
) -> mx.MultiExitModel:
    """A BERT of four layers whose exits disagree."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=18, num_hidden_layers=4, initializer_range=0.5, **sizes))
    labels = LABELS if classes == 3 else None
    model = mx.MultiExitModel(mx.wrap(bert), classes, exits, labels=labels, problem=problem).eval()
    model.preprocessing = {"kind": "text", "max_length": 16, "pairs": pairs}
    batch = dict(tokenizer(texts(30, seed=9), padding=True, return_tensors="pt"))
    enliven(model, batch)
    return model


def enliven(model, batch) -> None:
    """Heads that are sure of some rows and not of others, at each exit."""
    if model.problem == "embedding":
        return
    with torch.no_grad():
        for head, logits_BC in zip(model.heads, model(**batch), strict=True):
            logits_NC = logits_BC.flatten(0, -2)
            scale = 1.5 / logits_NC.std(0).clamp(min=1e-6)
            head.linear.bias.sub_(logits_NC.mean(0)).mul_(scale)
            head.linear.weight.mul_(scale.unsqueeze(1))


def pictures(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    sizes = [(9 + row % 5, 12 + row % 3) for row in range(count)]
    return [Image.fromarray(draw.integers(0, 256, (*s, 3), np.uint8)) for s in sizes]


def image_model() -> mx.MultiExitModel:
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.cifar_resnet(20, size=8), 3, [0, 4, 8], labels=LABELS).eval()
    model.preprocessing = {
        **{"kind": "image", "shape": [3, 8, 8], "resize": 9, "interpolation": "bicubic"},
        **{"antialias": True, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]},
    }
    how = model.preprocessing
    enliven(model, {"x": torch.stack([image_files.read(each, how) for each in pictures(30)])})
    return model


def written(path, rows):
    """Rows as a file, by its suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            out = csv.DictWriter(file, list(rows[0]), delimiter="\t" if "tsv" in path.name else ",")
            out.writeheader()
            out.writerows(rows)
    return path
