"""Logits that are not finite: which are named."""

import math

import pytest
import torch

from multiexit.model.finite import NotFinite, check_finite

LOGITS = torch.tensor([[0.5, 1.0], [1.0, -math.inf], [math.nan, 0.0]])


@pytest.mark.parametrize(("numbers", "row"), [(None, 1), ([4, 9, 2], 2), ([0, 3, 7], 3)])
def test_the_lowest_row_is_named(numbers, row):
    rows_B = None if numbers is None else torch.tensor(numbers)
    with pytest.raises(NotFinite, match=f"exit 6 gave NaN or infinite logits for row {row} here: "):
        check_finite(6, LOGITS, rows_B, " here")


def test_finite_logits_pass():
    check_finite(0, LOGITS[:1])
    check_finite(0, LOGITS[:0])
