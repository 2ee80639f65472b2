"""Prediction from exported graphs: rows leave the batch at the exit where they stop.

Letters: M exits, B batch rows, C classes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from multiexit_runner import folder as folders
from multiexit_runner.inputs import Arrays, named, trim
from multiexit_runner.regroup import Group, Waiting, join, long_first, pad


class Answer(NamedTuple):
    """Answers in the order the rows came in.

    Args:
        logits_BC: the logits of the exit where each row left, float32.
        exit_B: which exit that was, counted from 0, int64.
    """

    logits_BC: np.ndarray
    exit_B: np.ndarray


class Runner:
    """Predicts with a network that `multiexit.export` wrote.

    Args:
        folder: where it lies.
        threads: of one call; None is as many as there are cores.
        providers: onnxruntime's, by name, the first that can; None is the CPU.

    Raises:
        ValueError: a folder with a missing or changed file, or of another format.

    Attributes:
        settings: all that is known of the network, as plain data.
        labels: the classes' names, or None.
        preprocessing: how inputs were prepared, plain data.
    """

    def __init__(
        self,
        folder: str | Path,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
    ):
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        path, self.settings = folders.read(folder)
        self.labels: list[str] | None = self.settings["labels"]
        self.preprocessing: dict[str, Any] = self.settings["preprocessing"]
        self._knobs: dict[str, int | float] = self.settings["knobs"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Each session has its own threads: those of one must not spin while the next one works.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._segments = self.settings["segments"]
        self._sessions = [
            ort.InferenceSession(
                path / segment["file"], options, providers or ["CPUExecutionProvider"]
            )
            for segment in self._segments
        ]

    @property
    def knobs(self) -> dict[str, int | float]:
        """The policy's numbers that `set` can turn, as they stand."""
        return dict(self._knobs)

    def set(self, **knobs: float) -> None:
        """Turn the policy's numbers, from the next call on: `runner.set(threshold=0.8)`.

        Raises:
            ValueError: a number that this policy lacks, or that is no number of that kind.
        """
        for name, number in knobs.items():
            if name not in self._knobs:
                raise ValueError(
                    f"no number {name!r} to set; this policy has {sorted(self._knobs)}"
                )
            whole = isinstance(self._knobs[name], int)
            real = isinstance(number, Real) and math.isfinite(number)
            if not real or (whole and number != int(number)):
                kind = "a whole" if whole else "a finite"
                raise ValueError(f"{name} must be {kind} number, got {number!r}")
        self._knobs = {
            **self._knobs,
            **{name: type(self._knobs[name])(number) for name, number in knobs.items()},
        }

    def predict(self, *args: Any, **inputs: Any) -> Answer:
        """Run until the policy stops each row; rows that stopped leave the batch.

        Graphs behind the exit where the last row leaves are not run at all.

        Args:
            args, inputs: numpy arrays, named as the network's own inputs or in their order. An
                empty batch gives an empty answer.

        Raises:
            ValueError: inputs that the network wasn't exported for; NaN or infinite logits,
                named by exit and row.
        """
        arrays, numbers = self._cut(self._named(args, inputs)), self._numbers()
        rows = _rows(arrays)
        answer = self._blank(rows)
        group = Group(0, np.arange(rows), arrays) if rows else None
        while group is not None:
            group = self._advance(group, numbers, answer)
        return answer

    def stream(
        self, batches: Iterable[Any], batch_size: int = 32, window: int = 8
    ) -> Iterator[Answer]:
        """Answers for batch after batch, in order; inside, rows of different batches go together.

        Rows of `window` batches are sorted by length, and rows that wait at the same exit are put
        together until they fill a batch, so that deep graphs run full too. Answers come when the
        whole window is done.

        Args:
            batches: of any sizes; each a dict of arrays by name, or one array.
            batch_size: rows that go through a graph together.
            window: batches read ahead.

        Raises:
            ValueError: as `predict`; the row is counted from the window's first.
        """
        for name, value in (("batch_size", batch_size), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        each = iter(batches)
        while ahead := list(islice(each, window)):
            yield from self._window(ahead, batch_size)

    def _window(self, batches: Sequence[Any], batch_size: int) -> Iterator[Answer]:
        given = (((), batch) if isinstance(batch, Mapping) else ((batch,), {}) for batch in batches)
        read = [self._cut(self._named(args, inputs)) for args, inputs in given]
        sizes = [_rows(arrays) for arrays in read]
        rows, numbers = sum(sizes), self._numbers()
        answer, waiting = self._blank(rows), Waiting(len(self._segments), batch_size)

        def step(group: Group) -> None:
            after = self._advance(group, numbers, answer)
            if after is not None:
                waiting.add(after)

        arrays = join(pad(read, self.settings["inputs"]))
        order_B = long_first(arrays, rows)
        for start in range(0, rows, batch_size):
            some = Group(0, np.arange(rows), arrays).take(order_B[start : start + batch_size])
            some.arrays = self._cut(some.arrays)
            waiting.add(some)
            while (group := waiting.full()) is not None:
                step(group)
        while (group := waiting.any()) is not None:
            step(group)
        bounds = np.cumsum(sizes)[:-1]
        yield from map(Answer, *(np.split(part, bounds) for part in answer))

    def _advance(self, group: Group, numbers: Arrays, answer: Answer) -> Group | None:
        """Past the next exit: who stops is written down, who goes on is returned."""
        exit, rows_B = group.exit, group.rows_B
        arrays, said = self._run(exit, group.arrays, numbers)
        _check_finite(exit, rows_B, said["logits"])
        stop_B = said.get("stop", np.ones(len(rows_B), bool))
        answer.logits_BC[rows_B[stop_B]] = said.get("answer", said["logits"])[stop_B]
        answer.exit_B[rows_B[stop_B]] = exit
        after = Group(exit + 1, rows_B, arrays)
        if stop_B.all():
            return None
        return after.take(~stop_B) if stop_B.any() else after

    def _blank(self, rows: int) -> Answer:
        """Answers to be filled in."""
        logits_BC = np.empty((rows, self.settings["num_classes"]), np.float32)
        return Answer(logits_BC, np.empty(rows, np.int64))

    def forward(self, *args: Any, **inputs: Any) -> np.ndarray:
        """All exits' logits, [M, B, C]: nobody stops."""
        arrays, numbers = self._cut(self._named(args, inputs)), self._numbers()
        logits = []
        if not _rows(arrays):
            return np.empty((len(self._segments), 0, self.settings["num_classes"]), np.float32)
        for exit in range(len(self._segments)):
            arrays, said = self._run(exit, arrays, numbers)
            logits.append(said["logits"])
        return np.stack(logits)

    def _named(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> Arrays:
        return named(self.settings["inputs"], args, inputs)

    def _cut(self, arrays: Arrays) -> Arrays:
        return trim(arrays, self.settings["inputs"], self.settings["max_tokens"])

    def _numbers(self) -> Arrays:
        """The policy's numbers as the graphs take them."""
        types = {int: np.int64, float: np.float32}
        knobs = self._knobs
        return {f"policy.{name}": np.array(knobs[name], types[type(knobs[name])]) for name in knobs}

    def _run(self, exit: int, arrays: Arrays, numbers: Arrays) -> tuple[Arrays, Arrays]:
        """What later graphs read, and what this one says of its rows."""
        segment = self._segments[exit]
        given = {**arrays, **numbers}
        feed = {name: given[name] for name in segment["inputs"]}
        values = self._sessions[exit].run(None, feed)
        said = dict(zip(segment["outputs"], map(np.asarray, values), strict=True))
        kept = {name for later in self._segments[exit + 1 :] for name in later["inputs"]}
        known = {**arrays, **said}
        return {name: known[name] for name in known if name in kept}, said


def _rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _check_finite(exit: int, rows_B: np.ndarray, logits_BC: np.ndarray) -> None:
    broken_B = ~np.isfinite(logits_BC).all(1)
    if broken_B.any():
        row, logits_C = rows_B[broken_B][0], logits_BC[broken_B][0].tolist()
        raise ValueError(f"exit {exit} gave NaN or infinite logits for row {row}: {logits_C}")
