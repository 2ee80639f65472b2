"""What a policy's setting is chosen for: a speed-up, a score, milliseconds, or a bounded risk.

Letters: S settings, B rows, C classes.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from multiexit import policies
from multiexit.evaluation import guarantee
from multiexit.evaluation.judging import Row, sweep
from multiexit.evaluation.outputs import Outputs
from multiexit.names import unknown
from multiexit.policies import Certificate, ExitPolicy

if TYPE_CHECKING:
    from multiexit.model.latency import Latency

TARGETS = ("speedup", "score", "milliseconds", "risk")
BY = ("layers", "macs", "time")
Choose = Callable[[Outputs, list[ExitPolicy]], ExitPolicy]
"""Picks one of a policy's settings, which come by rising number."""


def target(
    *,
    speedup: float | None = None,
    score: float | None = None,
    milliseconds: float | None = None,
    risk: float | None = None,
    by: str = "layers",
    latency: "Latency | None" = None,
    batch_size: int = 1,
    confidence: float | None = 0.9,
    loss: str = "disagreement",
) -> Choose:
    """The one target that is given, checked; see `multiexit.calibrate` for what each means."""
    each = zip(TARGETS, (speedup, score, milliseconds, risk), strict=True)
    names = [name for name, value in each if value is not None]
    if len(names) != 1:
        raise ValueError(
            f"calibrate has one target: give one of {', '.join(TARGETS)}; got "
            + (" and ".join(names) or "none")
        )
    if risk is not None:
        return _risk_rule(risk, confidence, loss)
    if milliseconds is not None:
        return _milliseconds_rule(
            _checked_positive("milliseconds", milliseconds), latency, batch_size
        )
    speed = _speed(by, latency, batch_size)
    if speedup is not None:
        if _checked_positive("speedup", speedup) < 1:
            raise ValueError(f"speedup is 1 without early exits; give more, got {speedup}")
        return _speedup_rule(speedup, speed, by)
    assert score is not None
    return _score_rule(score, speed, by)


def mean_ms(row: Row, latency: "Latency", batch_size: int) -> float:
    """Milliseconds that a batch takes on average when rows leave in these shares."""
    measured, exits = len(latency.stages_ms), len(row.shares_M)
    if measured != exits:
        raise ValueError(f"the latency table has {measured} exits, these outputs have {exits}")
    return latency.expected_ms(row.shares_M, batch_size)


def _speed(by: str, latency: "Latency | None", batch_size: int) -> Callable[[Row], float]:
    """How much faster than the full network a policy is, by one of three measures."""
    if by == "layers":
        return lambda row: row.speedup_layers
    if by == "macs":
        return lambda row: row.speedup_macs
    if by != "time":
        raise unknown("measure of speed called", by, BY)
    table = _checked_table(latency, batch_size)
    full_ms = table.at(table.full_ms, batch_size)
    return lambda row: full_ms / mean_ms(row, table, batch_size)


def _speedup_rule(speedup: float, speed: Callable[[Row], float], by: str) -> Choose:
    def choose(outputs: Outputs, settings: list[ExitPolicy]) -> ExitPolicy:
        rows = sweep(outputs, settings)
        fast = [row for row in rows if speed(row) >= speedup]
        if not fast:
            best = max(rows, key=speed)
            raise ValueError(
                f"no setting of {type(best.policy).__name__} reaches {speedup}× by {by}; the "
                f"fastest, {best.policy}, gives {speed(best):.2f}× at a score of {best.score:.4f}"
            )
        return min(fast, key=lambda row: (speed(row), -row.score)).policy

    return choose


def _score_rule(score: float, speed: Callable[[Row], float], by: str) -> Choose:
    if not math.isfinite(score):
        raise ValueError(f"score must be a finite number, got {score}")

    def choose(outputs: Outputs, settings: list[ExitPolicy]) -> ExitPolicy:
        rows = sweep(outputs, settings)
        good = [row for row in rows if row.score >= score]
        if not good:
            best = max(rows, key=lambda row: (row.score, speed(row)))
            raise ValueError(
                f"no setting of {type(best.policy).__name__} scores {score}; the best, "
                f"{best.policy}, scores {best.score:.4f} at {speed(best):.2f}× by {by}"
            )
        return max(good, key=lambda row: (speed(row), row.score)).policy

    return choose


def _milliseconds_rule(milliseconds: float, latency: "Latency | None", batch_size: int) -> Choose:
    table = _checked_table(latency, batch_size)

    def choose(outputs: Outputs, settings: list[ExitPolicy]) -> ExitPolicy:
        rows = sweep(outputs, settings)
        times = [mean_ms(row, table, batch_size) for row in rows]
        within = [(row, ms) for row, ms in zip(rows, times, strict=True) if ms <= milliseconds]
        if not within:
            ms, best = min(zip(times, rows, strict=True), key=lambda pair: pair[0])
            raise ValueError(
                f"no setting of {type(best.policy).__name__} takes {milliseconds} ms for a batch "
                f"of {batch_size}; the fastest, {best.policy}, takes {ms:.3g} ms at a score of "
                f"{best.score:.4f}, the network without early exits "
                f"{table.at(table.full_ms, batch_size):.3g} ms"
            )
        return max(within, key=lambda pair: (pair[1], pair[0].score))[0].policy

    return choose


def _risk_rule(risk: float, confidence: float | None, loss: str) -> Choose:
    guarantee.check_share("risk", risk)
    guarantee.check_loss(loss)
    if confidence is not None:
        guarantee.check_share("confidence", confidence)
    delta = None if confidence is None else 1 - confidence

    def choose(outputs: Outputs, settings: list[ExitPolicy]) -> ExitPolicy:
        rows = len(outputs.labels_B)
        guarantee.check_rows(rows, risk, delta)
        logits_MBC, certainty_MB = outputs.logits_MBC, outputs.certainty_MB
        answers = [policies.answers(setting, logits_MBC, certainty_MB) for setting in settings]
        # Numbers rise; whether that makes rows leave later or earlier, the two ends say.
        if answers[0][0].sum() < answers[-1][0].sum():
            settings, answers = settings[::-1], answers[::-1]
        answer_SBC = torch.stack([answer_BC for _, answer_BC in answers])
        loss_SB = guarantee.losses(answer_SBC, logits_MBC[-1], outputs.labels_B, loss)
        if delta is None:
            index = guarantee.conformal(loss_SB, risk)
        else:
            index = guarantee.learn_then_test(loss_SB, risk, delta)
        if index is None:
            raise ValueError(
                f"{rows} rows can't certify a risk of {risk} for even the safest setting, "
                f"{settings[0]}, whose loss on them is {float(loss_SB[0].mean()):.4f}"
            )
        keys = None if outputs.keys_B is None else tuple(sorted(outputs.keys_B.tolist()))
        observed = float(loss_SB[index].mean())
        return settings[index].with_certificate(
            Certificate(loss, risk, confidence, rows, observed, keys)
        )

    return choose


def _checked_table(latency: "Latency | None", batch_size: int) -> "Latency":
    if latency is None:
        raise ValueError(
            "by time or milliseconds it takes a latency table of the model on its machine: "
            "pass latency=mx.profile(model)"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be a whole number from 1, got {batch_size}")
    return latency


def _checked_positive(name: str, value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value
