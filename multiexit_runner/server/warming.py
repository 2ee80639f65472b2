"""Rows that are run before requests come, which then don't pay for what is slow the first time.

That is kernels that are chosen or compiled, memory, pools of threads. It would look like load: a
policy that keeps to a target would be turned faster, and requests be shed, for what comes once.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from multiexit_runner.server.network import Network
from multiexit_runner.server.served import Served

SECONDS = 2.0
"""Within which sizes are begun. Where a batch takes as long as that, the first of its size takes
little longer than the next."""

MEASURED = 3
"""Runs by which a segment's time for a row alone is known before a request comes."""


def warm_up(
    served: Served, policy: Any, batch_size: int, on_run: Callable[[int, int, float], None]
) -> int:
    """Run each segment on rows of several lengths, alone and then in batches of doubling size.

    It belongs in the thread that runs the network, whose pools of threads may be its own.

    Args:
        served: whose network is run, on its examples.
        policy: of the rows, as the network takes it.
        batch_size: the largest batch.
        on_run: called at the end, for the shortest row in batches and alone, as the scheduler calls
            its own.

    Returns:
        How many rows were run.
    """
    items = [*_items(served)]
    sizes = [*(1 << n for n in range(batch_size.bit_length()) if 1 << n < batch_size), batch_size]
    began, rows, warm = time.perf_counter(), 0, []
    for size, item in ((size, item) for size in sizes for item in items):
        if rows and time.perf_counter() - began > SECONDS:
            break
        rows += _run(served.network, [item] * size, policy)
        warm += [size] * (item is items[0])
    for size in [*reversed(warm[1:]), *warm[:1] * MEASURED]:
        rows += _run(served.network, items[:1] * size, policy, on_run)
    return rows


def _items(served: Served) -> Iterator[Any]:
    """Examples as the network takes them, of each length one."""
    lengths = set()
    for place, example in enumerate(served.examples):
        item = served.encode(example, place).inputs
        try:
            length = served.network.length(item)
        except ValueError:  # it is longer than the network takes
            return
        if length not in lengths:
            lengths.add(length)
            yield item


def _run(
    network: Network[Any],
    items: list[Any],
    policy: Any,
    on_run: Callable[[int, int, float], None] = lambda exit, rows, seconds: None,
) -> int:
    """Through all segments; between them rows are taken apart and put together. How many it was."""
    rows = len(items)
    group = network.first(items, [policy] * rows)
    for exit in range(network.num_exits):
        start = time.perf_counter()
        group = network.run(exit, group).after
        on_run(exit, rows, time.perf_counter() - start)
        if rows > 1 and exit < network.num_exits - 1:
            first_B = np.arange(rows) < rows // 2
            group = network.merge([network.take(group, first_B), network.take(group, ~first_B)])
    return rows
