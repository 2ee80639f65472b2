"""A tokenizer of six words."""

import pytest
import tokenizers
import transformers


@pytest.fixture(scope="session")
def tokenizer():
    words = ["[PAD]", "[UNK]", "good", "bad", "dull", "film"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), pad_token="[PAD]"
    )
    made.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made
