"""The targets of calibration: a speed-up, a score, milliseconds, or a bounded risk.

Letters: S settings, B rows, C classes, M exits, E bins of confidence.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multiexit import problems
from multiexit.arguments import check_positive, check_share, check_whole, unknown
from multiexit.evaluation import guarantee
from multiexit.evaluation.exit_losses import (
    Loss,
    bound_of,
    check_apart,
    check_loss,
    fitting,
    losses_of,
    name_of,
    of_exits,
)
from multiexit.evaluation.judging import Row, sweep
from multiexit.evaluation.outputs import Outputs
from multiexit.model.latency import Latency
from multiexit.policies import Certificate, ExitPolicy
from multiexit.policies.certificate import Bound
from multiexit_runner.drift import BINS, bins_of

TARGETS = ("speedup", "score", "milliseconds", "risk")
BY = ("layers", "macs", "time")
Speed = Callable[[Row], float]


@dataclass(frozen=True, kw_only=True)
class Target:
    """The one target that is given, checked.

    Args:
        speedup, score, milliseconds, risk, by, latency, batch_size, confidence, loss, corpus: as
            for `multiexit.calibrate`.

    Raises:
        ValueError: no target or two, a value out of its range, an unknown `by` or `loss`, time
            without a latency table, or what has no effect beside the target, such as such a table.
    """

    speedup: float | None = None
    score: float | None = None
    milliseconds: float | None = None
    risk: float | Mapping[Loss, float] | None = None
    by: str = "layers"
    latency: Latency | None = None
    batch_size: int = 1
    confidence: float | None = 0.9
    loss: Loss | None = None
    corpus: Tensor | None = None

    def __post_init__(self) -> None:
        names = [name for name in TARGETS if getattr(self, name) is not None]
        if len(names) != 1:
            raise ValueError(
                f"calibrate has one target: give one of {', '.join(TARGETS)}; got "
                + (" and ".join(names) or "none")
            )
        risks = self.risks()
        ranked = any(isinstance(loss, str) and loss.startswith("rank@") for loss, _ in risks)
        if self.corpus is not None and not ranked:
            raise ValueError(
                "a corpus goes with a risk and a loss such as 'rank@10', which search it: leave it "
                "out"
            )
        timed = names[0] == "milliseconds" or self.by == "time"
        idle = {
            "loss, which goes with a risk": self.loss is not None and self.risk is None,
            "confidence, which goes with a risk": self.confidence != 0.9 and self.risk is None,
            "by, which goes with a speedup or a score": self.by != "layers"
            and names[0] not in ("speedup", "score"),
            "batch_size, which goes with time": self.batch_size != 1 and not timed,
        }
        for name, given in idle.items():
            if given:
                raise ValueError(f"{name}, has no effect beside {names[0]}: leave it out")
        if self.latency is not None and not timed:
            raise ValueError(
                "latency goes with by='time' or milliseconds: leave it out, or say by='time'"
            )
        check_whole("batch_size", self.batch_size)
        if self.risk is not None:
            for loss, risk in risks:
                check_share("risk", risk, "(0, 1)")
                if loss is not None:
                    check_loss(loss)
            if self.confidence is not None:
                check_share("confidence", self.confidence, "(0, 1)")
            return
        if self.milliseconds is not None:
            check_positive("milliseconds", self.milliseconds)
        elif self.by not in BY:
            raise unknown("measure of speed called", self.by, BY)
        if self.milliseconds is not None or self.by == "time":
            self.table()
        if self.speedup is not None:
            check_positive("speedup", self.speedup)
            if self.speedup < 1:
                raise ValueError(f"speedup is 1 without early exits; give more, got {self.speedup}")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"score must be a finite number, got {self.score}")

    def risks(self) -> list[tuple[Loss | None, float]]:
        """Each loss with its risk; None is the loss that suits the outputs.

        Raises:
            ValueError: risks by loss, and a loss beside them, or none of them.
        """
        if self.risk is None:
            return []
        if not isinstance(self.risk, Mapping):
            return [(self.loss, self.risk)]
        if self.loss is not None or not self.risk:
            raise ValueError(
                "risks by loss are like risk={'accuracy': 0.02, 'brier': 0.01}, without loss=; got "
                f"risk={dict(self.risk)!r:.80} and loss={self.loss!r:.80}"
            )
        return list(self.risk.items())

    def table(self) -> Latency:
        """The latency table, where the target needs one.

        Raises:
            ValueError: there is none.
        """
        if self.latency is None:
            raise ValueError(
                "by time or milliseconds it takes a latency table of the model on its machine: "
                "pass latency=mx.profile(model)"
            )
        return self.latency

    def choose(self, outputs: Outputs, settings: list[ExitPolicy]) -> ExitPolicy:
        """The one of a policy's settings that serves the target.

        Args:
            outputs: to choose on.
            settings: by rising number.

        Raises:
            ValueError: no setting reaches it; the message says what one reaches.
        """
        if self.risk is not None:
            return _bounded(self, outputs, settings)
        rows = sweep(outputs, settings)
        if self.milliseconds is not None:
            return _within(self, self.milliseconds, rows)
        speed = self._speed()
        if self.speedup is not None:
            return _fast(self.speedup, rows, speed, self.by)
        assert self.score is not None
        return _good(self.score, rows, speed, self.by)

    def _speed(self) -> Speed:
        """A policy's speed-up over the full network, by one of three measures."""
        if self.by == "layers":
            return lambda row: row.speedup_layers
        if self.by == "macs":
            return lambda row: row.speedup_macs
        table = self.table()
        full_ms = table.at(table.full_ms, self.batch_size)
        return lambda row: full_ms / mean_ms(row, table, self.batch_size)


def mean_ms(row: Row, latency: Latency, batch_size: int) -> float:
    """Milliseconds that a batch takes on average when rows leave as in a judged row.

    Args:
        row: for the share of rows that leave at each exit.
        latency: of the same model.
        batch_size: B, at the start.

    Raises:
        ValueError: a table of another number of exits.
    """
    measured, exits = len(latency.stages_ms), len(row.shares_M)
    if measured != exits:
        raise ValueError(f"the latency table has {measured} exits, these outputs have {exits}")
    return latency.expected_ms(row.shares_M, batch_size)


def _fast(speedup: float, rows: list[Row], speed: Speed, by: str) -> ExitPolicy:
    fast = [row for row in rows if speed(row) >= speedup]
    if not fast:
        best = max(rows, key=speed)
        raise ValueError(
            f"no setting of {type(best.policy).__name__} reaches {speedup}× by {by}; the "
            f"fastest, {best.policy}, gives {speed(best):.2f}× at a score of {best.score:.4f}"
        )
    return min(fast, key=lambda row: (speed(row), -row.score)).policy


def _good(score: float, rows: list[Row], speed: Speed, by: str) -> ExitPolicy:
    good = [row for row in rows if row.score >= score]
    if not good:
        best = max(rows, key=lambda row: (row.score, speed(row)))
        raise ValueError(
            f"no setting of {type(best.policy).__name__} scores {score}; the best, "
            f"{best.policy}, scores {best.score:.4f} at {speed(best):.2f}× by {by}"
        )
    return max(good, key=lambda row: (speed(row), row.score)).policy


def _within(target: Target, milliseconds: float, rows: list[Row]) -> ExitPolicy:
    table, size = target.table(), target.batch_size
    timed = [(mean_ms(row, table, size), row) for row in rows]
    in_time = [(ms, row) for ms, row in timed if ms <= milliseconds]
    if not in_time:
        ms, best = min(timed, key=lambda pair: pair[0])
        raise ValueError(
            f"no setting of {type(best.policy).__name__} takes {milliseconds} ms for a batch of "
            f"{size}; the fastest, {best.policy}, takes {ms:.3g} ms at a score of "
            f"{best.score:.4f}, the network without early exits "
            f"{table.at(table.full_ms, size):.3g} ms"
        )
    return max(in_time, key=lambda pair: (pair[0], pair[1].score))[1].policy


def _bounded(target: Target, outputs: Outputs, settings: list[ExitPolicy]) -> ExitPolicy:
    rows = len(outputs.labels_B)
    delta = None if target.confidence is None else 1 - target.confidence
    risks = [(fitting(loss, outputs.problem), risk) for loss, risk in target.risks()]
    for loss, risk in risks:
        guarantee.check_rows(rows, risk, delta, bound_of(loss))
    if target.corpus is not None:
        check_apart(target.corpus, outputs.logits_MBC[-1])
    tables = [losses_of_settings(outputs, settings, loss, target.corpus) for loss, _ in risks]
    # Numbers rise; whether that makes rows leave later or earlier, the two ends say.
    exit_sum_S = tables[0][0]
    order = slice(None, None, -1 if exit_sum_S[0] < exit_sum_S[-1] else None)
    settings, chosen = settings[order], []
    for (loss, risk), (_, loss_SB) in zip(risks, tables, strict=True):
        loss_SB = loss_SB.flip(0) if order.step else loss_SB
        if delta is None:
            index = guarantee.conformal(loss_SB, risk)
        else:
            index = guarantee.learn_then_test(loss_SB, risk, delta, bound_of(loss))
        if index is None:
            raise ValueError(
                f"{rows} rows can't certify a risk of {risk} for even the safest setting, "
                f"{settings[0]}, whose loss ({name_of(loss)}) on them is "
                f"{float(loss_SB[0].mean()):.4f}"
            )
        chosen.append((index, name_of(loss), risk, loss_SB.mean(1)))
    index = min(chosen, key=lambda each: each[0])[0]
    bounds = [Bound(name, risk, float(mean_S[index])) for _, name, risk, mean_S in chosen]
    return settings[index].with_certificate(
        Certificate(
            bounds[0].loss,
            bounds[0].risk,
            target.confidence,
            rows,
            bounds[0].observed,
            keys=None if outputs.keys_B is None else tuple(sorted(outputs.keys_B.tolist())),
            counts=counts_of(outputs, settings[index]),
            also=tuple(bounds[1:]),
        )
    )


def counts_of(outputs: Outputs, policy: ExitPolicy) -> tuple[tuple[int, ...], ...]:
    """How many rows leave at each exit with a confidence in each bin, M × E.

    Args:
        outputs: from `collect`.
        policy: that stops the rows.
    """
    exit_B, answer_BC = outputs.answers(policy)
    problem = problems.resolve(outputs.problem, outputs.num_classes)
    counts_ME = np.zeros((outputs.num_exits, BINS), np.int64)
    np.add.at(counts_ME, (exit_B.numpy(), bins_of(answer_BC.numpy(), problem)), 1)
    return tuple(map(tuple, counts_ME.tolist()))


def losses_of_settings(
    outputs: Outputs, settings: list[ExitPolicy], loss: Loss, corpus_NC: Tensor | None = None
) -> tuple[list[int], Tensor]:
    """How late rows leave in all under each setting, [S], and their losses, [S, B].

    Args:
        outputs: from `collect`.
        settings: S of them.
        loss, corpus_NC: as for `multiexit.evaluation.exit_losses.losses`, or a loss of your own.
    """
    if isinstance(loss, Tensor):
        loss_MB = of_exits(outputs, loss)
        exit_SB = torch.stack([outputs.answers(setting)[0] for setting in settings])
        return exit_SB.sum(1).tolist(), torch.stack(
            [loss_MB.gather(0, exit_B[None])[0] for exit_B in exit_SB]
        )
    before_BC = outputs.logits_MBC[-1]
    loss_B = torch.zeros(len(before_BC), dtype=torch.float64)
    if not isinstance(loss, str):  # which may be more than 0 at the last exit
        loss_B = losses_of(outputs, before_BC[None], loss)[0]
    exit_sum_S, loss_SB = [], []
    for setting in settings:
        exit_B, answer_BC = outputs.answers(setting)
        changed_B = (answer_BC != before_BC).flatten(1).any(1)  # few, from setting to setting
        loss_B, before_BC = loss_B.clone(), answer_BC
        if changed_B.any():
            few, answer_1FC = outputs.take(changed_B), answer_BC[None, changed_B]
            loss_B[changed_B] = losses_of(few, answer_1FC, loss, corpus_NC)[0]
        exit_sum_S.append(int(exit_B.sum()))
        loss_SB.append(loss_B)
    return exit_sum_S, torch.stack(loss_SB)
