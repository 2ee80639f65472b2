"""What the scheduler runs, and the rows that it runs it on.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

AnyGroup = TypeVar("AnyGroup")


class Outcome(NamedTuple, Generic[AnyGroup]):
    """What a segment says of its rows.

    Args:
        answer_BC: what each would answer here.
        stop_B: which of them the policy stops; all of them at the last exit.
        broken: by place, what is wrong with a row's logits.
        after: the rows before the next exit, those that stop among them.
    """

    answer_BC: np.ndarray
    stop_B: np.ndarray
    broken: dict[int, str]
    after: AnyGroup


class Network(Protocol[AnyGroup]):
    """A network that can be run exit by exit: of onnxruntime or of torch."""

    @property
    def num_exits(self) -> int:
        """M."""
        ...

    def length(self, item: Any) -> int:
        """How long a prepared input is; those of one length go together.

        Raises:
            ValueError: an input longer than the network takes.
        """
        ...

    def first(self, items: Sequence[Any], policies: Sequence[Any]) -> AnyGroup:
        """Prepared inputs of one length before the first exit, each with its policy."""
        ...

    def run(self, exit: int, group: AnyGroup) -> Outcome[AnyGroup]:
        """Run the segment up to an exit."""
        ...

    def take(self, group: AnyGroup, keep_B: np.ndarray) -> AnyGroup:
        """Some of the rows, bool [B]."""
        ...

    def merge(self, groups: Sequence[AnyGroup]) -> AnyGroup:
        """Groups of one `shape_key` as one."""
        ...

    def shape_key(self, group: AnyGroup) -> Hashable:
        """What groups must share to be merged."""
        ...


BY_POLICY = ("policy", "last_exit")
"""Why rows leave that go by their policy alone: it stops them, or stops them nowhere."""


class Left(NamedTuple):
    """How a row left.

    Args:
        answer_C: its logits; None where it broke.
        exit: where it left, counted from 0.
        ran: the segments that were run on it, in order.
        why: `"policy"`, `"last_exit"` where there is none behind it, `"max_exit"`, `"budget"`,
            `"broken"` or `"abandoned"`.
        error: what broke.
        seconds: since it came.
        run_seconds: its share of the time in which segments were run on it.
    """

    answer_C: np.ndarray | None
    exit: int
    ran: tuple[int, ...]
    why: str
    error: str
    seconds: float
    run_seconds: float


@dataclass(slots=True, eq=False)
class Row:
    """A row on its way.

    Args:
        item: its prepared input.
        policy: of its own, as the network takes it.
        done: called once, in the scheduler's thread.
        max_exit: where it leaves at the latest.
        budget: seconds from its coming, after which it leaves with the answer it has; None is any.
        abandoned: asked before each segment: whether nobody waits for it any more.
    """

    item: Any
    policy: Any
    done: Callable[[Left], None]
    max_exit: int
    budget: float | None = None
    abandoned: Callable[[], bool] = lambda: False
    came: float = 0.0
    length: int = 0
    ran: list[int] = field(default_factory=list)
    seconds: float = 0.0
    so_far: tuple[np.ndarray, int] | None = None
