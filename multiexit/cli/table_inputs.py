"""Which columns of a table a model reads, and what it reads there."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiexit.cli.table_rows import Closed, TableRows, file_table

if TYPE_CHECKING:
    from multiexit.data.own.table import Table


def input_columns(
    classify: Any, network: Any, columns: Mapping[str, str | None], table: "Table | None"
) -> list[str]:
    """The columns that the model reads: as typed, or as in training, else those called so.

    Args:
        classify, network: the classifier, and what is behind it.
        columns: as typed; those that the command has no option for are left out.
        table: that is read; None where its columns come later.

    Raises:
        ValueError: a column that isn't for this model, or that must be named.
    """
    from multiexit.data.own import choosing
    from multiexit.data.own.notes import say

    trained_on = network.preprocessing.get("data") or {}
    if classify.kind == "image":
        wanted = ["image"]
    else:
        wanted = ["text", "text_pair"] if classify.paired else ["text"]
    reads = "pairs of texts" if classify.paired else f"single {classify.kind}s"
    for name, column in columns.items():
        if column is not None and name not in wanted:
            raise ValueError(f"{name}={column} is not for this model, which reads {reads}")
    found = [columns.get(name) or trained_on.get(name) for name in wanted]
    if table is not None and not any(found) and classify.kind == "text":
        called = choosing.inputs_by_name(table, classify.paired)
        if called:
            say(f"the model reads column{'s'[: len(called) - 1]} {' and '.join(map(repr, called))}")
            return called
    for name, column in zip(wanted, found, strict=True):
        of = "the table's columns" if table is None else f"the columns {table.columns}"
        ask = f"which of {of} does the model read? "
        ask += f"Name it: {name}=…" if name in columns else f"Call it {column or name!r} there"
        if column is None:
            raise ValueError(ask)
        if table is not None and columns.get(name) is None and column not in table.columns:
            raise ValueError(f"{table.name} has no column {column!r}, as in training: {ask}")
    return [str(column) for column in found]


def has_labels(path: Path, model: Any) -> bool:
    """Whether a table has labels that such a model can be judged by.

    Args:
        path: of the table.
        model: that was trained on labels of some columns, or on a task by its name.
    """
    from multiexit import problems
    from multiexit.data.own import choosing, tables

    if model.problem == "token-classification" or problems.are_vectors(model.problem):
        return False
    columns = tables.from_file(path).columns
    trained_on = (model.preprocessing.get("data") or {}).get("label")
    return {*trained_on} <= {*columns} if trained_on else choosing.names_a_label(columns)


def inputs_in(path: Path, classify: Any) -> list[Any]:
    """What a model reads of a table's rows, whose columns are those of training, or called so.

    Args:
        path: of the table.
        classify: the model's classifier.

    Raises:
        ValueError: columns that aren't there, rows that can't be used.
    """
    from multiexit.data.own.bad_rows import BadRows

    table, model = file_table(path), classify.model
    columns = input_columns(classify, model, {}, table)
    rows = TableRows(table, columns, model.preprocessing, Closed(frozenset(), None))
    bad, values = BadRows(), []
    for read in map(rows.opened, rows.read(bad)):
        if read.wrong:
            rows.refuse(read, bad)
        values.append(read.value)
    try:
        bad.settle()
    except ValueError as error:
        raise ValueError(without_skipping(error)) from error
    return values


def without_skipping(error: ValueError) -> str:
    """What is said of bad rows by a command that can't leave them out."""
    from multiexit.data.own.bad_rows import OR_SKIP

    return str(error).removesuffix(OR_SKIP)
