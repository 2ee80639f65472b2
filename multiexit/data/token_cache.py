"""Tokens of large sets kept on disk, so that they are made once."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from multiexit.files.paths import CACHE, home, regular_file
from multiexit.files.writing import write_tensors

LEAST = 20_000
"""Rows from which on it is worth it: about a second of tokenising."""

FORMAT = 1
Fields = dict[str, Tensor]


def cached_tokens(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    make: Callable[[], Fields],
) -> Fields:
    """The tokens from `make`, or from the cache if these texts were tokenised the same way before.

    It lies in `~/.cache/multiexit/tokens`, named by a hash of the tokenizer, the texts and
    `max_length`; a file that can't be read is made anew, and one that can't be written is left out,
    as all are where nobody says what the home folder is.

    Args:
        tokenizer: must be a fast tokenizer to be cached: a slow one's rules can't be hashed.
        texts, pairs, max_length: as in `TextDataset.from_texts`.
        make: tokenises.

    Returns:
        The flat fields of all rows, and their `lengths`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(texts) < LEAST:
        return make()
    rules = json.loads(backend.to_str())
    rules |= {"truncation": tokenizer.truncation_side, "padding": None}  # what calls leave there
    digest = blake2b(digest_size=16)
    names = tokenizer.model_input_names
    settings = [FORMAT, version("transformers"), type(tokenizer).__name__, names, rules, max_length]
    settings.append(pairs is not None)
    for text in (json.dumps(settings), *texts, *(pairs or ())):
        digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
    cache = home(CACHE)
    if cache is None:
        return make()
    path = cache / "tokens" / f"{digest.hexdigest()}.safetensors"
    with suppress(OSError, SafetensorError, ValueError):
        return load_file(regular_file(path))
    fields = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, fields)
    return fields
