"""Texts that a network can't read are refused before the first step."""

import pytest
from answering import WORDS, tokenizer_in
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit.data.text import TextDataset
from multiexit.training.stepper import Stepper


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A model of 16 positions and 17 tokens, and a function from texts to rows."""
    tokenizer = tokenizer_in(tmp_path)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=18, num_hidden_layers=2, max_position_embeddings=16, **sizes)
    model = mx.MultiExitModel(mx.wrap(BertModel(config)), 2)
    tokenizer.add_tokens(["purple"])  # 18, which the table lacks

    def step(*_, **__):
        raise AssertionError("begun")

    monkeypatch.setattr(Stepper, "step", step)

    def rows(*texts):
        return TextDataset.from_texts(tokenizer, texts, labels=[n % 2 for n in range(len(texts))])

    return mx.Trainer(model, mx.recipe("joint"), mx.TrainConfig(epochs=1, batch_size=2)), rows


BAD = {
    "long": (" ".join(15 * ["cat"]), "has rows of 17 tokens, and this network takes 16"),
    "unknown": ("a purple cat", r"has token 18, 'purple', .* table holds 18: .*_embeddings\(19\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_beyond_the_tables_are_refused_in_whichever_set_they_are(case, made):
    trainer, rows = made
    text, message = BAD[case]
    good, bad = rows(*WORDS[:4]), rows(*WORDS[:4], text)
    for sets, called in (((bad,), "the training set"), ((good, bad), "the dev set")):
        with pytest.raises(ValueError, match=f"{called} {message}"):
            trainer.fit(*sets)


@pytest.mark.parametrize("case", BAD)
def test_rows_that_were_left_out_are_not_looked_at(case, made):
    trainer, rows = made
    bad = rows(*WORDS[:4], BAD[case][0])
    with pytest.raises(AssertionError, match="begun"):
        trainer.fit(bad.subset([0, 1, 2, 3]))
