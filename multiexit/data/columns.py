"""A batch by the names that a network takes."""

import warnings
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from multiexit.data.batches import as_mapping
from multiexit_runner.user_line import user_level


class Columns:
    """Drops from batches what a network doesn't take, and says so once.

    Args:
        start: takes a network's inputs, by names: a backbone's `start`. With `**inputs` it
            takes any.
        besides: names of inputs that are taken beside these.
    """

    def __init__(self, start: Any, besides: Sequence[str] = ()):
        parameters = signature(start).parameters.values()
        self._all = any(p.kind == Parameter.VAR_KEYWORD for p in parameters)
        self._names = [
            p.name
            for p in parameters
            if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        ] + [*besides]
        self._needed = [
            p.name for p in parameters if p.name in self._names and p.default is Parameter.empty
        ]
        self._reported: set[str] = set()

    def __call__(self, batch: Any) -> Any:
        """The batch without the other columns; as it is where it has no names.

        Raises:
            ValueError: an input that the network needs isn't there.
        """
        batch = as_mapping(batch)
        if not isinstance(batch, Mapping) or self._all:
            return batch
        columns = {k: v for k, v in batch.items() if k in self._names or k == "labels"}
        inputs = [name for name in columns if name != "labels"]
        missing = [name for name in self._needed if name not in inputs]
        if missing or not inputs:
            raise ValueError(
                f"the network takes {', '.join(self._names)}; a batch has "
                + ", ".join(map(str, batch))
                + (f", so {', '.join(missing)} is missing" if missing else "")
            )
        for name in inputs:
            if isinstance(columns[name], list | str):
                raise ValueError(
                    f"the column {name!r} is no tensor but holds {columns[name][0]!r}: give "
                    "numbers of one shape, or a DataLoader whose collate_fn makes tensors"
                )
        dropped = [str(name) for name in batch if name not in columns]
        if not self._reported.issuperset(dropped):
            self._reported.update(dropped)
            warnings.warn(
                f"columns that the network doesn't take are left out: {', '.join(dropped)}; it "
                f"takes {', '.join(self._names)}",
                stacklevel=user_level(),
            )
        return columns
