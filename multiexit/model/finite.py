"""Logits that are not finite, named by exit and row.

Letters: M exits, B batch rows, C classes.
"""

from torch import Tensor


class NotFinite(ValueError):
    """NaN or infinite logits of a row."""

    def __init__(self, exit: int, row: int, logits_C: list[float], where: str = ""):
        self.exit, self.row, self.logits_C = exit, row, logits_C
        super().__init__(
            f"exit {exit} gave NaN or infinite logits for row {row}{where}: {logits_C}"
        )

    def shifted(self, rows: int, where: str) -> "NotFinite":
        """The same of a row behind so many others."""
        return NotFinite(self.exit, self.row + rows, self.logits_C, where)


def check_finite(
    exit: int, logits_BC: Tensor, rows_B: Tensor | None = None, where: str = ""
) -> None:
    """Refuse NaN and infinite logits of an exit.

    Args:
        exit: its number, for the message.
        logits_BC: its logits [B, C], or of tokens [B, T, C].
        rows_B: the rows' numbers [B], for the message; None is 0..B−1.
        where: behind the row's number in the message.

    Raises:
        NotFinite: the first row of which one is NaN or infinite.

    Example:
        >>> import torch
        >>> from multiexit.model.finite import check_finite
        >>> check_finite(2, torch.tensor([[0.5, 0.0], [float("inf"), 0.0]]))
        Traceback (most recent call last):
        multiexit.model.finite.NotFinite: exit 2 gave NaN or infinite logits for row 1: [inf, 0.0]
    """
    places = (~logits_BC.isfinite().flatten(1).all(1)).nonzero().flatten()
    if not len(places):
        return
    place = places[0 if rows_B is None else rows_B[places].argmin()]
    row = int(place if rows_B is None else rows_B[place])
    logits_C = logits_BC[place]
    if logits_C.ndim == 2:  # the row's tokens
        logits_C = logits_C[~logits_C.isfinite().all(1)][0]
    raise NotFinite(exit, row, logits_C.tolist(), where)
