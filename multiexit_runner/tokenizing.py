"""The tokenizer of an export, without transformers."""

import json
from collections.abc import Mapping
from typing import Any

from multiexit_runner.folder import Folder, read_file

TOKENIZER, TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What a tokenizer gives, by the network's names."""
ANSWER_MASK = "answer_mask"
"""The input that says which tokens are asked for, where each is answered."""


def load(folder: Folder, preprocessing: Mapping[str, Any]) -> Any:
    """The tokenizer in an export, which cuts and pads as transformers' does.

    Args:
        folder: of the export.
        preprocessing: says to how many tokens rows are cut.

    Raises:
        ValueError: none there, or one that can't be read without transformers.
    """
    for name in (TOKENIZER, TOKENIZER_SETTINGS):
        if name not in folder.sums:
            raise ValueError(
                f"{folder.path} has no {name}: export with tokenizer=, one of the fast kind, or "
                "give Classifier a tokenizer of your own"
            )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError("texts need the package tokenizers: pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_buffer(read_file(folder, TOKENIZER))
        settings = json.loads(read_file(folder, TOKENIZER_SETTINGS))
        pad = settings["pad_token"]
        pad = pad["content"] if isinstance(pad, dict) else pad
        sides = [settings.get(f"{what}_side", "right") for what in ("truncation", "padding")]
        length = preprocessing.get("max_length", 128)
        tokenizer.enable_truncation(length, strategy="longest_first", direction=sides[0])
        tokenizer.enable_padding(
            direction=sides[1],
            pad_id=tokenizer.token_to_id(pad),
            pad_type_id=settings.get("pad_token_type_id", 0),
            pad_token=pad,
        )
    except Exception as error:  # of the library's Rust, of one kind for all
        raise ValueError(f"{folder.path}: its tokenizer can't be read: {error!r}") from error
    return tokenizer
