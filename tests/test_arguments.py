"""Shares of a whole: which of the ends belong to them, and what is no number."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from multiexit.arguments import check_share

INTERVALS = [f"{left}0, 1{right}" for left, right in product("[(", "])")]
TINY = 5e-324


def refused(value, within):
    try:
        check_share("mix", value, within)
    except ValueError as error:
        said, _, meant = str(error).partition(": did you mean ")
        assert said == f"mix must be a number in {within}, got {value!r}"
        assert bool(meant) == (isinstance(value, int | float) and 2 <= value < 100)
        return True
    return False


@pytest.mark.parametrize("within", INTERVALS)
def test_the_ends_belong_to_it_or_not(within):
    for low in (0, 0.0, -0.0, np.float32(0)):
        assert refused(low, within) == (within[0] == "(")
    for high in (1, 1.0, np.float64(1)):
        assert refused(high, within) == (within[-1] == ")")
    for inside in (TINY, 0.5, np.float32(0.5), math.nextafter(1, 0)):
        assert not refused(inside, within)
    for outside in (-TINY, math.nextafter(1, 2), 1.5, 2, 99.5, 100, -1, 10**400, math.nan):
        assert refused(outside, within)
    for outside in (math.inf, -math.inf):
        assert refused(outside, within)
    for other in (True, None, "0.5", (0.5,), torch.tensor(0.5), 0.5j):
        assert refused(other, within)
