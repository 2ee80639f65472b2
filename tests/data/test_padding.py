"""Padding that is cut off, and batches that are joined."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from multiexit.data import padding
from multiexit.data.row_keys import row_keys


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


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_columns_beside_tokens_stay_as_they_are(rows, columns, one, two):
    """As many as there are tokens, or not; what grows with the tokens is padded with them."""

    def batch(tokens):
        mask = torch.zeros(rows, tokens, dtype=torch.long)
        mask[:, 0] = 1
        ids = torch.arange(1, rows * tokens + 1).view(rows, tokens)
        table = torch.rand(rows, columns)
        return {"input_ids": ids, "attention_mask": mask, "table": table, "tags": ids}

    batches = [batch(one), batch(two)]
    for each in batches:
        del each["tags"]
        cut = padding.trim(each)
        assert torch.equal(cut["table"], each["table"])
        T = each["input_ids"].shape[1]
        assert cut["input_ids"].shape[1] == (T if columns == T else 1)
    batches = [batch(one), batch(two)]
    joined = padding.join(batches, [rows, rows])
    assert torch.equal(joined["table"], torch.cat([each["table"] for each in batches]))
    assert torch.equal(joined["tags"], joined["input_ids"])


def test_rows_that_differ_beside_their_tokens_have_other_keys():
    ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
    text = {"input_ids": ids, "attention_mask": mask}
    keys = [
        row_keys((), {**text, "table": torch.tensor([[1.0, 2, last]])}, 1).item()
        for last in (0.0, 3.0)
    ]
    assert len({*keys}) == 2
    assert row_keys((), {**text, "table": torch.zeros(1, 0)}, 1) is not None
    longer = {name: torch.nn.functional.pad(x, (0, 2)) for name, x in text.items()}
    wide, narrow = ({**each, "tags": each["input_ids"]} for each in (longer, text))
    assert row_keys((), wide, 1) == row_keys((), narrow, 1)
