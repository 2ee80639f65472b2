"""An export, read from its folder, that predicts.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from multiexit_runner import streaming
from multiexit_runner.backends import ROUNDING, opener, runtime
from multiexit_runner.folder import ROWS, SETTINGS, SUMS, read_file, read_folder
from multiexit_runner.graphs import Graphs
from multiexit_runner.leaving import Answer
from multiexit_runner.reading import check_one_each
from multiexit_runner.rows import from_bytes
from multiexit_runner.sessions import open_sessions
from multiexit_runner.settings import parse_settings, without_bounds


class Runner(Graphs):
    """Predicts with a network that `multiexit.export` wrote.

    When it is made it runs the rows that the folder keeps: their logits must come out as they did
    where the graphs were made. A copy (`copy.copy`) runs the same graphs, with numbers of its own
    for the policy; one that was pickled is made anew from the folder, with these as they stand.

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
        super().__init__(settings, open_sessions(export, settings, open_session))
        self._made_by = (export.path, threads, providers, check, backend)
        self.runtime = runtime(backend, threads, providers, settings["int8"] is not None)
        read = {SETTINGS, *(segment["file"] for segment in settings["segments"])}
        others = {name: read_file(export, name) for name in export.sums if name not in read}
        if check:
            self._check_rows(others, str(export.path / ROWS), f"{providers or backend}")

    def __copy__(self) -> "Runner":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __reduce__(self) -> Any:
        return type(self), self._made_by, {"_knobs": self._knobs}

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

    def stream(
        self,
        batches: Iterable[Any],
        batch_size: int = 32,
        window: int = 8,
        *,
        knobs: Mapping[str, Any] | Iterable[Mapping[str, Any] | None] | None = None,
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
            knobs: numbers in place of the policy's for the whole stream, by name; or an iterable
                that gives for each batch what `predict` takes: an array [B] has one for each row.

        Raises:
            ValueError: wrong arguments, at once; as `predict`, behind the answers of the batches
                before, with rows and batches counted from 0 at the stream's start; more or fewer
                knobs than batches. What the source raises comes as it is, behind the answers of the
                batches that it gave.
        """
        batch_size, window = _count("batch_size", batch_size), _count("window", window)
        if isinstance(batches, Mapping | str | bytes | np.ndarray) or not isinstance(
            batches, Iterable
        ):
            raise ValueError(
                "batches must be an iterable of batches, each a dict of arrays by name or one "
                f"array; got {type(batches).__name__}"
            )
        given = self._stream_knobs(batches, {} if knobs is None else knobs)
        return streaming.stream(self, batches, batch_size, window, given, self.knobs)

    def _stream_knobs(self, batches: Iterable[Any], given: Any) -> Any:
        """A stream's numbers, for all batches or for each, checked as far as they are known."""
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise ValueError(
                f"knobs are numbers by name, such as {self.knobs}, or an iterable with those of "
                f"each batch; got {given!r:.80}"
            )
        if not isinstance(given, Mapping):
            check_one_each(batches, given, "knobs")
            return given
        for name, number in given.items():
            if np.ndim(number):
                raise ValueError(
                    f"{name} must be one number for the whole stream, got {number!r:.80}; numbers "
                    "for each row are given batch by batch, by an iterable"
                )
        self.numbers(1, given)  # refuses what can't be
        return dict(given)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number and at least 1, got {value!r}")
    return int(value)
