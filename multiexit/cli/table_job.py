"""A table answered into a file, part by part, so that a command that was killed can go on."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiexit.cli import answer_columns, part_file, row_files
from multiexit.cli.part_file import Part, PartFile
from multiexit.cli.placing import classified
from multiexit.cli.rows_done import RowsDone
from multiexit.cli.table_rows import Read, TableRows
from multiexit_runner.answering import WINDOWS

if TYPE_CHECKING:
    from multiexit.data.own.bad_rows import BadRows


def answer_into(
    output: Path,
    rows: TableRows,
    classify: Any,
    added: Mapping[Any, str],
    skip_bad: bool,
    batch_size: int,
    model: Mapping[str, Any],
    total: int | None = None,
) -> str | None:
    """Answer a table's rows into a file, which appears when it is whole.

    Rows are answered `WINDOWS` batches at a time, which are a part: so the same rows go through the
    model together wherever the command is interrupted, and the answers are the same to the last
    bit. The rows' other columns are read again when the file is written.

    Args:
        output: the file.
        rows: of the table.
        classify: the classifier.
        added: the columns of answers by what they hold.
        skip_bad: leave out rows that can't be used.
        batch_size: rows that go through the model together, at most.
        model: what answers hang on beside the rows, plain data by name.
        total: rows there are, where that is known.

    Returns:
        What is to be said of rows that were left out.

    Raises:
        ValueError: answers of an interrupted command that don't fit this one; rows that can't be
            used.
    """
    from multiexit.data.own.bad_rows import BadRows
    from multiexit.data.own.notes import say

    size = WINDOWS[classify.kind] * batch_size
    job = {**model, "columns": [rows.columns, *added.values()]}
    job |= {"batch_size": batch_size, "skip_bad": skip_bad}
    with part_file.kept(output, job) as parts:
        windows = _windows(rows.read(BadRows()), size)
        for part in parts:
            _check_same(part, next(windows, []), rows, output)
        if parts.rows:
            say(f"{parts.rows} rows were answered by an earlier command; going on behind them")
        with RowsDone(total, parts.rows) as done:
            for window in windows:
                digest = _digest(window, rows)
                answers = _answers(window, rows, classify, added, skip_bad, batch_size)
                parts.add(Part(digest, answers))
                done.add(len(answers))
        bad = BadRows(output.with_name(f"{output.stem}.skipped.jsonl"))
        columns = [*rows.table.columns, *added.values()]
        row_files.write(output, columns, _joined(parts, rows, bad, size, output), rows.table.types)
        return bad.settle()


def _windows(reads: Iterator[Read], size: int) -> Iterator[list[Read]]:
    while window := list(islice(reads, size)):
        yield window


def _digest(window: Sequence[Read], rows: TableRows) -> str:
    from multiexit.data.fingerprint import fingerprint

    return fingerprint([rows.identity(read) for read in window])


def _check_same(part: Part | None, window: Sequence[Read], rows: TableRows, output: Path) -> None:
    """Refuse answers of rows that have changed since."""
    digest = _digest(window, rows) if window else None
    if digest != (None if part is None else part.digest):
        since = f"the rows from {window[0].place} on" if window else f"rows of {rows.table.name}"
        raise ValueError(
            f"{since} have changed since they were answered: remove "
            f"{output}{part_file.SUFFIX} to begin anew"
        )


def _answers(
    window: Sequence[Read],
    rows: TableRows,
    classify: Any,
    added: Mapping[Any, str],
    skip_bad: bool,
    batch_size: int,
) -> list[dict[str, Any] | str]:
    """An answer for each row, or why there is none."""
    from multiexit.data.own.bad_rows import BadRows

    opened = [rows.opened(read) for read in window]
    if not skip_bad:
        bad = BadRows()
        for read in opened:
            if read.wrong:
                rows.refuse(read, bad)
        bad.settle()
    usable = [read for read in opened if not read.wrong]
    values, places = [read.value for read in usable], [read.place for read in usable]
    answered = iter(classified(classify, values, places, batch_size))
    return [read.wrong or answer_columns.values(next(answered), added) for read in opened]


def _joined(
    parts: PartFile, rows: TableRows, bad: "BadRows", size: int, output: Path
) -> Iterator[dict[str, Any]]:
    """All rows with their answers."""
    windows = _windows(rows.read(bad), size)
    for part, window in zip_longest(parts, windows):
        _check_same(part, window or [], rows, output)
        for read, answer in zip(window, part.answers, strict=True):
            if isinstance(answer, str):
                rows.refuse(read._replace(wrong=answer), bad)
            else:
                yield {**read.plain, **answer}
