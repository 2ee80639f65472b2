"""Whether a network can read the texts that it is to be trained or judged on."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from multiexit.backbones import Backbone
from multiexit.data.text import TextDataset


def check(backbone: Backbone, sets: Mapping[str, Any]) -> None:
    """Refuse texts that the network can't read, by one look at the tokens in memory.

    Args:
        backbone: of the model.
        sets: by what they are called; only those that are a `TextDataset` are looked at.

    Raises:
        ValueError: a row of more tokens than the network takes, or a token that its table lacks.
    """
    sizes, most = backbone.limits()
    for called, rows in sets.items():
        texts = rows.dataset if isinstance(rows, DataLoader) else rows
        if not isinstance(texts, TextDataset) or not len(texts):
            continue
        longest = max(texts.lengths)
        if most is not None and longest > most:
            raise ValueError(
                f"{called} has rows of {longest} tokens, and this network takes {most}: cut them "
                f"by max_length={most}"
            )
        for name in sizes.keys() & texts.fields.keys():
            _check_numbers(called, texts, name, sizes[name])


def _check_numbers(called: str, texts: TextDataset, name: str, size: int) -> None:
    """Refuse a field whose numbers go beyond a table of that size."""
    values = texts.fields[name]
    if int(values.max()) < size:  # of all rows that the set was taken from
        return
    spans = zip(texts.starts.tolist(), texts.lengths, strict=True)
    largest = max(int(values[start : start + length].max()) for start, length in spans)
    if largest < size:
        return
    if name != "input_ids":
        raise ValueError(f"{called} has {name} {largest}, and this network's table holds {size}")
    token, tokens = texts.tokenizer.convert_ids_to_tokens(largest), len(texts.tokenizer)
    raise ValueError(
        f"{called} has token {largest}, {token!r}, and this network's table holds {size}: does the "
        f"tokenizer, of {tokens}, belong to this network? For tokens added to it give the network "
        f"room before it is wrapped or saved, network.resize_token_embeddings({tokens})"
    )
