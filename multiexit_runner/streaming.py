"""A stream of batches: inside, rows of different batches go together.

Letters: B batch rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from copy import deepcopy
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from multiexit_runner.graphs import Graphs, count_rows
from multiexit_runner.inputs import Arrays
from multiexit_runner.knobs import Knobs, by_row
from multiexit_runner.leaving import Answer
from multiexit_runner.reading import one_each, windows, windows_at_hand
from multiexit_runner.regroup import Group, join, long_first, merge, pad, shape_key
from multiexit_runner.waiting import Waiting


class Batch(NamedTuple):
    """A batch by name, and the policy's numbers for each of its rows."""

    arrays: Arrays
    numbers: Arrays


def stream(
    graphs: Graphs,
    batches: Iterable[Any],
    batch_size: int,
    window: int,
    knobs: Mapping[str, Any] | Iterable[Any],
    standing: Knobs,
) -> Iterator[Answer]:
    """As `Runner.stream`, which checks what it is given.

    Args:
        graphs: that answer.
        batches, batch_size, window, knobs: as there.
        standing: the policy's numbers, as they stood when it was asked.
    """
    batches_before = rows_before = 0
    at_once = isinstance(batches, Sized) and isinstance(knobs, Sized)
    kept = _kept(batches)
    if isinstance(knobs, Mapping):
        pairs = zip(kept, repeat(knobs), strict=False)
    else:
        pairs = one_each(kept, _kept(knobs), "knobs")
    source = windows_at_hand(pairs, window) if at_once else windows(pairs, window)
    for at_hand, error in source:
        read = []
        for batch, its in at_hand:
            try:
                arrays = _batch_arrays(graphs, batch)
                rows, given = count_rows(arrays), {} if its is None else its
                read.append(Batch(arrays, by_row(standing, graphs.ranges, given, rows)))
            except ValueError as wrong:
                error = ValueError(f"batch {batches_before + len(read)} of the stream: {wrong}")
                break
        answers = _window_answers(graphs, read, batch_size, rows_before) if read else ()
        for answer in answers:
            yield answer
            batches_before += 1
            rows_before += len(answer.exit_B)
        if error is not None:
            raise error


def _kept(source: Iterable[Any]) -> Iterator[Any]:
    """What a source gives, copied where it may fill the same arrays again."""
    return iter(source) if isinstance(source, list | tuple) else map(_copied, source)


def _copied(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _copied(value) for name, value in given.items()}
    filled = isinstance(given, list) or hasattr(given, "__array__")
    return deepcopy(given) if filled else given


def _batch_arrays(graphs: Graphs, batch: Any) -> Arrays:
    args, inputs = ((), batch) if isinstance(batch, Mapping) else ((batch,), {})
    arrays = graphs.named(args, inputs)
    graphs.trimmed(arrays)  # refuses what is too long
    return arrays


def _window_answers(
    graphs: Graphs, batches: Sequence[Batch], batch_size: int, rows_before: int
) -> Iterator[Answer]:
    """Answers of some batches, up to the first in which a row broke.

    Args:
        graphs: that answer.
        batches: that were read.
        batch_size: as for `stream`.
        rows_before: the number of the first row.
    """
    sizes = [count_rows(batch.arrays) for batch in batches]
    outputs = [graphs.outputs(batch.arrays) for batch in batches]
    rows = sum(sizes)
    answer = graphs.empty_answer(rows, max(outputs))
    waiting = Waiting(len(graphs.settings["segments"]), batch_size, shape_key, merge)
    broken: dict[int, str] = {}

    def step(group: Group) -> None:
        after, wrong = graphs.advance(group, answer)
        broken.update(wrong)
        if after is not None:
            waiting.add(after)

    trimmed = [graphs.trimmed(batch.arrays) for batch in batches]
    arrays = join(pad(trimmed, graphs.settings["inputs"]))
    numbers = join([batch.numbers for batch in batches])
    order_B = long_first(arrays, rows)
    for start in range(0, rows, batch_size):
        rows_B = order_B[start : start + batch_size]
        part, own = ({name: array[rows_B] for name, array in x.items()} for x in (arrays, numbers))
        waiting.add(graphs.first(part, own, rows_B))
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
