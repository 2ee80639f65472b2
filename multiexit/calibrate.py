"""Choose a policy's number for a target.

Letters: M exits, C classes.
"""

import math
from dataclasses import fields

import torch

from multiexit.evaluate import Outputs, judge
from multiexit.policies import ExitPolicy


def calibrate(outputs: Outputs, policy: type[ExitPolicy], *, speedup: float) -> ExitPolicy:
    """The setting of a one-number policy that scores best among those fast enough.

    Tries every patience 1..M − 1, or thresholds over 0..max(1, log C) that lie close together
    near both ends, on the collected outputs.

    Args:
        outputs: from `multiexit.collect`, on data that is not the evaluation's.
        policy: a policy class whose first field is its one number without a default.
        speedup: layers of the full network ÷ mean layers, at least this.

    Raises:
        ValueError: a class with other fields, or a speed-up that no setting reaches.
    """
    names = [f for f in fields(policy)]
    if not names or not math.isfinite(speedup) or speedup <= 0:
        raise ValueError(f"can't calibrate {policy.__name__} for a speed-up of {speedup}")
    M, _, C = outputs.logits_MBC.shape
    if names[0].type is int:
        candidates: list[float] = list(range(1, M))
    else:
        grid = torch.sigmoid(torch.linspace(-12, 12, 241, dtype=torch.float64))
        candidates = [0.0, *(max(1.0, math.log(C)) * grid).tolist()]
    try:
        settings = [policy(value) for value in candidates]  # type: ignore[call-arg]
    except TypeError as error:
        raise ValueError(
            f"{policy.__name__} has more than one number to choose: {error}"
        ) from error
    rows = [judge(outputs, setting) for setting in settings]
    fast = [row for row in rows if row.speedup_layers >= speedup]
    if not fast:
        best = max(rows, key=lambda row: row.speedup_layers)
        raise ValueError(
            f"no setting of {policy.__name__} reaches {speedup}×; the fastest, {best.policy}, "
            f"gives {best.speedup_layers:.2f}× at a score of {best.score:.4f}"
        )
    return max(fast, key=lambda row: (row.score, row.speedup_layers)).policy
