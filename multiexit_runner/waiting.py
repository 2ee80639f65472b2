"""Groups of rows that wait at exits until they fill a batch: the engine's too."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Protocol, TypeVar


class Rows(Protocol):
    """What is asked of a group: the exit that it comes to next, and how many rows still run."""

    @property
    def exit(self) -> int:
        """Counted from 0."""
        ...

    @property
    def running(self) -> int:
        """Rows that have not stopped."""
        ...


AnyRows = TypeVar("AnyRows", bound=Rows)


class Waiting(Generic[AnyRows]):
    """Groups that wait at exits until they fill a batch.

    Args:
        num_exits: M.
        batch_size: rows that make a full one.
        shape_key: of a group; groups of the same key can be merged.
        merge: makes one group of several.
    """

    def __init__(
        self,
        num_exits: int,
        batch_size: int,
        shape_key: Callable[[AnyRows], Hashable],
        merge: Callable[[Sequence[AnyRows]], AnyRows],
    ):
        self._batch_size, self._shape_key, self._merge = batch_size, shape_key, merge
        self._groups: list[dict[Hashable, list[AnyRows]]] = [{} for _ in range(num_exits)]

    def add(self, group: AnyRows) -> None:
        """Let a group wait with those that it can be merged with."""
        self._groups[group.exit].setdefault(self._shape_key(group), []).append(group)

    def full(self) -> AnyRows | None:
        """The deepest rows that fill a batch, or None."""
        for by_shape in reversed(self._groups):
            for shape, groups in by_shape.items():
                if sum(group.running for group in groups) >= self._batch_size:
                    return self._merged(by_shape.pop(shape))
        return None

    def any(self) -> AnyRows | None:
        """The shallowest rows, so that they meet those that wait deeper; None if there are none."""
        for by_shape in self._groups:
            for shape in by_shape:
                return self._merged(by_shape.pop(shape))
        return None

    def _merged(self, groups: list[AnyRows]) -> AnyRows:
        return groups[0] if len(groups) == 1 else self._merge(groups)
