"""Choose a policy's number for a target.

Letters: M exits, C classes.
"""

import math
from contextlib import suppress
from dataclasses import MISSING, fields

import torch

from multiexit.evaluate import Outputs, judge
from multiexit.policies import ExitPolicy, field_types


def calibrate(
    outputs: Outputs, policy: type[ExitPolicy] | ExitPolicy, *, speedup: float
) -> ExitPolicy:
    """The setting of a policy's number that scores best among those fast enough.

    Tries every whole number below M, or thresholds over 0..max(1, log C) that lie close together
    near both ends, on the collected outputs.

    Args:
        outputs: from `multiexit.collect`, on data that is not the evaluation's.
        policy: a policy class with one field that has no default: its number. Or a policy, whose
            first field is chosen and whose others stay: `PatientConfident(0.2, patience=2)`.
        speedup: layers of the full network ÷ mean layers, at least this.

    Raises:
        ValueError: a class with more to choose, or a speed-up that no setting reaches.
    """
    if isinstance(policy, ExitPolicy):
        kind = type(policy)
        names = list(fields(kind))[:1]
        others = {f.name: getattr(policy, f.name) for f in fields(kind)[1:]}
    else:
        kind, others = policy, {}
        names = [f for f in fields(kind) if f.default is MISSING]
    if len(names) != 1:
        raise ValueError(
            f"{kind.__name__} has {len(names)} numbers to choose, calibrate chooses one: give "
            f"the others defaults, or pass a {kind.__name__} that has them"
        )
    if not math.isfinite(speedup) or speedup <= 0:
        raise ValueError(f"speedup must be above 0, got {speedup}")
    M, _, C = outputs.logits_MBC.shape
    candidates: list[float] = list(range(M))
    if field_types(kind)[names[0].name] is not int:
        grid = torch.sigmoid(torch.linspace(-12, 12, 241, dtype=torch.float64))
        candidates = [0.0, *(max(1.0, math.log(C)) * grid).tolist()]
    settings = []
    for value in candidates:
        with suppress(ValueError):  # a value the policy doesn't allow, such as patience 0
            settings.append(kind(**{names[0].name: value, **others}))
    if not settings:
        raise ValueError(f"{M} exits leave nothing to choose for {kind.__name__}")
    rows = [judge(outputs, setting) for setting in settings]
    fast = [row for row in rows if row.speedup_layers >= speedup]
    if not fast:
        best = max(rows, key=lambda row: row.speedup_layers)
        raise ValueError(
            f"no setting of {kind.__name__} reaches {speedup}×; the fastest, {best.policy}, "
            f"gives {best.speedup_layers:.2f}× at a score of {best.score:.4f}"
        )
    return max(fast, key=lambda row: (row.score, row.speedup_layers)).policy
