"""The examples run as they stand, on small settings."""

import json
import random
import re

import pytest
import torch
from helpers import ROOT, example
from transformers import BertConfig, BertModel, BertTokenizerFast

import multiexit as mx

EXAMPLES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
WORDS = ["the", "a", "cat", "dog", "saw", "ate", "runs", "slept", "fish", "house", "red", "blue"]


def test_the_examples_are_those_the_readers_are_promised():
    assert {
        "examples/custom_policy.py",
        "examples/nlp/tag_words.py",
        "examples/nlp/train_glue.py",
        "examples/vision/train_cifar.py",
        "examples/wrap_anything.py",
    } <= set(EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_opens_with_its_own_command(path):
    text = (ROOT / path).read_text()
    assert text.startswith('"""')
    assert f"    python {path}" in text.split('"""')[1]


def test_a_policy_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = example("examples/custom_policy.py", "--epochs", 1)
    assert out.lower().count("twosure") == 3 + 1
    assert out.count("patience=") == 3
    exits = re.search(r"leave at exits \[(.*)\]", out)[1].split(", ")
    assert len(exits) == 8
    assert all(1 <= int(exit) <= 8 for exit in exits), "two exits must be sure"
    assert not list(tmp_path.iterdir())


def test_training_on_images(tmp_path):
    words = ("--data", "digits", "--depth", 20, "--max-steps", 3, "--output", tmp_path / "run")
    out = example("examples/vision/train_cifar.py", *words)
    assert out.startswith("9 exits, ")
    assert "max-prob=0.9" in out
    model = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model")
    assert model.num_exits == 9
    history = mx.History.load(tmp_path / "run" / "history.json")
    assert history.steps[-1]["step"] == 3


def test_training_on_text(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    shape = BertConfig(vocab_size=len(vocabulary), intermediate_size=32, **sizes)
    BertModel(shape).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    draw = random.Random(0)
    (tmp_path / "SST-2").mkdir()
    for split, rows in (("train", 60), ("dev", 20)):
        lines = [f"{' '.join(draw.choices(WORDS, k=5))}\t{row % 2}" for row in range(rows)]
        (tmp_path / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))
    words = ("--task", "sst2", "--backbone", tmp_path / "bert", "--data-dir", tmp_path)
    more = ("--recipe", "pabee", "--epochs", 2, "--output", tmp_path / "run")
    out = example("examples/nlp/train_glue.py", *words, *more)
    means = re.search(r"mean over exits, by epoch: \[(.*)\]", out)[1].split(", ")
    assert len(means) == 2
    assert "patience=6" in out
    assert mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model").num_exits == 3


def test_tagging_words(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "7"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    draw = random.Random(0)
    for split in ("train", "dev", "test"):
        rows = [[*draw.choices(WORDS, k=4), draw.choice(["Cat", "Dog"]), "7"] for _ in range(30)]
        sentences = [" ".join(row) for row in rows]
        pairs = zip(sentences, sentences[::-1], strict=True)
        lines = [f"1\t0\t0\t{one}\t{two}" for one, two in pairs]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["header", *lines]))
    words = ("--data", tmp_path, "--tokenizer", tmp_path / "tokenizer", "--epochs", 1)
    small = ("--layers", 2, "--width", 16, "--output", tmp_path / "figures.json")
    out = example("examples/nlp/tag_words.py", *words, *small)
    assert "30, 30 and 30 sentences" in out
    assert "f1 (%)" in out
    assert "patience=1" in out
    first = json.loads((tmp_path / "figures.json").read_text())["rows"][0]
    assert (first["policy"], first["mean layers"], first["fewer MACs"]) == (
        "fixed=1",
        "2.00",
        "1.00×",
    )


def test_exits_on_anything():
    out = example("examples/wrap_anything.py")
    rows = out.strip().splitlines()[1:]
    assert len(rows) >= 9
    assert all("fewer MACs" in row for row in rows)
    assert any(re.search(r"ResNet-56 for CIFAR +27 +14", row) for row in rows)


def test_the_notebooks_are_those_the_documentation_names():
    assert [path.name for path in NOTEBOOKS] == ["own_images.ipynb", "own_text.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs_and_its_code_compiles(path):
    """Continuous integration runs the cells, in a kernel: `.ci/notebooks.py`."""
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells), (
        "clear all outputs"
    )
    for cell in cells:
        compile("".join(cell["source"]), path.name, "exec")
