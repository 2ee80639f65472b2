"""`multiexit predict` on a table: the same rows, with columns of answers."""

import os
import shlex
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiexit.cli import answer_columns, typed
from multiexit.cli.row_files import as_json
from multiexit.cli.rows_done import RowsDone
from multiexit.cli.table_inputs import input_columns
from multiexit.cli.table_rows import Closed, TableRows, file_table, stdin_table

if TYPE_CHECKING:
    from multiexit.data.own.bad_rows import BadRows
    from multiexit.data.own.table import Table

TABLES = (".csv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Files that are tables whatever else is typed; a `.tsv` may be lines of pairs."""


def classifier(folder: Path, policy: str | None, backend: str | None) -> Any:
    """The classifier of a model or of an export.

    Args:
        folder: of the model.
        policy: as typed, or None.
        backend: of an export, as typed, or None.

    Raises:
        ValueError: a model without a policy, or that doesn't say how its inputs are made; a backend
            for what is no export.
    """
    from multiexit import MultiExitModel
    from multiexit.policies import parse
    from multiexit.serving.classifier import Classifier
    from multiexit_runner import Classifier as ExportClassifier
    from multiexit_runner.folder import SETTINGS as EXPORT

    if (folder / EXPORT).exists():
        backend = backend or "onnxruntime"
        return ExportClassifier.from_pretrained(folder, policy=policy, backend=backend)
    if backend is not None:
        raise ValueError(
            f"backend={backend} is for an export, and {folder} is run by torch: leave it out, or "
            "export the model first"
        )
    model = MultiExitModel.from_pretrained(folder).to(typed.device())
    exit_policy = parse(policy) if policy else model.policy
    if exit_policy is None:
        raise ValueError("this model has no policy of its own: give one, e.g. --policy patience=4")
    kind = model.preprocessing.get("kind")
    if kind not in ("image", "text"):
        raise ValueError(
            f"{folder} doesn't say how its inputs are made: set model.preprocessing before saving "
            "(see the documentation on saving), or predict in Python"
        )
    return Classifier(model, typed.tokenizer(folder) if kind == "text" else None, exit_policy)


def network_of(classify: Any) -> Any:
    """The model behind a classifier, or an export's runner."""
    return getattr(classify, "model", None) or classify.runner


def is_table(
    inputs: list[str] | None,
    columns: Mapping[str, str | None],
    preprocessing: Mapping[str, Any] | None = None,
) -> bool:
    """Whether what was typed is a table, rather than lines of text or image files.

    Args:
        inputs: files.
        columns: of the inputs, as typed.
        preprocessing: of the model; where it was trained on columns, or reads no pairs, whose
            lines have a tab, a `.tsv` is a table too; and so is one that begins with the names of a
            pair.
    """
    known = preprocessing or {}
    remembered = any((known.get("data") or {}).get(name) for name in ("text", "image"))
    no_pairs = known.get("kind") == "text" and not known.get("pairs")
    tables = (*TABLES, ".tsv") if remembered or no_pairs else TABLES
    return any(columns.values()) or any(
        (suffix := path.suffix.lower()) in tables
        or (known.get("pairs") and suffix == ".tsv" and _names_a_pair(path))
        for path in map(Path, inputs or ())
    )


def _names_a_pair(path: Path) -> bool:
    """Whether a TSV begins with the names of columns, a pair's among them."""
    from multiexit.data.own import choosing, delimited

    return choosing.names_a_pair(delimited.header(path, "\t"))


def check_there(
    inputs: list[str] | None, run: Path, kind: str, columns: Mapping[str, str | None]
) -> None:
    """Refuse files of texts, and tables, that aren't there; of images each one is told by itself.

    Args:
        inputs: files.
        run: as typed.
        kind: that the model reads, `"text"` or `"image"`.
        columns: of a table, as typed.

    Raises:
        ValueError: no such file (it shows how one text is answered), or a folder for texts.
    """
    lines = kind == "text" and not any(columns.values())
    for name in inputs or () if kind == "text" or is_table(inputs, columns) else ():
        if name != "-" and not os.path.exists(name):
            typed_text = shlex.quote(name if len(name) < 80 else "…")
            hint = f"; for one text: echo {typed_text} | multiexit predict {run}" if lines else ""
            raise ValueError(f"no such file: {name!r:.300}{hint}")
        if os.path.isdir(name):
            raise ValueError(
                f"{name!r:.300} is a folder, no regular file, and {run} reads texts: give a "
                "file of lines, or a table (CSV, TSV, JSONL, parquet)"
            )


def images(inputs: list[str]) -> list[str]:
    """Names of image files, with those in each folder in its place, in the order of `train`.

    Raises:
        ValueError: a folder without images.
    """
    from multiexit.data.own import image_folders

    return [
        name
        for given in inputs
        for name in (image_folders.images(Path(given)) if os.path.isdir(given) else [given])
    ]


def predict_table(
    folder: Path,
    classify: Any,
    inputs: list[str] | None,
    columns: Mapping[str, str | None],
    output: Path | None,
    all_scores: bool,
    skip_bad: bool,
    batch_size: int,
) -> None:
    """Answer the rows of a table, and write them with their answers.

    Args:
        folder: of the model.
        classify: the model's classifier, or that of an export.
        inputs: one file, or none for JSON lines on stdin.
        columns: of the inputs, as typed.
        output: a file; None is JSON lines on stdout.
        all_scores: a column for each class.
        skip_bad: leave out rows that can't be used.
        batch_size: rows that go through the model together, at most.

    Raises:
        ValueError: columns that aren't there, rows that can't be used, an output of another kind,
            or one that another command began.
    """
    from multiexit.cli import row_files, table_job
    from multiexit.data.own.bad_rows import BadRows
    from multiexit.data.own.notes import say

    network = network_of(classify)
    if len(inputs or ()) > 1:
        raise ValueError(f"one table at a time; got {len(inputs or ())} files")
    source = None if inputs in (None, [], ["-"]) else Path((inputs or [""])[0])
    if output is not None:
        row_files.check(output, source)
    file = None if source is None else file_table(source)
    read = input_columns(classify, network, columns, file)
    table = file or stdin_table(read)
    table.check_columns(read)
    if source is not None and (output is None or output.suffix.lower() != ".parquet"):
        _check_no_bytes(table)
    added = answer_columns.added(network, all_scores, table.columns)
    loose = output is None or output.suffix.lower() == ".jsonl"
    closed = Closed(frozenset(added.values()), None if loose else frozenset(table.columns))
    rows = TableRows(table, read, {**network.preprocessing, "kind": classify.kind}, closed)
    total = None
    if source is not None and not skip_bad:  # all of them are named before any is answered
        total = rows.check()
    if output is not None and source is not None:
        model = _model(folder, classify)
        note = table_job.answer_into(
            output, rows, classify, added, skip_bad, batch_size, model, total
        )
        if note is not None:
            say(note)
        say(f"written: {output}")
        return
    bad = BadRows(None if output is None else output.with_name(f"{output.stem}.skipped.jsonl"))
    answered = _as_they_come(rows, classify, bad, skip_bad, added, batch_size)
    if output is not None:
        with RowsDone(total) as done:
            told = _told(answered, done)
            row_files.write(output, [*table.columns, *added.values()], told, table.types)
        if (note := bad.settle()) is not None:
            say(note)
        return
    for row in answered:
        print(as_json(row), flush=True)
    for row in bad.found:
        say(f"left out {row['place']}: {row['reason']}")


def _told(rows: Iterator[dict[str, Any]], done: RowsDone) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        done.add(1)


def _check_no_bytes(table: "Table") -> None:
    """Refuse columns of bytes, which lie apart, where they can't be written."""
    from multiexit.data.own.bad_rows import BadRows
    from multiexit.data.own.stored import Stored

    for _, row in islice(table.read(BadRows()), 1):
        if held := [name for name, value in row.items() if isinstance(value, Stored)]:
            raise ValueError(
                f"column {held[0]!r} holds bytes: write a .parquet file, which can keep them"
            )


def _model(folder: Path, classify: Any) -> dict[str, Any]:
    """What answers hang on beside the rows: plain data by name."""
    import torch

    from multiexit import __version__
    from multiexit.files.sums import folder_sums
    from multiexit.policies.registry import to_json
    from multiexit_runner.turning import typed_policy

    if hasattr(classify, "runner"):
        policy = {**classify.runner.settings["policy"], **classify.runner.knobs}
        device = "cpu"
    else:
        policy = to_json(classify.policy)
        device = next(classify.model.parameters()).device.type
    return {
        "version": f"multiexit {__version__}, torch {torch.__version__}",
        "model": folder_sums(folder),
        "policy": typed_policy(policy),
        "device": device,
    }


def _as_they_come(
    rows: TableRows,
    classify: Any,
    bad: "BadRows",
    skip_bad: bool,
    added: Mapping[Any, str],
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Rows with their answers, in order; few are held at a time."""
    waiting: deque[dict[str, Any]] = deque()

    def inputs() -> Iterator[Any]:
        for read in map(rows.opened, rows.read(bad)):
            if not read.wrong:
                waiting.append(read.plain)
                yield read.value
                continue
            rows.refuse(read, bad)
            if not skip_bad:
                bad.aside = None
                bad.settle()

    for answer in classify(inputs(), batch_size=batch_size):
        yield {**waiting.popleft(), **answer_columns.values(answer, added)}
