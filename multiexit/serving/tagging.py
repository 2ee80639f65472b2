"""Words in, a label for each out: rows of which each token is answered.

Letters: T tokens, C classes.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from multiexit.data.text import TextDataset
from multiexit.data.words import tokenise_words
from multiexit_runner.tagging import first_tokens


class WordDataset(TextDataset):
    """Rows of words as tokens, with the word that each token answers for.

    Args:
        data: the rows.
        words: of each row the word of each token, or None.
    """

    def __init__(self, data: TextDataset, words: Sequence[Sequence[int | None]]):
        super().__init__(data.tokenizer, data.fields, data.lengths, data.labels, data.starts)
        self.words = words


def tokenised(tokenizer: Any, rows: Sequence[list[str]], max_length: int) -> WordDataset:
    """Rows of words as tokens, of which the first of each word is asked for.

    Raises:
        ValueError: a tokenizer that takes no words, or makes no token of a row.
    """
    columns = tokenise_words(tokenizer, rows, max_length=max_length)
    lengths = [len(row) for row in columns["input_ids"]]
    fields = {
        name: torch.tensor(list(chain.from_iterable(values)), dtype=torch.int64)
        for name, values in columns.items()
    }
    encoded = tokenizer(
        list(rows), is_split_into_words=True, truncation=True, max_length=max_length
    )
    words = [first_tokens(encoded.word_ids(row)) for row in range(len(rows))]
    data = TextDataset(tokenizer, fields, lengths, torch.full((len(rows),), -1))
    return WordDataset(data, words)


def in_place(logits_TC: np.ndarray, data: WordDataset, row: int) -> np.ndarray:
    """A row's logits from its first token on.

    Args:
        logits_TC: of its tokens, padded as its batch was.
        data: that it is of, in this place.
        row: its place there.
    """
    before = len(logits_TC) - data.lengths[row] if data.tokenizer.padding_side == "left" else 0
    return logits_TC[before:]
