"""Words in, a label for each out, for `multiexit.Classifier` too.

Letters: T tokens, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


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


def first_tokens(word_T: Sequence[int | None]) -> list[int | None]:
    """The word that each token answers for: its own, of which it is the first.

    Args:
        word_T: the word that each token is of, as a tokenizer's `word_ids` gives them.

    >>> first_tokens([None, 0, 0, 1, None])
    [None, 0, None, 1, None]
    """
    seen: set[int | None] = {None}
    return [None if word in seen or seen.add(word) else word for word in word_T]


def tagged(
    logits_TC: np.ndarray,
    words: Sequence[str],
    word_T: Sequence[int | None],
    labels: Sequence[Any] | None,
) -> dict[str, Any]:
    """What a row's logits say of its words.

    Args:
        logits_TC: of its tokens.
        words: of the row.
        word_T: the word that each token answers for, or None.
        labels: the classes' names, or None.
    """
    names = range(logits_TC.shape[1]) if labels is None else labels
    found: list[Any] = [None] * len(words)
    scores: list[float | None] = [None] * len(words)
    for z_C, word in zip(logits_TC.astype(np.float64), word_T, strict=False):
        if word is None:
            continue
        p_C = np.exp(z_C - z_C.max())
        best = int(z_C.argmax())
        found[word], scores[word] = names[best], float(p_C[best] / p_C.sum())
    return {"words": list(words), "labels": found, "scores": scores}
