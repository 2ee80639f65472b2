"""Which setting of a calibration table serves a call: `multiexit.Classifier`'s too."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from multiexit_runner.naming import OptionError

NO_TABLE = (
    "there is no calibration table to choose a setting from: make one with `multiexit calibrate "
    "FOLDER --table` (model.calibration = multiexit.calibration_table(…)){again}"
)

SMALL = 0.1
"""Points of loss below which a share was meant, rather."""

NO_BOUNDS = (
    "this calibration table bounds no loss: models of numbers have no bounds, those of float don't "
    "hold in bfloat16 or int8, and an export in int8 gets its own from rows with labels "
    "(`multiexit export MODEL FOLDER --int8 --data TABLE`)"
)


def bounds_speak_of(table: Mapping[str, Any], certificate: Mapping[str, Any]) -> bool:
    """Whether a table's bounds are of a certificate's loss, and as sure at least.

    >>> table = {"loss": "accuracy", "confidence": 0.9}
    >>> bounds_speak_of(table, {"loss": "accuracy", "confidence": 0.9})
    True
    >>> bounds_speak_of(table, {"loss": "accuracy", "confidence": 0.95})
    False
    """
    sure = certificate["confidence"]
    alike = certificate["loss"] == table["loss"]
    return alike and sure is not None and sure <= table["confidence"]


def wanted(policy: Any, **targets: float | None) -> tuple[str, float] | None:
    """The one target of a call, checked; None where there is none.

    Args:
        policy: of the call, beside which there is no target.
        targets: `speedup`, `max_loss`, `milliseconds`, or None each.

    Raises:
        ValueError: two of them, or a number that none can have.
    """
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) + (policy is not None) > 1:
        both = " and ".join([*(["policy"] if policy is not None else []), *given])
        raise ValueError(f"a call has one policy or one target, got {both}: give one of them")
    for name, value in given.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"{name} must be a number, got {value!r:.80}")
        if name == "speedup" and value < 1:
            raise ValueError(f"speedup is 1 without early exits; give more, got {value}")
        if name == "max_loss" and not 0 < value < 100:
            raise ValueError(
                f"max_loss is in points, above 0 and below 100 (0.5 is 84.5 to 84.0); got {value}"
            )
        if name == "milliseconds" and value <= 0:
            raise ValueError(f"milliseconds must be above 0, got {value}")
    return next(((name, float(value)) for name, value in given.items()), None)


def choose(table: Mapping[str, Any], target: tuple[str, float], ms_S: Sequence[float] = ()) -> int:
    """The place of the setting that serves a target.

    For a speed-up by layers or for milliseconds the slowest that is fast enough, as
    `multiexit.calibrate` takes it; for a loss in points the fastest whose bound is within it.

    Args:
        table: as `multiexit.policies.CalibrationTable.to_json` gives it.
        target: from `wanted`.
        ms_S: of each setting, where the target is `milliseconds`.

    Raises:
        ValueError: no setting reaches it; the message says what one reaches.
    """
    (name, number), settings = target, table["settings"]
    places = range(len(settings))
    if name == "speedup":
        speed_S = [setting["speedup_layers"] for setting in settings]
        fast = [s for s in places if speed_S[s] >= number]
        if not fast:
            raise ValueError(
                f"no setting of the calibration table gives speedup={number:g}; the fastest gives "
                f"{max(speed_S):.2f}"
            )
        return min(fast, key=lambda s: (speed_S[s], -settings[s]["score"]))
    if name == "milliseconds":
        in_time = [s for s in places if ms_S[s] <= number]
        if not in_time:
            raise ValueError(
                f"no setting of the calibration table takes milliseconds={number:g}; the fastest "
                f"takes {min(ms_S):.3g}"
            )
        return max(in_time, key=lambda s: (ms_S[s], settings[s]["score"]))
    bound_S = [setting["loss_bound"] for setting in settings]
    if None in bound_S:
        raise ValueError(f"max_loss={number:g}: {NO_BOUNDS}; choose by a speedup, which needs none")
    safe = [s for s in places if 100 * bound_S[s] <= number]
    if not safe:
        meant = f" (as a share, did you mean {100 * number:g}?)" if number < SMALL else ""
        raise OptionError(
            "no setting of the calibration table has a bound within {max_loss}={:g} points{}; on "
            "{} rows, with confidence {:g}, the lowest is {:.2g} points: give more, or make the "
            "table on more rows",
            *(number, meant, table["rows"], table["confidence"], 100 * min(bound_S)),
        )
    return max(safe, key=lambda s: settings[s]["speedup_layers"])
