"""Padding that is cut off, and batches that are joined."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from multiexit.data import padding


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 8), st.sampled_from([None, 9, 11]))
def test_trimming_keeps_every_real_token(rows, tokens, step, most):
    mask = torch.randint(2, (rows, tokens))
    mask[:, 0] = 1
    ids = torch.arange(1, rows * tokens + 1).view(rows, tokens)
    cut = padding.trim({"input_ids": ids, "attention_mask": mask, "other": 3}, step, most)
    width = cut["input_ids"].shape[1]
    assert width % step == 0 if width != most else width <= most
    assert width - step < max(int(row.nonzero().max()) + 1 for row in mask)
    real = cut["attention_mask"].bool()
    assert torch.equal(cut["input_ids"][real], ids[mask.bool()])
    assert cut["other"] == 3


def test_one_row_for_all_is_spread_when_batches_are_joined():
    one = {"x": torch.ones(3, 2), "place": torch.tensor([[5, 6]])}
    two = {"x": torch.zeros(2, 2), "place": torch.tensor([[7, 8]])}
    joined = padding.join([one, two], [3, 2])
    assert joined["x"].shape == (5, 2)
    assert joined["place"].tolist() == [[5, 6]] * 3 + [[7, 8]] * 2
