"""`multiexit predict` on a table: the same rows, with columns of answers."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from multiexit.cli import typed
from multiexit.cli.row_files import as_json

if TYPE_CHECKING:
    from multiexit.data.own.bad_rows import BadRows
    from multiexit.data.own.table import Table
    from multiexit.serving.classifier import Classifier

TABLES = (".csv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Files that are tables whatever else is typed; a `.tsv` may be lines of pairs."""

PREFIX = "predicted_"


def is_table(inputs: list[str] | None, columns: Mapping[str, str | None]) -> bool:
    """Whether what was typed is a table, rather than lines of text or image files."""
    named = any(columns.values())
    return named or any(Path(name).suffix.lower() in TABLES for name in inputs or ())


def predict_table(
    classify: "Classifier",
    inputs: list[str] | None,
    columns: Mapping[str, str | None],
    output: Path | None,
    all_scores: bool,
    skip_bad: bool,
    batch_size: int,
) -> None:
    """Answer the rows of a table, and write them with their answers.

    Args:
        classify: the model.
        inputs: one file, or none for JSON lines on stdin.
        columns: of the inputs, as typed.
        output: a file; None is JSON lines on stdout.
        all_scores: a column for each class.
        skip_bad: leave out rows that can't be used.
        batch_size: rows that go through the model together, at most.

    Raises:
        ValueError: columns that aren't there, rows that can't be used, an output of another kind.
    """
    from multiexit.cli import row_files
    from multiexit.data.own import tables
    from multiexit.data.own.bad_rows import BadRows
    from multiexit.data.own.notes import say

    read = _input_columns(classify, columns)
    if len(inputs or ()) > 1:
        raise ValueError(f"one table at a time; got {len(inputs or ())} files")
    from_stdin = inputs in (None, [], ["-"])
    if output is not None:
        row_files.check(output, None if from_stdin else Path((inputs or [""])[0]))
    table = _stdin(read) if from_stdin else tables.from_file(Path((inputs or [""])[0]))
    for note in table.notes:
        say(note)
    for name in read:
        if name not in table.columns:
            raise ValueError(f"{table.name} has no column {name!r}; it has {table.columns}")
    added = _added(classify, all_scores, table.columns)
    loose = output is None or output.suffix.lower() == ".jsonl"
    closed = Closed(frozenset(added.values()), None if loose else frozenset(table.columns))
    if not from_stdin and not skip_bad:  # all of them are named before any is answered
        bad = BadRows()
        for _ in _rows(classify, table, read, bad, True, closed, open_images=False):
            pass
        bad.settle()
    bad = BadRows(None if output is None else output.with_name(f"{output.stem}.skipped.jsonl"))
    rows = _rows(classify, table, read, bad, skip_bad, closed)
    answered = _answered(classify, rows, added, batch_size)
    if output is None:
        for row in answered:
            print(as_json(row), flush=True)
    else:
        row_files.write(output, [*table.columns, *added.values()], answered)
    if output is not None:
        if (left_out := bad.settle()) is not None:
            say(left_out)
        return
    for row in bad.found:
        say(f"left out {row['place']}: {row['reason']}")


def _input_columns(classify: "Classifier", columns: Mapping[str, str | None]) -> list[str]:
    """The columns that the model reads: as typed, or as in training."""
    trained_on = classify.model.preprocessing.get("data") or {}
    if classify.kind == "image":
        wanted = ["image"]
    else:
        wanted = ["text", "text_pair"] if classify.paired else ["text"]
    reads = "pairs of texts" if classify.paired else f"single {classify.kind}s"
    for name, column in columns.items():
        if column is not None and name not in wanted:
            raise ValueError(f"{name}={column} is not for this model, which reads {reads}")
    found = [columns.get(name) or trained_on.get(name) for name in wanted]
    for name, column in zip(wanted, found, strict=True):
        if column is None:
            raise ValueError(f"which column of the table does the model read? Name it: {name}=…")
    return [str(column) for column in found]


def _stdin(columns: list[str]) -> "Table":
    """JSON lines on stdin, read once, as they come; the first one tells the columns."""
    from multiexit.data.own.table import Table

    numbered = ((n, line) for n, line in enumerate(typed.lines(None), 1) if line.strip())
    first = list(islice(numbered, 1))

    def read(bad: "BadRows") -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in chain(first, numbered):
            yield f"stdin, line {number}", _json_row(line)

    names = [name for _, line in first for name in _json_row(line) if name != _BROKEN]
    return Table("stdin", names or columns, read, {})


def _json_row(line: str) -> dict[str, Any]:
    """The row of a line, or why it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {_BROKEN: f"no JSON ({error})"}
    return row if isinstance(row, dict) else {_BROKEN: "no JSON object"}


class Closed(NamedTuple):
    """Columns that rows mustn't have.

    Args:
        added: those of the answers.
        known: if not None, rows mustn't have any others, which the output could not hold.
    """

    added: frozenset[str]
    known: frozenset[str] | None

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuse a row by a ValueError."""
        others = {*row} & self.added if self.known is None else {*row} - self.known
        if others:
            raise ValueError(f"a column {min(others)!r} that the first row lacks")


_BROKEN = "\0"
"""The key of why a line is no row: no column is called so."""


def _rows(
    classify: "Classifier",
    table: "Table",
    columns: list[str],
    bad: "BadRows",
    skip_bad: bool,
    closed: "Closed",
    open_images: bool = True,
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Rows with what the model reads of each; the others go to the bad ones."""
    for place, row in table.read(bad):
        try:
            value = _input(classify, row, columns, open_images, table.folder)
            closed.check(row)
        except ValueError as error:
            bad.add(place, str(error), row.get(columns[0]))
            if not skip_bad:
                bad.aside = None
                bad.settle()
        else:
            yield row, value


def _input(
    classify: "Classifier",
    row: dict[str, Any],
    columns: list[str],
    open_images: bool,
    folder: Path | None,
) -> Any:
    from multiexit.data.own import inputs, stored
    from multiexit_runner import pictures

    if _BROKEN in row:
        raise ValueError(row[_BROKEN])
    if classify.kind == "image":
        image = stored.read(inputs.image(row.get(columns[0]), columns[0], folder))
        image = image["bytes"] if isinstance(image, dict) else image
        return pictures.upright(image, classify.model.preprocessing) if open_images else None
    texts = [inputs.text(row.get(name), name) for name in columns]
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _answered(
    classify: "Classifier",
    rows: Iterable[tuple[dict[str, Any], Any]],
    added: dict[Any, str],
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Rows with their answers, in order; few are held at a time."""
    waiting: deque[dict[str, Any]] = deque()

    def inputs() -> Iterator[Any]:
        for row, value in rows:
            waiting.append(row)
            yield value

    answers: Any = classify(inputs(), batch_size=batch_size)
    for answer in answers:
        flat, row = dict(answer), waiting.popleft()
        if isinstance(scores := answer.get("scores"), dict):
            flat |= {("score", name): p for name, p in scores.items()}
        yield {**row, **{column: _rounded(flat[key]) for key, column in added.items()}}


def _added(classify: "Classifier", all_scores: bool, columns: list[str]) -> dict[Any, str]:
    """The columns of answers by what they hold; with a prefix where the table has one of them."""
    model = classify.model
    several = model.num_classes > 1
    names: dict[Any, str] = {
        "classification": {"label": "label", "score": "score"},
        "multi-label": {"labels": "labels"},
        "regression": {"values": "values"} if several else {"value": "value"},
        "embedding": {"vector": "vector"},
        "token-classification": {"words": "words", "labels": "labels", "scores": "scores"},
    }[model.problem]
    if all_scores:
        if model.problem not in ("classification", "multi-label"):
            raise ValueError(f"all_scores=True is not for {model.problem}: leave it")
        for name in model.labels or range(model.num_classes):
            names[("score", name)] = f"score_{name}"
    names |= {"exit": "exit", "layers": "layers"}
    if {*names.values()} & {*columns}:
        from multiexit.data.own.notes import say

        names = {key: PREFIX + name for key, name in names.items()}
        say(f"columns of answers begin with {PREFIX} here")
    if clash := sorted({*names.values()} & {*columns}):
        raise ValueError(f"the table has a column {clash[0]!r} already: rename it")
    return names


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
