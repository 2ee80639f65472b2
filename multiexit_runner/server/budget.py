"""What rows cost, in layers or in milliseconds, held at a budget whatever the rows are like."""

from collections.abc import Sequence

import numpy as np

from multiexit_runner.naming import OptionError
from multiexit_runner.server.dial import Entry, Setting

RATE = 0.02
"""How far one row moves the aim, per layer beside the budget: about 1/RATE rows to follow."""

FORGET = 0.99
"""What stays, at each row, of the time of a layer as the rows before had it; and at each request,
of the most rows that were on their way together."""


class BudgetDial:
    """Holds the mean of what the network does per row.

    The setting in force is the one whose mean layers, by the calibration table, are next to an aim
    a. A row that leaves and cost c moves it (Robbins and Monro, 1951):

        a ← clip(a + η·(budget − c)/u, fastest − r, slowest + r),  η = min(0.02, 1/n)

    with r = slowest − fastest. n rows are on their way together, at most and lately: these all move
    the aim before the next ones see it, so that one request of many rows counts as one look. The
    clip keeps a stream that nothing is fast enough for from weighing for ever.

    In layers c are those that were run, and u is 1. In milliseconds c is the row's share of the
    time of the segments that were run on it, and u the mean of c per layer over about the last 100
    rows: how long a layer takes now, on this machine and with batches of this size.

    Where the rows have become harder a falls, until what is run meets the budget. While a isn't
    clipped below, and η and u stay as they are, whatever rows come in whatever order, the mean over
    N rows is at most budget + u·(a_0 − a_N)/(η·N), since the moves add up.

    Args:
        settings: that are allowed, from the slowest to the fastest.
        budget: per row.
        in_ms: it is in milliseconds, and the slowest setting is the first; else in layers, and the
            one that has them by the table.

    Raises:
        ValueError: a budget in layers that no mixture of the settings has.
    """

    def __init__(self, settings: Sequence[Setting], budget: float, in_ms: bool = False):
        self.settings, self.budget, self.in_ms = settings, budget, in_ms
        self._layers_S = np.array([setting.mean_layers for setting in settings])
        self._unit = 0.0 if in_ms else 1.0
        low, high = self._layers_S.min(), self._layers_S.max()
        if not in_ms and not low <= budget <= high:
            raise OptionError(
                "{budget_layers} must be from {:.2f} to {:.2f}, the mean layers of the settings "
                "that are allowed; got {:g}",
                *(low, high, budget),
            )
        self.aim = high if in_ms else budget
        self._on_the_way, self._most = 0, 1.0

    @property
    def place(self) -> int:
        """The setting in force, counted from the slowest."""
        return int(np.abs(self._layers_S - self.aim).argmin())

    def enter(self, rows: int, own: int | None = None) -> Entry:
        """Let a request's rows begin."""
        self._on_the_way += rows
        self._most = max(FORGET * self._most, self._on_the_way, 1)
        return Entry(self.place, own is not None)

    def ran(self, exit: int, rows: int, seconds: float) -> None:
        """A segment was run, which is of no account here."""

    def left(self, entry: Entry, layers: int | None, seconds: float = 0.0) -> None:
        """A row left after so many layers and seconds of the network; None without an answer."""
        self._on_the_way -= 1
        if layers is None:
            return
        cost = float(layers)
        if self.in_ms:
            cost = 1000 * seconds
            old = self._unit or cost / layers
            self._unit = FORGET * old + (1 - FORGET) * cost / layers
        if not entry.own and self._unit:
            rate = min(RATE, 1 / self._most)
            moved = self.aim + rate * (self.budget - cost) / self._unit
            low, high = self._layers_S.min(), self._layers_S.max()
            self.aim = float(np.clip(moved, 2 * low - high, 2 * high - low))

    def answered(self, entry: Entry, seconds: float) -> None:
        """A request was answered, which is of no account here."""
