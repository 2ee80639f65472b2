"""GLUE, tokenised: from the hub, or from a folder of TSV or parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from multiexit.data.glue_files import folder_source, hub_source
from multiexit.data.glue_tasks import TASKS, GlueTask, find_task
from multiexit.data.text import TextDataset
from multiexit.files.paths import home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TASKS", "Glue", "GlueTask", "TextDataset", "find_task", "load"]


@dataclass(frozen=True)
class Glue:
    """One task's splits.

    Args:
        task: which task.
        train: the training set.
        dev: the development set; MNLI's matched one.
        dev_mismatched: MNLI's other development set, None for all other tasks.
        test: the test set (MNLI's matched one), None where the source has none. GLUE keeps its
            labels back: they are -1, and nan for STS-B, unless the source gives them after all.
    """

    task: GlueTask
    train: TextDataset
    dev: TextDataset
    dev_mismatched: TextDataset | None = None
    test: TextDataset | None = None


def load(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    data_dir: str | Path | None = None,
    max_length: int = 128,
) -> Glue:
    r"""Read and tokenise one task of GLUE.

    Args:
        task: `"mrpc"`, `"SST-2"`, …: a key of `TASKS` in any spelling.
        tokenizer: the tokenizer of the network that will read the texts.
        data_dir: None downloads from the hub (`nyu-mll/glue`) through `datasets`, which caches it.
            Else a folder with the classic TSV files (`train.tsv`, `dev.tsv`) or the hub's parquet
            files (`train-00000-of-00001.parquet`, `validation-…`), or a folder above it that has
            them under `MRPC/`, `mrpc/`, `glue/MRPC/` or `glue/mrpc/`.
        max_length: rows are cut to this many tokens.

    Returns:
        The splits, tokenised.

    Raises:
        FileNotFoundError: data that isn't there; the message says where it was looked for.
        ValueError: an unknown task, or a damaged file (named, with the line).

    Example:
        >>> import pathlib, tempfile, tokenizers, transformers
        >>> from multiexit.data import glue
        >>> words = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2}, "[UNK]")
        >>> tokenizer = transformers.PreTrainedTokenizerFast(
        ...     tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "dev"):
        ...         file = pathlib.Path(folder, f"{name}.tsv")
        ...         _ = file.write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
        ...     sst2 = glue.load("SST-2", tokenizer, folder)
        >>> len(sst2.train), sst2.dev.labels, sst2.dev[0]["input_ids"]
        (2, tensor([1, 0]), tensor([2]))
    """
    spec = find_task(task)
    if data_dir is None:
        source = hub_source(spec)
    else:
        source = folder_source(spec, home(data_dir) or Path(data_dir))

    def split(name: str) -> TextDataset:
        texts, pairs, labels = source(name)  # those that are kept secret are -1 or NaN
        return TextDataset.from_texts(tokenizer, texts, pairs, torch.tensor(labels), max_length)

    def split_if_there(name: str) -> TextDataset | None:
        try:
            return split(name)
        except FileNotFoundError:
            return None

    if spec.name != "mnli":
        return Glue(spec, split("train"), split("validation"), None, split_if_there("test"))
    return Glue(
        spec,
        split("train"),
        split("validation_matched"),
        split("validation_mismatched"),
        split_if_there("test_matched"),
    )
