"""Groups of rows that go on together."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiexit.model import exit_loop


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_merging_and_resizing_keep_each_row_whole(data):
    """Whatever is merged, shrunk and filled up: each row keeps its carry, memory and state."""
    groups, number = [], 0
    for _ in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.integers(1, 5))
        ids = torch.arange(number, number + size)
        number += size
        running_B = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        running_B[0] = True
        carry = {"x": ids.float().unsqueeze(1), "mask": None}
        memory, state = {"m": 2 * ids}, {"s": 3 * ids}
        groups.append(
            exit_loop.Group(1, int(running_B.sum()), ids, running_B, carry, memory, state)
        )
    merged = exit_loop.merge(groups)
    assert merged.running == sum(group.running for group in groups)
    size = merged.running + data.draw(st.integers(0, 3))
    resized = exit_loop.resize(merged, size)
    running_B = resized.running_B
    alive = [int(row) for group in groups for row in group.rows_B[group.running_B]]
    assert len(resized.rows_B) == size
    assert resized.rows_B[running_B].tolist() == alive
    assert torch.equal(resized.carry["x"][:, 0], resized.rows_B.float())
    assert torch.equal(resized.memory["m"], 2 * resized.rows_B)
    assert torch.equal(resized.state["s"], 3 * resized.rows_B)
    assert resized.carry["mask"] is None
