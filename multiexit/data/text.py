"""Tokenised texts as a split, padded batch by batch.

Letters: N rows of the split, B batch rows, T tokens of the longest row in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from multiexit.data import raw_values
from multiexit.data.splits import row_numbers
from multiexit.data.token_cache import Texts, listed, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORGET_SEGMENTS = {"AlbertTokenizer", "AlbertTokenizerFast"}
"""Tokenizers that give `token_type_ids` only on request, though their network reads them
(transformers 5, its issue 48128)."""


class TextDataset(Dataset[dict[str, Tensor]]):
    """Texts, tokenised once, that are padded to the longest row of each batch.

    Make one with `from_texts`. All rows of a field lie in one flat tensor; a row is a view of it.

    Args:
        tokenizer: gives the padding's side and values.
        fields: per name (`input_ids`, …) the values of all rows, one after the other.
        lengths: tokens in each of the N rows.
        labels: [N], int64 classes or float32 scores, or several a row [N, C].
        starts: [N], int64, where each row begins in the flat tensors; one after the other if not
            given.

    Example:
        >>> import tokenizers, transformers
        >>> from multiexit.data.text import TextDataset
        >>> words = tokenizers.models.WordLevel({"[PAD]": 0, "good": 1, "bad": 2}, "[PAD]")
        >>> tokenizer = transformers.PreTrainedTokenizerFast(
        ...     tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]")
        >>> tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        >>> data = TextDataset.from_texts(tokenizer, ["good", "bad bad"], labels=[1, 0])
        >>> data.collate([data[0], data[1]])["input_ids"].tolist()
        [[1, 0], [2, 2]]
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        fields: dict[str, Tensor],
        lengths: list[int],
        labels: Tensor,
        starts: Tensor | None = None,
    ):
        self.tokenizer = tokenizer
        self.fields = fields
        self.lengths = lengths
        self.labels = labels
        if starts is None:
            sizes = torch.tensor(lengths, dtype=torch.int64)
            starts = sizes.cumsum(0) - sizes
        self.starts = starts

    @classmethod
    def from_texts(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        labels: Iterable[float] | Tensor | None = None,
        max_length: int = 128,
    ) -> TextDataset:
        """Tokenise texts, or pairs of texts; the tokens of large sets are kept on disk.

        Args:
            tokenizer: any tokenizer of transformers that has a padding token.
            texts: N texts, in a list, an array or a series with any index.
            pairs: N second texts, where the task has two.
            labels: N classes (whole numbers, booleans) or scores (floats), or a list of several a
                row; -1 everywhere if not given.
            max_length: rows are cut to this many tokens, special tokens included; of a pair, the
                longer text first.

        Raises:
            ValueError: lists of unequal length, a text that isn't a string, holds half a character
                or makes no token, a label that is no number, a tokenizer without a padding token,
                or a `max_length` that doesn't suit it.
        """
        texts = raw_values.strings(texts)
        if pairs is not None:
            pairs = raw_values.strings(pairs, "pairs")
            _check_count(len(pairs), len(texts), "pairs")
        values = raw_values.numbers([-1] * len(texts) if labels is None else labels)
        _check_count(len(values), len(texts), "labels")
        return cls.from_stream(tokenizer, listed(texts, pairs), values, max_length)

    @classmethod
    def from_stream(
        cls, tokenizer: PreTrainedTokenizerBase, texts: Texts, labels: Tensor, max_length: int
    ) -> TextDataset:
        """Tokenise texts that are read chunk by chunk, without holding them all.

        Args:
            tokenizer, max_length: as for `from_texts`.
            texts: N texts or pairs.
            labels: [N], or [N, C].

        Raises:
            ValueError: a text that makes no token, or a tokenizer or `max_length` that won't do.
        """
        _check_tokenizer(tokenizer, max_length, texts.paired)
        segments = True if type(tokenizer).__name__ in FORGET_SEGMENTS else None  # or its default

        def tokenise(first: list[str], second: list[str] | None) -> Any:
            return tokenizer(
                first,
                second,
                truncation=True,
                max_length=max_length,
                return_token_type_ids=segments,
            )

        fields = tokens(tokenizer, texts, max_length, tokenise)
        return cls(tokenizer, fields, fields.pop("lengths").tolist(), labels)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row, not padded: its fields [T] and its label, a scalar."""
        start = int(self.starts[index])
        end = start + self.lengths[index]
        row = {name: values[start:end].long() for name, values in self.fields.items()}
        return row | {"labels": self.labels[index]}

    def collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pad rows to the longest of them, as `tokenizer.pad` does, only faster.

        Returns:
            The tokenizer's fields, each [B, T], and `labels` [B].
        """
        padding: dict[str, Any] = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        batch = {
            name: pad_sequence(
                [row[name] for row in rows],
                batch_first=True,
                padding_value=padding.get(name, 0),
                padding_side=self.tokenizer.padding_side,
            )
            for name in self.fields
        }
        return batch | {"labels": torch.stack([row["labels"] for row in rows])}

    def subset(self, indices: Sequence[int] | Tensor) -> TextDataset:
        """Take the rows `indices`, in that order; the tokens are not copied.

        Raises:
            ValueError: a mask, a fraction, or a row that isn't there.
        """
        rows = row_numbers(indices, len(self))
        return TextDataset(
            self.tokenizer,
            self.fields,
            [self.lengths[row] for row in rows.tolist()],
            self.labels[rows],
            self.starts[rows],
        )

    def for_evaluation(self) -> TextDataset:
        """The split itself: texts are not augmented."""
        return self


def _check_count(count: int, expected: int, name: str) -> None:
    if count != expected:
        raise ValueError(f"{count} {name} for {expected} texts; there must be one for each")


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int, paired: bool) -> None:
    kind = type(tokenizer).__name__
    if not hasattr(tokenizer, "pad_token_id"):
        raise ValueError(
            f"tokenizer is a {kind}: give one of transformers, AutoTokenizer.from_pretrained(…)"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"this {kind} has no padding token; set tokenizer.pad_token = tokenizer.eos_token, and "
            "where it is read from a folder save it there, tokenizer.save_pretrained(FOLDER)"
        )
    special = tokenizer.num_special_tokens_to_add(paired)
    if not special < max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} does not suit this {kind}: it adds {special} special tokens "
            f"and its model takes {tokenizer.model_max_length} tokens at most"
        )
