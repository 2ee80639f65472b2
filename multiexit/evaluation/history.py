"""The log of a run, step by step and epoch by epoch, as plain data.

Letters: M exits.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multiexit.files import schema
from multiexit.files.json_files import read_table, write_json


@dataclass
class History:
    """The log of a run.

    Args:
        steps: per reading (`log_every` steps): phase, epoch, step, loss, lr; each exit's own loss
            `own_M` where the phase learns from labels; where Ω is learned its value `W_MM`, None
            for terms that don't count.
        epochs: per epoch, and per evaluation inside one: phase, epoch, step, seconds; where exits
            were scored each exit's scores, and their mean over the exits that the phase trains.
        best: the best of these of the last phase, by the mean over the exits that it trains; None
            without a dev set.

    Example:
        >>> import multiexit as mx
        >>> mx.History(steps=[{"step": 10, "loss": 0.7, "W_MM": [[1.0, 0.9], [1.1, 1.0]]}]).weights
        [(10, [[1.0, 0.9], [1.1, 1.0]])]
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    @property
    def weights(self) -> list[tuple[int, list[list[float | None]]]]:
        """The trajectory of Ω: (step, W_MM) at each reading."""
        return [(row["step"], row["W_MM"]) for row in self.steps if "W_MM" in row]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "History":
        """Read what `save` wrote.

        Raises:
            ValueError: it is damaged, or something else.
        """
        return cls(**read_table(path, "history of a run", _HISTORY, finite=False))


_ROWS = schema.listed(schema.table({}, rest=schema.anything))
_HISTORY = schema.table(
    {
        "steps": _ROWS,
        "epochs": _ROWS,
        "best": schema.optional(schema.table({}, rest=schema.anything)),
    }
)
