"""The test for drift on simulated rows: how soon it gives an alarm, and how seldom without drift.

    python benchmarks/drift.py --output benchmarks/results/drift.json

Rows leave at four exits, with a confidence; *harder by* is in standard deviations, from one row on:
harder rows leave later, less sure. *policy turned*: each row may jump to another of four settings,
by where it left, and each setting has a test of its own, as in a service with a target. In the last
lines rows have logits, and each stream's threshold is certified on its own calibration rows, which
makes these differ a little from those that follow.

Letters: S streams of rows, M exits, E bins of confidence, P settings of a policy.
"""

import argparse
import shlex
import sys
from typing import Any

import numpy as np
import torch
from common import report

import multiexit as mx
from multiexit_runner.drift import BINS, Drift, bins_of

M = 4
THRESHOLDS_P = np.array([0.95, 0.9, 0.8, 0.6])


def drawn(
    random: np.random.Generator, streams: int, rows: int, harder: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Exits and bins of confidence [streams, rows]; harder rows leave later, less sure."""
    hard_SB = random.normal(size=(streams, rows)) + harder
    exit_SB = np.clip((hard_SB + 1) / 0.7, 0, M - 1).astype(int)
    sure_SB = 1 / (1 + np.exp(hard_SB - random.normal(1, 1, (streams, rows))))
    return exit_SB, np.clip(-4 * np.log1p(-sure_SB), 0, BINS - 1).astype(int)


def first_alarms(drift: Drift, exit_SB: np.ndarray, bin_SB: np.ndarray, alpha: float) -> np.ndarray:
    """Behind how many rows each stream has an alarm, [S]; inf is never."""
    at_S = np.full(len(exit_SB), np.inf)
    for row in range(exit_SB.shape[1]):
        drift.add(exit_SB[:, row], bin_SB[:, row])
        at_S[(drift.wealth >= 1 / alpha) & (at_S == np.inf)] = row + 1
    return at_S


def alarms(
    calibrating: int,
    streams: int,
    rows: int,
    harder: float = 0.0,
    before: int = 0,
    alpha: float = 0.01,
) -> np.ndarray:
    """Behind how many rows of drift each stream has an alarm, [S]; inf is never."""
    random = np.random.default_rng(calibrating)
    counts = np.zeros((streams, M, BINS), int)
    np.add.at(counts, (np.arange(streams)[:, None], *drawn(random, streams, calibrating)), 1)
    parts = [drawn(random, streams, before), drawn(random, streams, rows, harder)]
    exit_SB, bin_SB = (np.concatenate(part, 1) for part in zip(*parts, strict=True))
    return first_alarms(Drift(counts, random), exit_SB, bin_SB, alpha) - before


def by_setting(
    random: np.random.Generator, streams: int, rows: int, harder: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Exits and bins of confidence [P, streams, rows] of the same rows by each setting."""
    hard_1SB = random.normal(size=(1, streams, rows)) + harder
    helps_M11 = np.linspace(0, 3, M)[:, None, None]
    doubt_MSB = 1 / (1 + np.exp(helps_M11 - hard_1SB + random.normal(1, 1, (M, streams, rows))))
    stops_PMSB = 1 - doubt_MSB >= THRESHOLDS_P[:, None, None, None]
    stops_PMSB[:, -1] = True
    exit_PSB = stops_PMSB.argmax(1)
    doubt_PSB = np.take_along_axis(doubt_MSB, exit_PSB, 0)
    return exit_PSB, np.clip(-4 * np.log(doubt_PSB), 0, BINS - 1).astype(int)


def turned_alarms(
    calibrating: int, streams: int, rows: int, harder: float = 0.0, alpha: float = 0.01
) -> np.ndarray:
    """As `alarms`, of a policy that is turned: a row's exit says by how many settings it jumps."""
    random = np.random.default_rng(calibrating)
    many, each_S = len(THRESHOLDS_P), np.arange(streams)
    counts = np.zeros((many, streams, M, BINS), int)
    exit_PSB, bin_PSB = by_setting(random, streams, calibrating)
    np.add.at(counts, (np.arange(many)[:, None, None], each_S[:, None], exit_PSB, bin_PSB), 1)
    exit_PSB, bin_PSB = by_setting(random, streams, rows, harder)
    place_SB = np.zeros((streams, rows), int)
    for row in range(rows - 1):
        exit_S = exit_PSB[place_SB[:, row], each_S, row]
        place_SB[:, row + 1] = (place_SB[:, row] + exit_S) % many
    first_S = np.full(streams, np.inf)
    for place in range(many):
        here_SB = place_SB == place
        own_SB = np.argsort(~here_SB, 1, kind="stable")[:, : here_SB.sum(1).max()]
        exit_SB = np.take_along_axis(exit_PSB[place], own_SB, 1)
        bin_SB = np.take_along_axis(bin_PSB[place], own_SB, 1)
        at_S = first_alarms(Drift(counts[place], random), exit_SB, bin_SB, alpha / many)
        alarmed_S = at_S <= here_SB.sum(1)  # others' rows fill up the shorter streams
        behind_S = own_SB[alarmed_S, at_S[alarmed_S].astype(int) - 1] + 1
        first_S[alarmed_S] = np.minimum(first_S[alarmed_S], behind_S)
    return first_S


def outputs(random: torch.Generator, rows: int) -> mx.Outputs:
    """Four exits that are ever surer and righter, of three classes."""
    labels_B = torch.randint(3, (rows,), generator=random)
    right_BC = torch.nn.functional.one_hot(labels_B, 3).float()
    noise_MBC = torch.randn(M, rows, 3, generator=random)
    logits_MBC = torch.stack([(1 + m) * right_BC + noise_MBC[m] for m in range(M)])
    layers = tuple(range(1, M + 1))
    return mx.Outputs(logits_MBC, labels_B, mx.Cost(layers, layers, layers, M))


def certified_alarms(calibrating: int, streams: int, rows: int, alpha: float) -> np.ndarray:
    """As `alarms`, without drift, with a threshold that is certified anew for each stream."""
    random = torch.Generator().manual_seed(calibrating)
    counts, exits, bins = [], [], []
    for _ in range(streams):
        policy = mx.calibrate(outputs(random, calibrating), mx.MaxProb, risk=0.2)
        assert policy.certificate is not None
        counts.append(policy.certificate.counts)
        exit_B, logits_BC = outputs(random, rows).answers(policy)
        exits.append(exit_B.numpy())
        bins.append(bins_of(logits_BC.numpy(), "classification"))
    drift = Drift(np.array(counts), np.random.default_rng(calibrating))
    return first_alarms(drift, np.stack(exits), np.stack(bins), alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--certified", type=int, default=150, help="streams with a threshold each")
    parser.add_argument("--output")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(calibrating: int, harder: Any, before: int, alpha: float, at_S: np.ndarray) -> None:
        alarmed = np.isfinite(at_S)
        rows.append(
            {
                "calibration rows": calibrating,
                "harder by": harder,
                "after rows": before,
                "α": f"{alpha:g}",
                "streams": len(at_S),
                "with an alarm": f"{100 * alarmed.mean():.1f} %",
                "rows until it, median": f"{np.median(at_S):.0f}" if alarmed.mean() > 0.5 else "–",
            }
        )

    drifts = [(500, 1.0, 0), (500, 0.5, 0), (500, -0.5, 0), (500, 0.5, 1000)]
    drifts += [(45, 1.0, 0), (45, 0.5, 0), (60, 0.0, 0), (400, 0.0, 0)]
    for calibrating, harder, before in drifts:
        for alpha in (0.01,) if harder else (0.01, 0.1):
            at_S = alarms(calibrating, args.streams, 2000, harder, before, alpha)
            add(calibrating, f"{harder:g}", before, alpha, at_S)
    for harder, alpha in ((0.5, 0.01), (0.0, 0.01), (0.0, 0.1)):
        at_S = turned_alarms(500, args.streams, 2000, harder, alpha)
        add(500, f"{harder:g}, policy turned", 0, alpha, at_S)
    for calibrating in (60, 400):
        at_S = certified_alarms(calibrating, args.certified, 2000, 0.1)
        add(calibrating, "0, threshold certified", 0, 0.1, at_S)
    note = (
        "Streams of 2,000 rows. *with an alarm* counts those before the drift too. "
        "*policy turned*: each row's setting, of four, goes by where the row before left."
    )
    report(rows, args.output, shlex.join(["benchmarks/drift.py", *sys.argv[1:]]), note)


if __name__ == "__main__":
    main()
