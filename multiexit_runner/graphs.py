"""An export's graphs, run one by one: rows leave the batch at the exit where they stop.

Letters: M exits, B batch rows, T tokens, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multiexit_runner.inputs import Arrays, named_arrays, trim
from multiexit_runner.knobs import by_row, check_numbers, last_exits, narrowed
from multiexit_runner.leaving import Answer, Said, broken_rows
from multiexit_runner.regroup import Group
from multiexit_runner.sessions import run


class Graphs:
    """Graphs that are there, whoever runs them, with the numbers of their policy.

    Args:
        settings: of the export, checked.
        sessions: of the graphs, each with onnxruntime's `run`.

    Attributes:
        settings, problem, num_classes, labels, preprocessing: as `Runner` has them.
        ranges: the lowest and the highest that the policy's numbers may be.
    """

    def __init__(self, settings: dict[str, Any], sessions: Sequence[Any]):
        self.settings = settings
        self.problem: str = settings["problem"]
        self.num_classes: int = settings["num_classes"]
        self.labels: list[str] | None = settings["labels"]
        self.preprocessing: dict[str, Any] = settings["preprocessing"]
        self._knobs: dict[str, int | float] = settings["knobs"]
        self.ranges = narrowed(settings["knobs"], settings["ranges"], settings["scales"])
        self._segments = settings["segments"]
        self._sessions = sessions
        reads = [set(segment["inputs"]) for segment in self._segments]
        self._read_later = [set().union(*reads[exit + 1 :]) for exit in range(len(reads))]

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
        check_numbers(self._knobs, self.ranges, knobs)
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
        named = self.named(args, inputs)
        rows = count_rows(named)
        numbers = self.numbers(rows, knobs)
        last_B = last_exits(len(self._segments), rows, max_exit)
        answer = self.empty_answer(rows, self.outputs(named))
        group = self.first(named, numbers, np.arange(rows)) if rows else None
        while group is not None:
            group, broken = self.advance(group, answer, last_B[group.rows_B] <= group.exit)
            if broken:
                row = min(broken)
                raise ValueError(broken[row].format(row=f"row {row}"))
        return answer

    def forward(self, *args: Any, **inputs: Any) -> np.ndarray:
        """All exits' logits, float32 [M, B, C], or of tokens [M, B, T, C]: nobody stops.

        Args:
            args, inputs: as for `predict`.

        Raises:
            ValueError: inputs that the network wasn't exported for.
        """
        named = self.named(args, inputs)
        rows = count_rows(named)
        arrays = {**self.trimmed(named), **self.numbers(rows)}
        logits_MBC = np.zeros((len(self._segments), rows, *self.outputs(named)), np.float32)
        for exit in range(len(self._segments) if rows else 0):
            arrays, outputs = self._run(exit, arrays)
            logits_MBC[exit, :, : outputs["logits"].shape[1]] = outputs["logits"]
        return logits_MBC

    def first(self, arrays: Arrays, numbers: Arrays, rows_B: np.ndarray) -> Group:
        """Rows before the first exit, without columns that are padding in all of them.

        Args:
            arrays: the inputs by name.
            numbers: from `numbers`.
            rows_B: the rows' places in the answer.
        """
        return Group(0, rows_B, {**self.trimmed(arrays), **numbers})

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

    def advance(
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

    def outputs(self, arrays: Arrays) -> tuple[int, ...]:
        """The shape of a row's logits: [C], or of tokens [T, C]."""
        C = self.settings["num_classes"]
        tokens = self.problem == "token-classification"
        return (next(iter(arrays.values())).shape[1], C) if tokens else (C,)

    def empty_answer(self, rows: int, outputs: tuple[int, ...]) -> Answer:
        """Answers to be filled in; padding that is cut before it runs keeps 0."""
        return Answer(np.zeros((rows, *outputs), np.float32), np.empty(rows, np.int64))

    def named(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> Arrays:
        """Inputs by name, refused where the network wasn't exported for them."""
        return named_arrays(self.settings["inputs"], args, inputs)

    def trimmed(self, arrays: Arrays) -> Arrays:
        """Inputs without columns that are padding in all rows."""
        return trim(arrays, self.settings["inputs"], self.settings["max_tokens"])

    def numbers(self, rows: int, knobs: Mapping[str, Any] | None = None) -> Arrays:
        """The policy's numbers as the graphs take them, one for each row.

        Args:
            rows: B.
            knobs: in place of those that stand, by name: a number, or an array [B].

        Raises:
            ValueError: a number that this policy can't take; an array of another length.
        """
        return by_row(self._knobs, self.ranges, knobs or {}, rows)

    def _run(self, exit: int, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """Run a graph: what later graphs read, and what this one says of its rows."""
        outputs = run(self._sessions[exit], self._segments[exit], arrays)
        rows = count_rows(arrays)
        if any(array.shape[:1] != (rows,) for array in outputs.values()) or (
            "stop" in outputs and outputs["stop"].ndim != 1
        ):
            raise ValueError(f"{self._segments[exit]['file']} doesn't give a row per row")
        read, both = self._read_later[exit], {**arrays, **outputs}
        return {name: both[name] for name in both if name in read}, outputs


def count_rows(arrays: Arrays) -> int:
    """B."""
    return len(next(iter(arrays.values())))
