"""Texts as tokens, chunk by chunk; those of large sets lie on disk, and are made once.

Letters: N rows.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiexit.files.paths import CACHE, home, regular_file

LEAST = 20_000
"""Rows from which on tokens are kept on disk: about a second of tokenising."""

CHUNK = 10_000
"""Rows that are tokenised in one call: enough for full speed, and memory stays bounded."""

FORMAT = 2
Fields = dict[str, Tensor]
Chunk = tuple[list[str], list[str] | None]
Part = dict[str, np.ndarray]


@dataclass(frozen=True)
class Texts:
    """Texts, or pairs of texts, that can be read again and again.

    Args:
        rows: N.
        paired: whether there are second texts.
        digest: of all of them in their order, from `Digest`.
        chunks: reads them: at most `CHUNK` texts at a time, and their second ones or None.
    """

    rows: int
    paired: bool
    digest: str
    chunks: Callable[[], Iterator[Chunk]]


class Digest:
    """A hash of rows that are given one after another."""

    def __init__(self) -> None:
        self._all = blake2b(digest_size=16)

    def add(self, row: Iterable[str | bytes]) -> bytes:
        """Count a row; what comes back is 16 bytes of BLAKE2b over this row alone."""
        one = blake2b(digest_size=16)
        for value in row:
            data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            one.update(b"%d " % len(data))
            one.update(data)
        digest = one.digest()
        self._all.update(digest)
        return digest

    def hexdigest(self) -> str:
        """Of all rows so far."""
        return self._all.hexdigest()


def listed(texts: Sequence[str], pairs: Sequence[str] | None) -> Texts:
    """Texts that are in memory."""
    digest = Digest()
    for row in zip(texts) if pairs is None else zip(texts, pairs, strict=True):
        digest.add(row)

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(texts), CHUNK):
            part = slice(start, start + CHUNK)
            yield list(texts[part]), None if pairs is None else list(pairs[part])

    return Texts(len(texts), pairs is not None, digest.hexdigest(), chunks)


def tokens(
    tokenizer: Any, texts: Texts, max_length: int, tokenise: Callable[..., dict[str, Any]]
) -> Fields:
    """The tokens of texts, int32, in memory or, from `LEAST` rows on, mapped from files.

    The files lie in `~/.cache/multiexit/tokens`, in a folder named by a hash of the tokenizer, the
    texts and `max_length`. What can't be read there is made anew. Where nothing can be written
    there, and of slow tokenizers, whose rules can't be hashed, they are temporary.

    Args:
        tokenizer: of transformers.
        texts: to be read once, or not at all.
        max_length: as in `TextDataset.from_texts`.
        tokenise: a chunk's fields, lists of numbers by row.

    Returns:
        The flat fields of all rows, and their `lengths` [N].

    Raises:
        ValueError: a text that makes no token; other texts than before.
        OSError: the disk is full.
    """
    parts = _parts(texts, tokenise)
    if texts.rows < LEAST:
        made = list(parts)
        names = made[0] if made else ("lengths",)
        none = np.empty(0, np.int32)
        return {
            name: torch.from_numpy(np.concatenate([none, *(part[name] for part in made)]))
            for name in names
        }
    kept = _place(tokenizer, texts, max_length)
    if kept is not None:
        with suppress(OSError, ValueError):
            return _mapped(kept, texts.rows)
    with _workshop(kept) as folder:
        made_in = Path(folder) / "tokens"
        made_in.mkdir()
        _write(made_in, parts)
        fields = _mapped(made_in, texts.rows)  # lasts when the files have another name, or none
        if kept is not None:
            shutil.rmtree(kept, ignore_errors=True)  # not whole, or of a process that was faster
            with suppress(OSError):
                made_in.rename(kept)
    return fields


def _parts(texts: Texts, tokenise: Callable[..., dict[str, Any]]) -> Iterator[Part]:
    """The flat fields and `lengths` of each chunk."""
    rows = 0
    for first, second in texts.chunks():
        encoded = tokenise(first, second)
        lengths = np.array([len(row) for row in encoded["input_ids"]], np.int32)
        if not lengths.all():
            row = int(lengths.argmin())
            raise ValueError(
                f"texts[{rows + row}] is {first[row]!r}, of which this tokenizer makes no tokens: "
                "leave it out"
            )
        rows += len(first)
        total = int(lengths.sum())
        flat = {
            name: np.fromiter(chain.from_iterable(values), np.int32, total)
            for name, values in encoded.items()
        }
        yield {**flat, "lengths": lengths}
    if rows != texts.rows:
        raise ValueError(
            f"{rows} rows, and {texts.rows} a moment before: the data was changed while it was "
            "read, begin again"
        )


def _place(tokenizer: Any, texts: Texts, max_length: int) -> Path | None:
    """The folder that keeps these tokens; None where they aren't to be kept."""
    cache, backend = home(CACHE), getattr(tokenizer, "backend_tokenizer", None)
    if cache is None or backend is None:
        return None
    rules = json.loads(backend.to_str())
    rules |= {"truncation": tokenizer.truncation_side, "padding": None}  # what calls leave there
    names = tokenizer.model_input_names
    settings = [FORMAT, version("transformers"), type(tokenizer).__name__, names, rules, max_length]
    key = json.dumps([*settings, texts.paired, texts.digest])
    return cache / "tokens" / blake2b(key.encode(), digest_size=16).hexdigest()


def _workshop(kept: Path | None) -> "TemporaryDirectory[str]":
    """A folder to write in: on the disk of the cache, or where temporary files lie."""
    if kept is not None:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            return TemporaryDirectory(dir=kept.parent, ignore_cleanup_errors=True)
    return TemporaryDirectory(ignore_cleanup_errors=True)


def _write(folder: Path, parts: Iterable[Part]) -> None:
    files: dict[str, Any] = {}
    try:
        for part in parts:
            for name, values in part.items():
                if name not in files:
                    files[name] = (folder / f"{name}.int32").open("wb")
                files[name].write(values.tobytes())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()


def _mapped(folder: Path, rows: int) -> Fields:
    """The fields that `_write` wrote, read from the disk as they are needed.

    Raises:
        OSError, ValueError: files that are missing or cut short.
    """
    fields: Fields = {}
    for path in sorted(folder.glob("*.int32")):
        size = regular_file(path).stat().st_size // 4
        fields[path.stem] = torch.from_file(str(path), False, size, dtype=torch.int32)
    whole = len(fields.get("lengths", ())) == rows and "input_ids" in fields
    if not whole or {len(v) for k, v in fields.items() if k != "lengths"} != {
        int(fields["lengths"].sum())
    }:
        raise ValueError(f"{folder} is not whole")
    return fields
