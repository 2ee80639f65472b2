"""A stream of batches: inside, rows of different batches go together.

Letters: B batch rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from multiexit_runner.graphs import Graphs, count_rows
from multiexit_runner.inputs import Arrays
from multiexit_runner.leaving import Answer
from multiexit_runner.reading import windows, windows_at_hand
from multiexit_runner.regroup import Group, join, long_first, merge, pad, shape_key
from multiexit_runner.waiting import Waiting


def stream(
    graphs: Graphs, batches: Iterable[Any], batch_size: int, window: int, knobs: Mapping[str, float]
) -> Iterator[Answer]:
    """As `Runner.stream`, which checks what it is given.

    Args:
        graphs: that answer.
        batches, batch_size, window: as there.
        knobs: the policy's numbers, as they stood when it was asked.
    """
    batches_before = rows_before = 0
    at_once = isinstance(batches, Sized)  # always the same ones together
    source = windows_at_hand(iter(batches), window) if at_once else windows(batches, window)
    for at_hand, error in source:
        read = []
        for batch in at_hand:
            try:
                read.append(_batch_arrays(graphs, batch))
            except ValueError as wrong:
                error = ValueError(f"batch {batches_before + len(read)} of the stream: {wrong}")
                break
        answers = _window_answers(graphs, read, batch_size, knobs, rows_before) if read else ()
        for answer in answers:
            yield answer
            batches_before += 1
            rows_before += len(answer.exit_B)
        if error is not None:
            raise error


def _batch_arrays(graphs: Graphs, batch: Any) -> Arrays:
    args, inputs = ((), batch) if isinstance(batch, Mapping) else ((batch,), {})
    arrays = graphs.named(args, inputs)
    graphs.trimmed(arrays)  # refuses what is too long
    return arrays


def _window_answers(
    graphs: Graphs,
    batches: Sequence[Arrays],
    batch_size: int,
    knobs: Mapping[str, float],
    rows_before: int,
) -> Iterator[Answer]:
    """Answers of some batches, up to the first in which a row broke.

    Args:
        graphs: that answer.
        batches: inputs by name.
        batch_size: as for `stream`.
        knobs: the policy's numbers.
        rows_before: the number of the first row.
    """
    sizes = [count_rows(arrays) for arrays in batches]
    outputs = [graphs.outputs(arrays) for arrays in batches]
    rows = sum(sizes)
    answer = graphs.empty_answer(rows, max(outputs))
    waiting = Waiting(len(graphs.settings["segments"]), batch_size, shape_key, merge)
    broken: dict[int, str] = {}

    def step(group: Group) -> None:
        after, wrong = graphs.advance(group, answer)
        broken.update(wrong)
        if after is not None:
            waiting.add(after)

    arrays = join(pad([graphs.trimmed(batch) for batch in batches], graphs.settings["inputs"]))
    order_B = long_first(arrays, rows)
    for start in range(0, rows, batch_size):
        rows_B = order_B[start : start + batch_size]
        part = {name: array[rows_B] for name, array in arrays.items()}
        waiting.add(graphs.first(part, graphs.numbers(len(rows_B), knobs), rows_B))
        while (group := waiting.full()) is not None:
            step(group)
    while (group := waiting.any()) is not None:
        step(group)
    ends = np.cumsum(sizes)
    worst = min(broken, default=rows)
    parts = zip(*(np.split(part, ends[:-1]) for part in answer), outputs, strict=True)
    for end, (logits_BC, exit_B, shape) in zip(ends, parts, strict=True):
        if end > worst:
            row = f"row {rows_before + worst} of the stream"
            raise ValueError(broken[worst].format(row=row))
        yield Answer(logits_BC[:, : shape[0]], exit_B)  # of tokens, as many as its batch has
