"""Large sets are cut into tokens once, and what is kept is what would be made."""

import pytest
import torch
from transformers import BertTokenizer

from multiexit.data import token_cache
from multiexit.data.text import TextDataset

TEXTS = ["a fine film", "not a film at all", "fine", ""]
OTHERS = ["all", "a film", "not fine", "film film"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`made(…)`: a set's tensors, and how many rows had to be tokenised for it."""
    monkeypatch.setattr(token_cache, "LEAST", 2)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["a", "fine", "film", "not", "at", "all"]])
    )
    counted = []

    class Counting(BertTokenizer):
        def __call__(self, texts, *args, **kwargs):
            counted.append(len(texts))
            return super().__call__(texts, *args, **kwargs)

    def make(texts, pairs=None, max_length=8, side="right"):
        counted.clear()
        tokenizer = Counting.from_pretrained(tmp_path, truncation_side=side)
        rows = TextDataset.from_texts(tokenizer, texts, pairs, max_length=max_length)
        return {**rows.fields, "lengths": torch.tensor(rows.lengths)}, sum(counted)

    return make


def test_the_second_time_nothing_is_tokenised(made):
    first, tokenised = made(TEXTS, OTHERS)
    assert tokenised == len(TEXTS)
    second, tokenised = made(TEXTS, OTHERS)
    assert tokenised == 0
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "other",
    [
        {"texts": [*TEXTS[:3], "a"]},
        {"texts": ["a fine filmnot", " a film at all", *TEXTS[2:]]},
        {"pairs": TEXTS},
        {"pairs": None},
        {"max_length": 7},
        {"side": "left"},
    ],
    ids=str,
)
def test_other_rows_are_tokenised(made, other):
    usual = {"texts": TEXTS, "pairs": OTHERS}
    made(**usual)
    assert made(**{**usual, **other})[1] == len(TEXTS)
    assert made(**usual)[1] == 0


def test_small_sets_are_not_kept(made, tmp_path):
    assert made(["a"])[1] == 1
    assert made(["a"])[1] == 1
    assert not (tmp_path / "home").exists()


def test_a_damaged_file_is_made_anew(made, tmp_path):
    first, _ = made(TEXTS)
    (kept,) = (tmp_path / "home").rglob("input_ids.int32")
    kept.write_bytes(kept.read_bytes()[:-3])
    again, tokenised = made(TEXTS)
    assert tokenised == len(TEXTS)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert made(TEXTS)[1] == 0


def test_where_nothing_can_be_written_nothing_is_kept(made, tmp_path):
    (tmp_path / "home").write_text("no folder")
    assert made(TEXTS)[1] == made(TEXTS)[1] == len(TEXTS)
