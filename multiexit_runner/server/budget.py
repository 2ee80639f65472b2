"""Layers per row held at a budget, whatever the rows are like."""

from collections.abc import Sequence

import numpy as np

from multiexit_runner.server.dial import Entry, Setting

RATE = 0.02
"""How far one row moves the aim, per layer beside the budget: about 1/RATE rows to follow."""


class BudgetDial:
    """Holds the mean of the layers that are run per row.

    The setting in force is the one whose mean layers, by the calibration table, are next to an aim
    a. A row that leaves after l layers moves it (Robbins and Monro, 1951):

        a ← clip(a + η·(budget − l), fastest, slowest),  η = 0.02

    Where the rows have become harder a falls below the budget, until the layers that are run meet
    it. While a isn't clipped at the fastest setting, whatever rows come in whatever order, the mean
    over N rows is at most budget + (a_0 − a_N)/(η·N), since the moves add up.

    Args:
        settings: that are allowed, from the slowest to the fastest.
        budget: layers per row.

    Raises:
        ValueError: a budget that no mixture of the settings has.
    """

    def __init__(self, settings: Sequence[Setting], budget: float):
        self.settings, self.budget = settings, budget
        self._layers_S = np.array([setting.mean_layers for setting in settings])
        low, high = self._layers_S.min(), self._layers_S.max()
        if not low <= budget <= high:
            raise ValueError(
                f"budget_layers must be from {low:.2f} to {high:.2f}, the mean layers of the "
                f"settings that are allowed; got {budget:g}"
            )
        self.aim = budget

    @property
    def place(self) -> int:
        """The setting in force, counted from the slowest."""
        return int(np.abs(self._layers_S - self.aim).argmin())

    def enter(self, rows: int, own: bool = False) -> Entry:
        """Let a request's rows begin."""
        return Entry(self.place, own)

    def ran(self, exit: int, rows: int, seconds: float) -> None:
        """A segment was run, which is of no account here."""

    def left(self, entry: Entry, layers: int | None) -> None:
        """A row left after so many layers; None where it had no answer."""
        if layers is not None and not entry.own:
            moved = self.aim + RATE * (self.budget - layers)
            self.aim = float(np.clip(moved, self._layers_S.min(), self._layers_S.max()))

    def answered(self, entry: Entry, seconds: float) -> None:
        """A request was answered, which is of no account here."""
