"""Sets of the library `datasets`, as they are: columns by name, lists in place of tensors.

Letters: B batch rows, T tokens.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from multiexit.data import raw_values
from multiexit.losses.labels import IGNORED

LABELS = ("labels", "label", "label_ids")
"""Names of the column of labels, as transformers' collators have them."""


def from_hub(data: Any) -> bool:
    """Whether a set is one of `datasets`, which is not imported for this.

    Raises:
        ValueError: several sets in a `DatasetDict`, or another mapping.
    """
    if isinstance(data, Mapping):
        raise ValueError(
            f"a {type(data).__name__} of {list(data)} is no data set: give one of them, such as "
            "data['train']"
        )
    library: Any = sys.modules.get("datasets")
    return library is not None and isinstance(data, library.Dataset | library.IterableDataset)


def labels(data: Any) -> Tensor | None:
    """The column of labels [N], or None where there is none or it can't be read at once.

    Of tokens, [N, T], filled up with −100.

    Raises:
        ValueError: labels that are no numbers, or missing, named by their row.
    """
    column = next((name for name in LABELS if name in (data.column_names or ())), None)
    if column is None or not hasattr(data, "__len__"):
        return None
    values = list(data.with_format(None)[column])
    if values and isinstance(values[0], list):  # a label for each token
        rows = [raw_values.numbers(row, f"{column}[{index}]") for index, row in enumerate(values)]
        return pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return raw_values.numbers(values, column)


def check_names(data: Any, labels: Sequence[Any] | None, what: str) -> None:
    """Refuse a set whose `ClassLabel` has the model's names in another order than the model.

    Args:
        data: any set, part of one, or loader; only those of `datasets` say how they number classes.
        labels: the model's names of classes.
        what: what to call the set in a message.

    Raises:
        ValueError: with both orders, and how to bring them together.
    """
    while not from_hub(data) and hasattr(data, "dataset"):  # a loader, a part
        data = data.dataset
    if not from_hub(data) or not data.features:
        return
    column = next((name for name in LABELS if name in data.features), None)
    feature = None if column is None else data.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)  # of a list, its entries'
    if not names or not labels:
        return
    folded_names, folded_labels = [
        [str(name).casefold() for name in listed] for listed in (names, labels)
    ]
    if folded_names != folded_labels and sorted(folded_names) == sorted(folded_labels):
        numbers = {
            name: folded_labels.index(plain)
            for name, plain in zip(names, folded_names, strict=True)
        }
        raise ValueError(
            f"{what} numbers its classes {names}, and the model {list(labels)}: give it as "
            f"data.align_labels_with_mapping({numbers}, {column!r})"
        )


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as one batch: numbers as tensors [B, …], anything else as lists.

    Rows of unequal length are padded with zeros behind, labels with −100, [B, T], where an
    `attention_mask` says what is padding.

    Raises:
        ValueError: rows of unequal shape that can't be padded.
    """
    masked = "attention_mask" in rows[0]
    return {name: _column(name, [row[name] for row in rows], masked) for name in rows[0]}


def _column(name: str, values: list[Any], masked: bool) -> Any:
    try:
        tensors = [torch.as_tensor(value) for value in values]
    except (TypeError, ValueError, RuntimeError):  # strings, gaps, ragged lists
        return values
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) == 1:
        return torch.stack(tensors)
    if masked and all(len(shape) == 1 for shape in shapes):
        value = IGNORED if name in LABELS else 0
        return pad_sequence(tensors, batch_first=True, padding_value=value)
    raise ValueError(
        f"rows of column {name!r} have unequal shapes {sorted(shapes)[:3]}: give a DataLoader with "
        "a collate_fn that pads them, such as transformers.DataCollatorWithPadding(tokenizer)"
    )
