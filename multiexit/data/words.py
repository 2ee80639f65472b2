"""Words with a tag each, as tokens: which token answers for a word, and with which label.

Letters: N rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from multiexit.losses.labels import IGNORED
from multiexit_runner.tagging import first_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Columns = dict[str, list[list[int]]]


def tokenise_words(
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[Any]] | None = None,
    names: Sequence[str] | None = None,
    max_length: int = 128,
) -> Columns:
    """Tokenise rows of words, and let the first token of each word answer for it.

    `answer_mask` is 1 at these tokens, so that a row leaves when its words are sure, whatever is
    said of other tokens; `labels` is the word's tag there, and −100 at all others. Row by row the
    answers where `answer_mask` is 1 are those of the words in their order. Words that are cut away,
    or of which the tokenizer makes no token, have no answer.

    Args:
        tokenizer: a fast one of transformers.
        words: N rows of words.
        tags: of each word, its class's number, or its name; None where there are none.
        names: the classes' names in the order of their numbers, where tags are names.
        max_length: rows are cut to this many tokens, special tokens included.

    Returns:
        The tokenizer's columns, with `answer_mask`, and `labels` where there are tags: lists of N
        rows, each of T numbers. They make a set of `datasets`, which a trainer pads by itself.

    Raises:
        ValueError: a slow tokenizer, or one that doesn't take words; rows of other lengths; a tag
            that is no class.

    Example:
        >>> import datasets, tokenizers, transformers
        >>> from multiexit.data.words import tokenise_words
        >>> pieces = tokenizers.models.WordPiece(
        ...     {"[PAD]": 0, "[UNK]": 1, "Ada": 2, "Love": 3, "##lace": 4, "sang": 5})
        >>> tokenizer = transformers.PreTrainedTokenizerFast(
        ...     tokenizer_object=tokenizers.Tokenizer(pieces), pad_token="[PAD]")
        >>> names = ["O", "B-PER", "I-PER"]
        >>> columns = tokenise_words(
        ...     tokenizer, [["Ada", "Lovelace", "sang"]], [["B-PER", "I-PER", "O"]], names)
        >>> columns["labels"], columns["answer_mask"]
        ([[1, 2, -100, 0]], [[1, 1, 0, 1]])
        >>> train = datasets.Dataset.from_dict(columns)

    Reference: Devlin et al., "BERT", NAACL 2019, section 5.3: the first sub-token answers.
    """
    rows = [_row(index, row) for index, row in enumerate(words)]
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} can't tell which token is of which word: load a fast "
            "tokenizer, such as AutoTokenizer.from_pretrained(name)"
        )
    numbers = None if tags is None else _numbers(rows, tags, names)
    try:
        encoded: Any = tokenizer(
            rows, is_split_into_words=True, truncation=True, max_length=max_length
        )
    except AssertionError as error:  # RoBERTa's, without add_prefix_space
        raise ValueError(f"this tokenizer takes no words: {error}") from error
    columns: Columns = {name: [list(row) for row in values] for name, values in encoded.items()}
    word_rows = [encoded.word_ids(row) for row in range(len(rows))]
    firsts = [[word is not None for word in first_tokens(row)] for row in word_rows]
    columns["answer_mask"] = [[int(first) for first in row] for row in firsts]
    if numbers is not None:
        columns["labels"] = [
            [tag[word] if first else IGNORED for word, first in zip(row, places, strict=True)]
            for row, places, tag in zip(word_rows, firsts, numbers, strict=True)
        ]
    return columns


def _row(index: int, words: Any) -> list[str]:
    if isinstance(words, str):
        raise ValueError(f"words[{index}] is one string, {words!r:.60}; give a list of words")
    listed = list(words)
    if not listed or not all(isinstance(word, str) for word in listed):
        raise ValueError(f"words[{index}] is {listed!r:.80}; give one word at least, as strings")
    return listed


def _numbers(
    rows: list[list[str]], tags: Sequence[Sequence[Any]], names: Sequence[str] | None
) -> list[list[int]]:
    """Tags as numbers of classes."""
    if len(tags) != len(rows):
        raise ValueError(f"{len(tags)} rows of tags for {len(rows)} rows of words")
    by_name = {name: index for index, name in enumerate(names or ())}
    numbers = []
    for index, (row, row_tags) in enumerate(zip(rows, tags, strict=True)):
        if isinstance(row_tags, str) or len(row_tags) != len(row):
            raise ValueError(f"row {index} has {len(row)} words, and its tags are {row_tags!r:.60}")
        numbers.append([_number(index, tag, by_name) for tag in row_tags])
    return numbers


def _number(row: int, tag: Any, by_name: dict[str, int]) -> int:
    if isinstance(tag, str):
        if tag not in by_name:
            known = ", ".join(by_name) or "none: pass names="
            raise ValueError(f"row {row} has the tag {tag!r}; names are {known}")
        return by_name[tag]
    number = int(tag)
    if number != tag or number < 0 or (by_name and number >= len(by_name)):
        raise ValueError(f"row {row} has the tag {tag!r}; it must be the number of a class")
    return number
