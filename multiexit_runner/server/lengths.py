"""Which texts go through a network together: those of about one length."""

LENGTH_STEP = 8
"""Texts go together whose lengths, in tokens, are the same up to the next multiple."""


def filled_length(tokens: int, limit: int | None) -> int:
    """How many tokens a text is filled up to.

    Args:
        tokens: of the text.
        limit: how many the network takes; None is any.

    Raises:
        ValueError: a text with more than that.

    >>> filled_length(9, None), filled_length(9, 12)
    (16, 12)
    """
    length = -(-tokens // LENGTH_STEP) * LENGTH_STEP
    if limit is None:
        return length
    if tokens > limit:
        raise ValueError(f"a text of {tokens} tokens; this network takes at most {limit}")
    return min(length, limit)
