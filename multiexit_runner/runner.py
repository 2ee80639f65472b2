"""Prediction from exported graphs: rows leave the batch at the exit where they stop.

Letters: M exits, B batch rows, T tokens, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from multiexit_runner.backends import ROUNDING, opener, runtime
from multiexit_runner.folder import ROWS, SETTINGS, SUMS, read_file, read_folder
from multiexit_runner.inputs import Arrays, named_arrays, trim
from multiexit_runner.knobs import by_row, check_numbers, last_exits, narrowed
from multiexit_runner.leaving import Answer, Said, broken_rows
from multiexit_runner.reading import windows, windows_at_hand
from multiexit_runner.regroup import Group, join, long_first, merge, pad, shape_key
from multiexit_runner.rows import from_bytes
from multiexit_runner.sessions import open_sessions, run
from multiexit_runner.settings import parse_settings, without_bounds
from multiexit_runner.waiting import Waiting


class Runner:
    """Predicts with a network that `multiexit.export` wrote.

    When it is made it runs the rows that the folder keeps: their logits must come out as they did
    where the graphs were made.

    Args:
        folder: where it lies.
        threads: of one call; None is as many as there are cores.
        providers: onnxruntime's, by name, the first that can; None is the CPU.
        check: whether to run those rows.
        backend: `"onnxruntime"`, or on the CPU `"openvino"`, or `"openvino-bf16"`, which multiplies
            in bfloat16 on CPUs that have it.

    Raises:
        ValueError: a folder with a missing or changed file, or of another format; a backend or
            provider that isn't there; a machine or provider that gives other logits, with the
            largest difference.

    Attributes:
        settings: all that is known of the network, as plain data.
        problem: what its outputs say of a row: `"classification"`, one of C classes;
            `"multi-label"`, for each of C whether it holds, yes where its logit is above 0;
            `"regression"`, C numbers; `"token-classification"`, a class for each token;
            `"embedding"`, a vector of length 1.
        num_classes: C.
        labels: the classes' names, or None.
        preprocessing: how inputs were prepared, plain data.
        runtime: what runs it, plain data: `backend`, `providers`, `precision` and `threads`, None
            where these are as many as there are cores.

    Example:
        >>> import tempfile, numpy as np, torch, multiexit as mx
        >>> from multiexit_runner import Runner
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parity = mx.export(model, f"{folder}/exported", mx.FixedExit(0))
        ...     answer = Runner(f"{folder}/exported").predict(np.ones((3, 4), np.float32))
        >>> answer.logits_BC.shape, answer.exit_B.tolist()
        ((3, 2), [0, 0, 0])
    """

    def __init__(
        self,
        folder: str | Path,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
        check: bool = True,
        backend: str = "onnxruntime",
    ):
        threads = None if threads is None else _count("threads", threads)
        if not isinstance(check, bool):
            raise ValueError(f"check must be True or False, got {check!r}")
        open_session = opener(backend, threads, providers)
        export = read_folder(folder)
        text = read_file(export, SETTINGS)
        settings = parse_settings(text, str(export.path / SETTINGS))
        rounds_otherwise = settings["int8"] is not None and backend != "onnxruntime"
        if backend in ROUNDING or rounds_otherwise:
            settings = without_bounds(settings)
        self._hold(settings, open_sessions(export, settings, open_session))
        self.runtime = runtime(backend, threads, providers, settings["int8"] is not None)
        read = {SETTINGS, *(segment["file"] for segment in self._segments)}
        others = {name: read_file(export, name) for name in export.sums if name not in read}
        if check:
            self._check_rows(others, str(export.path / ROWS), f"{providers or backend}")

    @classmethod
    def of_sessions(cls, settings: dict[str, Any], sessions: Sequence[Any]) -> "Runner":
        """A runner whose graphs run elsewhere; the rows that the folder keeps are not run.

        Args:
            settings: of the export, checked.
            sessions: of the graphs, each with onnxruntime's `run`.
        """
        runner = cls.__new__(cls)
        runner._hold(settings, sessions)
        runner.runtime = {}
        return runner

    def _hold(self, settings: dict[str, Any], sessions: Sequence[Any]) -> None:
        self.settings = settings
        self.problem: str = self.settings["problem"]
        self.num_classes: int = self.settings["num_classes"]
        self.labels: list[str] | None = self.settings["labels"]
        self.preprocessing: dict[str, Any] = self.settings["preprocessing"]
        self._knobs: dict[str, int | float] = self.settings["knobs"]
        self._ranges = narrowed(self.settings["ranges"], self.settings["scales"])
        self._segments = self.settings["segments"]
        self._sessions = sessions
        reads = [set(segment["inputs"]) for segment in self._segments]
        self._read_later = [set().union(*reads[exit + 1 :]) for exit in range(len(reads))]

    def _check_rows(self, files: Mapping[str, bytes], path: str, by: str) -> None:
        """Run the rows that the folder keeps, by this backend or these providers."""
        if ROWS not in files:
            raise ValueError(f"{path} isn't listed in {SUMS}: export the model again")
        rows = from_bytes(files[ROWS], self.settings, path)
        difference = float(np.abs(self.forward(**rows.inputs) - rows.exported_MBC).max())
        if not difference <= rows.allowed:
            int8 = self.settings["int8"]
            int8_note = "" if int8 is None else f", and its int8 is for {int8['machines']}"
            raise ValueError(
                f"this machine gives other answers than the one where {path} was made: with "
                f"{by}, logits of those rows differ by up to {difference:.2g} "
                f"({rows.allowed:.2g} is allowed){int8_note}. Export with target='auto', which is "
                "right on any CPU, or take another backend or provider"
            )

    @property
    def knobs(self) -> dict[str, int | float]:
        """The policy's numbers that `set` can turn, as they stand."""
        return dict(self._knobs)

    def set(self, **knobs: float) -> None:
        """Turn the policy's numbers, from the next call on: `runner.set(threshold=0.8)`.

        Raises:
            ValueError: a number that this policy lacks, that is no number of that kind, or that
                is far off the scale of what it is compared with.
        """
        check_numbers(self._knobs, self._ranges, knobs)
        self._knobs = {
            **self._knobs,
            **{name: type(self._knobs[name])(number) for name, number in knobs.items()},
        }

    def predict(
        self,
        *args: Any,
        knobs: Mapping[str, Any] | None = None,
        max_exit: Any = None,
        **inputs: Any,
    ) -> Answer:
        """Run until the policy stops each row; rows that stopped leave the batch.

        Graphs behind the exit where the last row leaves are not run at all.

        Args:
            args, inputs: numpy arrays, named as the network's own inputs or in their order. An
                empty batch gives an empty answer.
            knobs: for this call, numbers in place of the policy's: each one for all rows, or an
                array [B].
            max_exit: where rows leave at the latest, for all rows or an array [B].

        Returns:
            The rows' logits [B, C] and exits [B], in the order that the rows came in.

        Raises:
            ValueError: inputs that the network wasn't exported for; NaN or infinite logits,
                named by exit and row.
        """
        named = self._named_arrays(args, inputs)
        rows = _rows(named)
        numbers = self.numbers(rows, knobs)
        last_B = last_exits(len(self._segments), rows, max_exit)
        answer = self._empty_answer(rows, self._outputs(named))
        group = self.first(named, numbers, np.arange(rows)) if rows else None
        while group is not None:
            group, broken = self._advance(group, answer, last_B[group.rows_B] <= group.exit)
            if broken:
                row = min(broken)
                raise ValueError(broken[row].format(row=f"row {row}"))
        return answer

    def stream(
        self, batches: Iterable[Any], batch_size: int = 32, window: int = 8
    ) -> Iterator[Answer]:
        """Answer batch after batch, in order; inside, rows of different batches go together.

        Rows of up to `window` batches are sorted by length, and rows that wait at the same exit
        are put together until they fill a batch, so that deep graphs run full too. Where the
        source of the batches is slow, those that have come are answered after 0.05 s: nothing
        waits for a window to fill. All answers of a window are out before the next one is begun.

        Args:
            batches: of any sizes; each a dict of arrays by name, or one array. What has no length
                is read in a thread of its own, at most `window` batches ahead of the answers.
            batch_size: rows that go through a graph together.
            window: the most batches that are read ahead and kept in memory.

        Raises:
            ValueError: wrong arguments, at once; as `predict`, behind the answers of the batches
                before, with rows and batches counted from 0 at the stream's start. What the source
                raises comes as it is, behind the answers of the batches that it gave.
        """
        batch_size, window = _count("batch_size", batch_size), _count("window", window)
        if isinstance(batches, Mapping | str | bytes | np.ndarray) or not isinstance(
            batches, Iterable
        ):
            raise ValueError(
                "batches must be an iterable of batches, each a dict of arrays by name or one "
                f"array; got {type(batches).__name__}"
            )
        return self._stream(batches, batch_size, window, self.knobs)

    def _stream(
        self, batches: Iterable[Any], batch_size: int, window: int, knobs: Mapping[str, float]
    ) -> Iterator[Answer]:
        batches_before = rows_before = 0
        at_once = isinstance(batches, Sized)  # always the same ones together
        source = windows_at_hand(iter(batches), window) if at_once else windows(batches, window)
        for at_hand, error in source:
            read = []
            for batch in at_hand:
                try:
                    read.append(self._batch_arrays(batch))
                except ValueError as wrong:
                    error = ValueError(f"batch {batches_before + len(read)} of the stream: {wrong}")
                    break
            answers = self._window_answers(read, batch_size, knobs, rows_before) if read else ()
            for answer in answers:
                yield answer
                batches_before += 1
                rows_before += len(answer.exit_B)
            if error is not None:
                raise error

    def _batch_arrays(self, batch: Any) -> Arrays:
        args, inputs = ((), batch) if isinstance(batch, Mapping) else ((batch,), {})
        arrays = self._named_arrays(args, inputs)
        self._trimmed(arrays)  # refuses what is too long
        return arrays

    def _window_answers(
        self,
        batches: Sequence[Arrays],
        batch_size: int,
        knobs: Mapping[str, float],
        rows_before: int,
    ) -> Iterator[Answer]:
        """Answers of some batches, up to the first in which a row broke.

        Args:
            batches: inputs by name.
            batch_size: as for `stream`.
            knobs: the policy's numbers.
            rows_before: the number of the first row.
        """
        sizes = [_rows(arrays) for arrays in batches]
        outputs = [self._outputs(arrays) for arrays in batches]
        rows = sum(sizes)
        answer = self._empty_answer(rows, max(outputs))
        waiting = Waiting(len(self._segments), batch_size, shape_key, merge)
        broken: dict[int, str] = {}

        def step(group: Group) -> None:
            after, wrong = self._advance(group, answer)
            broken.update(wrong)
            if after is not None:
                waiting.add(after)

        arrays = join(pad([self._trimmed(batch) for batch in batches], self.settings["inputs"]))
        order_B = long_first(arrays, rows)
        for start in range(0, rows, batch_size):
            rows_B = order_B[start : start + batch_size]
            part = {name: array[rows_B] for name, array in arrays.items()}
            waiting.add(self.first(part, self.numbers(len(rows_B), knobs), rows_B))
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

    def first(self, arrays: Arrays, numbers: Arrays, rows_B: np.ndarray) -> Group:
        """Rows before the first exit, without columns that are padding in all of them.

        Args:
            arrays: the inputs by name.
            numbers: from `numbers`.
            rows_B: the rows' places in the answer.
        """
        return Group(0, rows_B, {**self._trimmed(arrays), **numbers})

    def segment(self, exit: int, arrays: Arrays) -> Said:
        """Run one exit's graph on rows that came to it.

        Args:
            exit: counted from 0.
            arrays: what the graphs before gave and left, and the policy's numbers.

        Raises:
            ValueError: whatever goes wrong in the graph.
        """
        after, outputs = self._run(exit, arrays)
        logits_BC = outputs["logits"]
        stop_B = outputs["stop"] if "stop" in outputs else np.ones(len(logits_BC), bool)
        answer_BC = outputs.get("answer", logits_BC)
        return Said(answer_BC, stop_B, broken_rows(exit, logits_BC), after)

    def _advance(
        self, group: Group, answer: Answer, last_B: np.ndarray | None = None
    ) -> tuple[Group | None, dict[int, str]]:
        """Past the next exit: who stops is written down, who goes on is returned.

        Args:
            group: the rows.
            answer: filled in at the places of those that stop.
            last_B: those that leave whatever the policy says.

        Returns:
            The rows that go on, None where there are none; and those that broke, which don't, by
            number, with what is wrong.
        """
        exit, rows_B = group.exit, group.rows_B
        try:
            said = self.segment(exit, group.arrays)
        except ValueError as error:
            what = str(error).replace("{", "{{").replace("}", "}}")
            return None, {int(row): f"{{row}}: {what}" for row in rows_B}
        leave_B = said.stop_B if last_B is None else said.stop_B | last_B
        after = Group(exit + 1, rows_B, said.arrays)
        if not said.broken and not leave_B.any():
            return after, {}
        fine_B = np.ones(len(rows_B), bool)
        fine_B[list(said.broken)] = False
        leave_B, stay_B = leave_B & fine_B, ~leave_B & fine_B
        answer.logits_BC[rows_B[leave_B], : said.answer_BC.shape[1]] = said.answer_BC[leave_B]
        answer.exit_B[rows_B[leave_B]] = exit
        broken = {int(rows_B[place]): what for place, what in said.broken.items()}
        return (after.take(stay_B) if stay_B.any() else None), broken

    def _outputs(self, arrays: Arrays) -> tuple[int, ...]:
        """The shape of a row's logits: [C], or of tokens [T, C]."""
        C = self.settings["num_classes"]
        tokens = self.problem == "token-classification"
        return (next(iter(arrays.values())).shape[1], C) if tokens else (C,)

    def _empty_answer(self, rows: int, outputs: tuple[int, ...]) -> Answer:
        """Answers to be filled in; padding that is cut before it runs keeps 0."""
        return Answer(np.zeros((rows, *outputs), np.float32), np.empty(rows, np.int64))

    def forward(self, *args: Any, **inputs: Any) -> np.ndarray:
        """All exits' logits, float32 [M, B, C], or of tokens [M, B, T, C]: nobody stops.

        Args:
            args, inputs: as for `predict`.

        Raises:
            ValueError: inputs that the network wasn't exported for.
        """
        named = self._named_arrays(args, inputs)
        rows = _rows(named)
        arrays = {**self._trimmed(named), **self.numbers(rows)}
        logits_MBC = np.zeros((len(self._segments), rows, *self._outputs(named)), np.float32)
        for exit in range(len(self._segments) if rows else 0):
            arrays, outputs = self._run(exit, arrays)
            logits_MBC[exit, :, : outputs["logits"].shape[1]] = outputs["logits"]
        return logits_MBC

    def _named_arrays(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> Arrays:
        return named_arrays(self.settings["inputs"], args, inputs)

    def _trimmed(self, arrays: Arrays) -> Arrays:
        return trim(arrays, self.settings["inputs"], self.settings["max_tokens"])

    def numbers(self, rows: int, knobs: Mapping[str, Any] | None = None) -> Arrays:
        """The policy's numbers as the graphs take them, one for each row.

        Args:
            rows: B.
            knobs: in place of those that stand, by name: a number, or an array [B].

        Raises:
            ValueError: a number that this policy can't take; an array of another length.
        """
        return by_row(self._knobs, self._ranges, knobs or {}, rows)

    def _run(self, exit: int, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """Run a graph: what later graphs read, and what this one says of its rows."""
        outputs = run(self._sessions[exit], self._segments[exit], arrays)
        rows = _rows(arrays)
        if any(array.shape[:1] != (rows,) for array in outputs.values()) or (
            "stop" in outputs and outputs["stop"].ndim != 1
        ):
            raise ValueError(f"{self._segments[exit]['file']} doesn't give a row per row")
        read, both = self._read_later[exit], {**arrays, **outputs}
        return {name: both[name] for name in both if name in read}, outputs


def _rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number and at least 1, got {value!r}")
    return int(value)
