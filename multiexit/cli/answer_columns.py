"""The columns that answers add to a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from multiexit_runner.answering import written

PREFIX = "predicted_"


def added(network: Any, all_scores: bool, columns: Sequence[str]) -> dict[Any, str]:
    """The columns of answers by what they hold; with a prefix where the table has one of them.

    Args:
        network: the model, or an export's runner.
        all_scores: a column for each class.
        columns: of the table.

    Raises:
        ValueError: scores where there are none, or names that the table has with the prefix too.
    """
    several = network.num_classes > 1
    names: dict[Any, str] = {
        "classification": {"label": "label", "score": "score"},
        "multi-label": {"labels": "labels"},
        "regression": {"values": "values"} if several else {"value": "value"},
        "embedding": {"vector": "vector"},
        "token-classification": {"words": "words", "labels": "labels", "scores": "scores"},
    }[network.problem]
    if all_scores:
        if network.problem not in ("classification", "multi-label"):
            raise ValueError(f"all_scores=True is not for {network.problem}: leave it")
        for name in network.labels or range(network.num_classes):
            names[("score", name)] = f"score_{name}"
    names |= {"exit": "exit", "layers": "layers"}
    if {*names.values()} & {*columns}:
        from multiexit.data.own.notes import say

        names = {key: PREFIX + name for key, name in names.items()}
        say(f"columns of answers begin with {PREFIX} here")
    if clash := sorted({*names.values()} & {*columns}):
        raise ValueError(f"the table has a column {clash[0]!r} already: rename it")
    return names


def values(answer: dict[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """An answer by these columns."""
    flat: dict[Any, Any] = written(answer)
    if isinstance(scores := flat.get("scores"), dict):
        flat |= {("score", name): p for name, p in scores.items()}
    return {column: flat[key] for key, column in names.items()}
