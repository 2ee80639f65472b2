"""Images that lie in an Arrow table on disk, read one by one."""

from typing import Any, NamedTuple


class Stored(NamedTuple):
    """A value of a set of `datasets`, read when it is needed.

    Args:
        data: the set, whose images are not decoded.
        row: its row.
        column: its column.
    """

    data: Any
    row: int
    column: str

    def read(self) -> Any:
        """The value: bytes, or a dict of `bytes` and `path`."""
        return self.data[self.row][self.column]

    def __repr__(self) -> str:
        return f"the {self.column} of row {self.row}"


def read(value: Any) -> Any:
    """The value itself, where it is `Stored`."""
    return value.read() if isinstance(value, Stored) else value
