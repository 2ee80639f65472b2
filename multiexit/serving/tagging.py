"""Words in, a label for each out: rows of which each token is answered.

Letters: T tokens, C classes.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from multiexit.data.text import TextDataset
from multiexit.data.words import first_tokens, tokenise_words


def words_of(item: Any, where: str) -> list[str]:
    """An input as words.

    Args:
        item: a string, split at white space, or a list or tuple of words.
        where: the input stood.

    Raises:
        ValueError: anything else, no words, or an empty one.
    """
    words = item.split() if isinstance(item, str) else item
    if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
        raise ValueError(f"{where} is {item!r:.80}; this model reads a string or a list of words")
    if not words or not all(word.strip() for word in words):
        raise ValueError(f"{where} is {item!r:.80}: no words, or an empty one")
    return [str.__str__(word) for word in words]


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


def tagged(
    logits_TC: np.ndarray,
    words: Sequence[str],
    data: WordDataset,
    row: int,
    labels: Sequence[Any] | None,
) -> dict[str, Any]:
    """What a row's logits say of its words.

    Args:
        logits_TC: of its tokens, padded as its batch was.
        words: of the row.
        data: that it is of, in this place.
        row: its place there.
        labels: the classes' names, or None.
    """
    before = len(logits_TC) - data.lengths[row] if data.tokenizer.padding_side == "left" else 0
    names = range(logits_TC.shape[1]) if labels is None else labels
    found: list[Any] = [None] * len(words)
    scores: list[float | None] = [None] * len(words)
    for place, word in enumerate(data.words[row]):
        if word is None:
            continue
        z_C = logits_TC[before + place].astype(np.float64)
        p_C = np.exp(z_C - z_C.max())
        best = int(z_C.argmax())
        found[word], scores[word] = names[best], float(p_C[best] / p_C.sum())
    return {"words": list(words), "labels": found, "scores": scores}
