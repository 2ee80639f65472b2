"""Answers for tokens, as a metric reads them: flat classes, or rows of tags.

Letters: N rows, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiexit.losses.labels import IGNORED

Tags = Sequence[Sequence[str]]
"""For each row, the tags of its tokens."""


def entity_f1(predicted: Tags, labels: Tags) -> dict[str, float]:
    """F1, precision and recall of whole entities, each right if all its tags are, in 0..1.

    As `seqeval` counts them, which is as CoNLL's script does (Tjong Kim Sang & De Meulder 2003).

    Args:
        predicted, labels: rows of tags, `"O"` or one of `B-`, `I-`, `E-`, `S-` and an entity's
            kind.

    Example:
        >>> import multiexit as mx
        >>> right, guess = [["B-PER", "I-PER", "O"]], [["B-PER", "O", "B-PER"]]
        >>> mx.metrics.entity_f1(guess, right)["score"]
        0.0
        >>> mx.metrics.entity_f1(right, right)["f1"]
        1.0
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    rows = [list(row) for row in labels], [list(row) for row in predicted]
    f1, precision, recall = (
        float(score(*rows, zero_division=0))  # type: ignore[arg-type]
        for score in (f1_score, precision_score, recall_score)
    )
    return {"score": f1, "f1": f1, "precision": precision, "recall": recall}


def check_tags(names: Sequence[Any] | None) -> list[str]:
    """The classes' names, if they are tags of entities.

    Raises:
        ValueError: they aren't, or seqeval isn't installed.
    """
    try:
        import seqeval  # noqa: F401
    except ImportError as error:
        raise ValueError("entity_f1 needs seqeval: pip install 'multiexit-torch[tags]'") from error
    tags = [str(name) for name in names or ()]
    if not tags or not all(tag == "O" or (tag[:2] in PREFIXES and tag[2:]) for tag in tags):
        called = f"are called {tags[:6]}" if tags else "have no names"
        raise ValueError(
            "entity_f1 reads tags such as 'O', 'B-PER', 'I-PER', and this model's classes "
            f"{called}: give the model labels=[…] in the order of their numbers"
        )
    return tags


PREFIXES = ("B-", "I-", "E-", "S-")


def flat(predicted_NT: NDArray[Any], labels_NT: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Answers and labels of the tokens that have a label, one after another.

    Raises:
        ValueError: no token has one.
    """
    counts_NT = labels_NT != IGNORED
    if not counts_NT.any():
        raise ValueError(f"no token that is asked for has a label other than {IGNORED}")
    return predicted_NT[counts_NT], labels_NT[counts_NT]


def by_row(
    predicted_NT: NDArray[Any], labels_NT: NDArray[Any], names: Sequence[Any] | None
) -> tuple[list[list[str]], list[list[str]]]:
    """Tags of answers and labels, row by row, of the tokens that have a label.

    Raises:
        ValueError: no token has one, or classes that aren't called by tags.
    """
    flat(predicted_NT, labels_NT)
    tags = np.array(check_tags(names), dtype=object)
    counts_NT = labels_NT != IGNORED
    predicted, labels = (
        [list(tags[row[counts]]) for row, counts in zip(rows, counts_NT, strict=True)]
        for rows in (predicted_NT, labels_NT)
    )
    return predicted, labels
