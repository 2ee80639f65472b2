"""The example gives a row of the table for each static method."""

import pytest
from encoders import LAYERS, bert, distilbert
from helpers import example
from transformers import BertModel, BertTokenizerFast, DistilBertModel

import multiexit as mx
from multiexit.evaluation import results


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A folder with SST-2's files of random words, a tiny BERT and a tiny DistilBERT."""
    folder = tmp_path_factory.mktemp("glue")
    words = ["cat", "dog", "saw", "ate", "runs", "house"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    for name, encoder in (("bert", bert()), ("distilbert", distilbert())):
        config = encoder.config
        made = BertModel(config) if name == "bert" else DistilBertModel(config)
        made.save_pretrained(folder / name)
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / name)
    (folder / "SST-2").mkdir()
    for split, rows in (("train", 40), ("dev", 12)):
        lines = [f"{words[row % 6]} {words[row % 5]}\t{row % 2}" for row in range(rows)]
        text = "\n".join(["sentence\tlabel", *lines])
        (folder / "SST-2" / f"{split}.tsv").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ("first", 3),
        ("layerdrop", 3),
        ("headprune", 6),
        ("pkd", 3),
        ("theseus", 3),
        ("distilbert", 6),
    ],
)
def test_the_example_gives_a_row_of_the_table(method, layers, glue, tmp_path):
    name = "distilbert" if method == "distilbert" else "bert"
    words = ("--method", method, "--task", "sst2", "--backbone", glue / name, "--data-dir", glue)
    example(
        "examples/nlp/static_baselines.py",
        *(*words, "--layers", 3, "--max-steps", 1, "--output", tmp_path),
    )
    written = results.read_results(tmp_path / "results.json")
    (exit,), (row,) = written["exits"], written["policies"]
    assert exit["layers"] == layers
    assert exit["macs"] > 0
    assert exit["parameters"] > 0
    assert row["speedup_layers"] == LAYERS / layers
    assert row["speedup_time"] > 0
    assert (row["speedup_macs"] > 1) == (method != "distilbert")
    assert written["about"]["recipe"] == method
    model = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert model.cost().params_M[0] == exit["parameters"]
    assert results.results_page(tmp_path)
