"""What a classifier says of its inputs, said of the rows, lines or files where they stood."""

import re
import warnings
from collections.abc import Sequence
from typing import Any


def classified(
    classify: Any, values: Sequence[Any], places: Sequence[str], batch_size: int
) -> list[dict[str, Any]]:
    """The classifier's answers to values; its warnings and errors name their places.

    Args:
        classify: the classifier.
        values: that it reads.
        places: of the values, for messages.
        batch_size: rows that go through the model together, at most.

    Raises:
        ValueError: what the classifier refuses.
    """

    def placed(text: str) -> str:
        return re.sub(r"inputs\[(\d+)\]", lambda found: places[int(found[1])], text)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            answers = classify(list(values), batch_size=batch_size)
        except ValueError as error:
            text = placed(str(error))
            where = "" if text != str(error) else f"from {places[0]} on: "
            raise ValueError(where + text) from error
    for each in told:
        warnings.warn(placed(str(each.message)), each.category, stacklevel=2)
    return answers
