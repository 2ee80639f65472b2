"""A policy's settings with what each gives, kept with a model so that a call can choose among them.

Letters: M exits, N rows that the figures are of.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from multiexit.files import schema
from multiexit.policies.base import ExitPolicy
from multiexit.policies.certificate import loss_name
from multiexit.policies.registry import TABLE as POLICY
from multiexit.policies.registry import from_json, to_json
from multiexit_runner.drift import COUNTS, unpacked

MOST = 10_000
PRECISIONS = ("float32", "int8")

_SETTING = schema.table(
    {
        "policy": POLICY,
        "score": schema.number(),
        "loss_bound": schema.optional(schema.number(0, 1)),
        "mean_layers": schema.number(0),
        "speedup_layers": schema.number(0),
        "speedup_macs": schema.number(0),
        "shares_M": schema.listed(schema.number(0, 1), 1, MOST),
    },
    {"counts": schema.anything},  # which `from_json` looks into
)

TABLE = schema.table(
    {
        "metric": schema.text,
        "score": schema.number(),
        "rows": schema.whole(1, 2**53),
        "loss": schema.optional(loss_name),
        "confidence": schema.number(0, 1),
        "settings": schema.listed(_SETTING, 1, MOST),
    },
    {"precision": schema.one_of(*PRECISIONS)},
)
"""The schema of a saved table."""


@dataclass(frozen=True)
class Setting:
    """What one setting of a policy gives.

    Args:
        policy: with its numbers.
        score: the metric's main figure on the N rows.
        loss_bound: at most this much is lost against the last exit on new rows, in 0..1; None of
            numbers, which have no such loss.
        mean_layers: stages run per row, averaged.
        speedup_layers, speedup_macs: as in `multiexit.Row`.
        shares_M: the share of rows that left at each exit.
        counts: of the N rows, by the exit where they left and the bin of their confidence there, as
            `multiexit_runner.drift.packed` writes them: what a service that turns its policy
            compares its rows with. None in tables of before.
    """

    policy: ExitPolicy
    score: float
    loss_bound: float | None
    mean_layers: float
    speedup_layers: float
    speedup_macs: float
    shares_M: tuple[float, ...]
    counts: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class CalibrationTable:
    """Settings of one policy, the slowest first: from `multiexit.calibration_table`.

    Args:
        metric: what the scores are.
        score: of the last exit, on the same rows.
        rows: N.
        loss: what is bounded: `"accuracy"`, 1 where a row's answer is wrong and the last exit's is
            right, or of vectors `"cosine"`; None of numbers.
        confidence: with which the bounds hold.
        settings: by falling mean layers.
        precision: of the network that the figures are of: `"float32"`, or `"int8"` where they were
            measured on an export in int8, to whose answers the bounds then apply.

    Example:
        >>> import multiexit as mx
        >>> from multiexit.policies import Setting
        >>> setting = Setting(mx.MaxProb(0.9), 0.84, 0.015, 1.5, 1.33, 1.2, (0.5, 0.5))
        >>> table = mx.CalibrationTable("accuracy", 0.85, 400, "accuracy", 0.9, (setting,))
        >>> mx.CalibrationTable.from_json(table.to_json()) == table
        True
    """

    metric: str
    score: float
    rows: int
    loss: str | None
    confidence: float
    settings: tuple[Setting, ...]
    precision: str = "float32"

    def near_full(self) -> Setting:
        """The fastest setting that scored at most a point below the last exit, else the slowest."""
        near = [each for each in self.settings if each.score >= self.score - 0.01]
        return near[-1] if near else self.settings[0]

    def to_json(self) -> dict[str, Any]:
        """Give it as plain data."""
        settings = [
            {**asdict(each), "policy": to_json(each.policy), "shares_M": list(each.shares_M)}
            for each in self.settings
        ]
        return {**asdict(replace(self, settings=())), "settings": settings}

    @classmethod
    def from_json(
        cls, data: dict[str, Any], others: Sequence[type[ExitPolicy]] = ()
    ) -> "CalibrationTable":
        """Make the table that `to_json` gave.

        Args:
            data: what it gave.
            others: policy classes of the user's own.

        Raises:
            ValueError: another table, settings of other numbers of exits or kinds, an unknown
                policy, or counts that aren't of its rows.
        """
        TABLE("calibration", data)
        settings = tuple(
            Setting(
                **{
                    **row,
                    "policy": from_json(row["policy"], others),
                    "shares_M": tuple(row["shares_M"]),
                }
            )
            for row in data["settings"]
        )
        if len({(type(each.policy), len(each.shares_M)) for each in settings}) > 1:
            raise ValueError("calibration.settings must be of one policy and one number of exits")
        for s, each in enumerate(settings):
            known = unpacked(each.counts, len(each.shares_M), data["rows"]) is not None
            if each.counts is not None and not known:
                raise schema.wrong(f"calibration.settings[{s}].counts", each.counts, COUNTS)
        return cls(**{**data, "settings": settings})
