"""Choose a policy's number for a target.

Letters: M exits, S settings, B rows, C classes.
"""

import math
from contextlib import suppress
from dataclasses import MISSING, fields
from typing import Any

import torch

from multiexit import guarantee, policies
from multiexit.evaluate import Outputs, judge
from multiexit.policies import ExitPolicy, field_types


def calibrate(
    outputs: Outputs,
    policy: type[ExitPolicy] | ExitPolicy,
    *,
    speedup: float | None = None,
    risk: float | None = None,
    confidence: float | None = 0.9,
    loss: str = "disagreement",
) -> ExitPolicy:
    """The setting of a policy's number that serves a target: a speed-up, or a bounded risk.

    For a speed-up: the setting that scores best among those fast enough. For a risk: the fastest
    one whose mean loss on new rows is at most the risk, with this confidence
    (`multiexit.guarantee.learn_then_test`), or on average with `confidence=None`
    (`multiexit.guarantee.conformal`). That holds if the rows collected here and the new ones are
    drawn alike, and the model was neither trained nor selected on them.

    Tries every whole number below M, or thresholds over 0..max(1, log C) that lie close together
    near both ends, on the collected outputs.

    Args:
        outputs: from `multiexit.collect`, on data that is not the evaluation's.
        policy: a policy class with one field that has no default: its number. Or a policy, whose
            first field is chosen and whose others stay: `PatientConfident(0.2, patience=2)`.
        speedup: layers of the full network ÷ mean layers, at least this.
        risk: largest mean loss, in (0, 1).
        confidence: with which the risk is kept, in (0, 1), or None.
        loss: `"disagreement"` with the last exit, or `"accuracy"`: wrong where the last exit is
            right.

    Raises:
        ValueError: no target or two, a class with more to choose, a speed-up that no setting
            reaches, a risk that these rows can't certify.

    Example:
        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.rand(60, 3, 32, 32), torch.arange(60) % 2)
        >>> policy = mx.calibrate(mx.collect(model, data), mx.MaxProb, risk=0.1)
    """
    if (speedup is None) == (risk is None):
        raise ValueError("calibrate has one target: give speedup= or risk=")
    settings = _settings(outputs, policy)
    if speedup is not None:
        return _for_speed(outputs, settings, speedup)
    assert risk is not None
    return _for_risk(outputs, settings, risk, confidence, loss)


def _settings(outputs: Outputs, policy: type[ExitPolicy] | ExitPolicy) -> list[ExitPolicy]:
    """A policy's settings by rising number."""
    kind: Any = policy
    others: dict[str, Any] = {}
    if isinstance(policy, ExitPolicy):
        kind = type(policy)
        names = list(fields(kind))[:1]
        others = {f.name: getattr(policy, f.name) for f in fields(kind)[1:]}
    else:
        names = [f for f in fields(kind) if f.default is MISSING]
    if len(names) != 1:
        raise ValueError(
            f"{kind.__name__} has {len(names)} numbers to choose, calibrate chooses one: give "
            f"the others defaults, or pass a {kind.__name__} that has them"
        )
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
    return settings


def _for_speed(outputs: Outputs, settings: list[ExitPolicy], speedup: float) -> ExitPolicy:
    if not math.isfinite(speedup) or speedup <= 0:
        raise ValueError(f"speedup must be above 0, got {speedup}")
    rows = [judge(outputs, setting) for setting in settings]
    fast = [row for row in rows if row.speedup_layers >= speedup]
    if not fast:
        best = max(rows, key=lambda row: row.speedup_layers)
        raise ValueError(
            f"no setting of {type(best.policy).__name__} reaches {speedup}×; the fastest, "
            f"{best.policy}, gives {best.speedup_layers:.2f}× at a score of {best.score:.4f}"
        )
    return max(fast, key=lambda row: (row.score, row.speedup_layers)).policy


def _for_risk(
    outputs: Outputs,
    settings: list[ExitPolicy],
    risk: float,
    confidence: float | None,
    loss: str,
) -> ExitPolicy:
    guarantee.check_share("risk", risk)
    if confidence is not None:
        guarantee.check_share("confidence", confidence)
    logits_MBC, certainty_MB = outputs.logits_MBC, outputs.certainty_MB
    left = [policies.answers(setting, logits_MBC, certainty_MB) for setting in settings]
    # Numbers rise; whether that makes rows leave later or earlier, the two ends say.
    if left[0][0].sum() < left[-1][0].sum():
        settings, left = settings[::-1], left[::-1]
    answer_SBC = torch.stack([answer_BC for _, answer_BC in left])
    loss_SB = guarantee.losses(answer_SBC, logits_MBC[-1], outputs.labels_B, loss)
    if confidence is None:
        index = guarantee.conformal(loss_SB, risk)
        needed = math.ceil(1 / risk) - 1
    else:
        index = guarantee.learn_then_test(loss_SB, risk, 1 - confidence)
        needed = guarantee.rows_needed(risk, 1 - confidence)
    if index is None:
        raise ValueError(
            f"{loss_SB.shape[1]} rows can't certify a risk of {risk} for even the safest setting, "
            f"{settings[0]}, whose loss on them is {float(loss_SB[0].mean()):.4f}: without any "
            f"loss it takes {needed} rows"
        )
    return settings[index]
