"""An export as a `Network` of the scheduler.

Letters: B batch rows, T tokens.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from multiexit_runner.inputs import MASK, Arrays
from multiexit_runner.runner import Runner
from multiexit_runner.server.lengths import filled_length
from multiexit_runner.server.network import Outcome


class ExportedNetwork:
    """Runs an export's graphs one by one, on rows whose policies have numbers of their own.

    Args:
        runner: of the export.
    """

    def __init__(self, runner: Runner):
        self.runner = runner
        self.num_exits = len(runner.settings["segments"])
        self._specs: Mapping[str, dict] = runner.settings["inputs"]
        self._limit: int | None = runner.settings["max_tokens"]

    def length(self, item: Arrays) -> int:
        """How many tokens a text is filled up to; 0 of other inputs."""
        return filled_length(len(item[MASK]), self._limit) if MASK in item else 0

    def first(
        self, items: Sequence[Arrays], policies: Sequence[Mapping[str, float] | None]
    ) -> Arrays:
        """Rows before the first exit.

        Args:
            items: each its arrays by name, without a row's dimension.
            policies: each the numbers in place of the policy's own.
        """
        length = self.length(items[0])
        arrays = {
            name: np.stack([self._filled(item, name, length) for item in items])
            for name in self._specs
        }
        knobs = {
            name: np.array([(own or {}).get(name, number) for own in policies])
            for name, number in self.runner.knobs.items()
        }
        return {**arrays, **self.runner.numbers(len(items), knobs)}

    def _filled(self, item: Arrays, name: str, length: int) -> np.ndarray:
        array = item[name]
        if self._specs[name]["shape"][1:2] != ["T"]:
            return array
        return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])

    def run(self, exit: int, group: Arrays) -> Outcome[Arrays]:
        """Run one graph."""
        return Outcome(*self.runner.segment(exit, group))

    def take(self, group: Arrays, keep_B: np.ndarray) -> Arrays:
        """Some of the rows."""
        return {name: array[keep_B] for name, array in group.items()}

    def merge(self, groups: Sequence[Arrays]) -> Arrays:
        """One group of several."""
        return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}

    def shape_key(self, group: Arrays) -> Hashable:
        """Shapes of all arrays but for the rows."""
        return tuple((name, array.shape[1:]) for name, array in group.items())
