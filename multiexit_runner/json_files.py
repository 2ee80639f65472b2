"""JSON of which nothing is lost when it is read."""

from collections import Counter
from typing import Any


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a table: the `object_pairs_hook` that refuses a key that is there twice.

    Args:
        pairs: keys and values, in order.

    Raises:
        ValueError: it names the key.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return table
