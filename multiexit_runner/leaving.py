"""What an exit says of its rows, and what rows take along.

Letters: B batch rows, T tokens, C classes.
"""

from typing import NamedTuple

import numpy as np

from multiexit_runner.inputs import Arrays


class Answer(NamedTuple):
    """Answers in the order the rows came in.

    Args:
        logits_BC: the logits of the exit where each row left, float32. Of tokens they are
            [B, T, C], in the order of the inputs, and 0 at padding.
        exit_B: which exit that was, counted from 0, int64.
    """

    logits_BC: np.ndarray
    exit_B: np.ndarray


class Said(NamedTuple):
    """What one exit says of its rows.

    Args:
        answer_BC: the logits that each would take along.
        stop_B: whom the policy stops, bool; at the last exit everyone.
        broken: by place, what is wrong with a row, with `{row}` for how to call it.
        arrays: what the graphs behind it read.
    """

    answer_BC: np.ndarray
    stop_B: np.ndarray
    broken: dict[int, str]
    arrays: Arrays


def broken_rows(exit: int, logits_BC: np.ndarray) -> dict[int, str]:
    """The message for each row whose logits are NaN or infinite, by its place."""
    finite_BC = np.isfinite(logits_BC)
    if finite_BC.all():
        return {}
    broken_B = ~finite_BC.reshape(len(logits_BC), -1).all(1)

    def broken_logits(place: int) -> list[float]:
        if logits_BC.ndim == 2:
            return logits_BC[place].tolist()
        return logits_BC[place][~finite_BC[place].all(1)][0].tolist()  # of a token

    return {
        place: f"exit {exit} gave NaN or infinite logits for {{row}}: {broken_logits(place)}"
        for place in np.flatnonzero(broken_B).tolist()
    }
