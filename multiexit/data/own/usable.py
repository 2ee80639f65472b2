"""The rows of a table that can be used: their inputs and labels, checked one by one."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from multiexit.data.own import inputs, stored
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.choosing import Columns
from multiexit.data.own.table import Table
from multiexit.data.own.targets import Targets
from multiexit.losses.class_names import missing


class Usable(NamedTuple):
    """A row that can be used.

    Args:
        place: its file and line.
        inputs: its texts, or its image.
        label: its value, or its number where the targets are known.
    """

    place: str
    inputs: list[Any]
    label: Any


def usable(table: Table, columns: Columns, goal: Targets | None, bad: BadRows) -> Iterator[Usable]:
    """The rows of a table that can be used; the others go to the bad rows.

    Args:
        table: of one split.
        columns: to read.
        goal: makes numbers of labels; None leaves them as they are.
        bad: gets the others, with their reasons.
    """
    for place, row in table.read(bad):
        found: list[Any] = []
        wrong = columns.read[0]
        try:
            for wrong in columns.read:
                if columns.image is None:
                    found.append(inputs.text(row.get(wrong), wrong))
                else:
                    found.append(inputs.image(row.get(wrong), wrong, table.folder))
            wrong = columns.labels[0]
            label = _label(row, columns)
            if goal is not None:
                label = goal.number(_class_name(label, table, columns))
        except ValueError as error:
            bad.add(place, str(error), row.get(wrong))
        else:
            yield Usable(place, found, label)


def _label(row: dict[str, Any], columns: Columns) -> Any:
    """A row's label, a dict where several columns are labels; a gap is a ValueError."""
    values = {name: _plain(row.get(name)) for name in columns.labels}
    for name, value in values.items():
        if missing(value) or (isinstance(value, str) and _is_gap(value)):
            raise ValueError("no label" if len(values) == 1 else f"no label in {name!r}")
    return values if len(values) > 1 else next(iter(values.values()))


def _is_gap(text: str) -> bool:
    """Whether a label is blank, or `nan`, as tables of numbers write a gap."""
    return not text.strip() or text.strip().lower() == "nan"


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own; of bytes that are stored the bytes."""
    value = stored.read(value)
    if isinstance(value, Decimal):
        return float(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _class_name(value: Any, table: Table, columns: Columns) -> Any:
    """The name of a class that the source gives by number, or of each of a list."""
    names = table.classes.get(columns.labels[0])
    if isinstance(value, list):
        return [_class_name(each, table, columns) for each in value]
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value
