"""A policy's settings over its range."""

import math
from dataclasses import dataclass

import pytest
import torch

import multiexit as mx
from multiexit import policies


@dataclass(frozen=True)
class Spread(mx.ExitPolicy):
    """Ours, with its own range: stops where logits differ enough, at so many exits in a row."""

    threshold: float = policies.number(lambda known: (0.0, 50.0))
    times: int = policies.number(
        lambda known: (1, known.num_exits), whole="a whole number", least=1
    )

    def init(self, logits_BC):
        return {"count": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state, logits_BC):
        apart_B = logits_BC.amax(1) - logits_BC.amin(1)
        count_B = (state["count"] + 1) * (apart_B >= self.threshold)
        return {"count": count_B}, count_B >= self.times


@dataclass(frozen=True)
class Named(Spread):
    """A field that nobody can try over a range."""

    mode: str

    def __init__(self, mode):
        object.__setattr__(self, "mode", mode)


SWEPT = [*policies.POLICIES.values(), Spread]
LOWEST = {mx.Patience: 1, mx.Settled: 1}  # they compare two exits


@pytest.mark.parametrize("kind", SWEPT, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("M", "C"), [(1, 2), (2, 2), (6, 2), (6, 7)])
def test_a_sweep_reaches_both_ends(kind, M, C):
    generator = torch.Generator().manual_seed(0)
    logits_MBC = torch.logspace(-2, 1, 30)[:, None] * torch.randn(M, 30, C, generator=generator)
    logits_MBC[:, 0], logits_MBC[:, 1, 0] = 0.0, 1e4  # as unsure, and as sure, as can be
    if kind in (mx.Patience, mx.Beem):
        logits_MBC = logits_MBC[:1].expand(M, -1, -1)  # who changes their mind can't leave early
    certainty_MB = torch.rand(M, 30, generator=generator)
    certainty_MB[:, 0], certainty_MB[:, 1] = 0.0, 1.0
    problem = "embedding" if kind is mx.Settled else None
    if problem is not None:
        logits_MBC = torch.nn.functional.normalize(logits_MBC.clamp(min=1e-3), dim=-1)
    known = policies.Known(M, C)
    tried = policies.sweep_settings(kind, known)
    exits = [mx.simulate(p, logits_MBC, certainty_MB, problem) for p in tried]
    means = [exit_B.double().mean().item() for exit_B in exits]
    assert max(means) == M - 1
    assert min(means) == min(M - 1, LOWEST.get(kind, 0))
    assert len(tried) == len(set(tried)) <= 120
    if M > 2:
        assert len({round(mean, 6) for mean in means}) > 4  # and much between


def test_a_sweep_of_regression_goes_over_patience_and_tolerance():
    generator = torch.Generator().manual_seed(0)
    logits_MB1 = 30 * torch.randn(6, 40, 1, generator=generator)
    apart = float(logits_MB1.diff(dim=0).abs().max())
    tried = policies.sweep_settings(mx.Patience, policies.Known(6, 1, apart))
    means = [mx.simulate(p, logits_MB1).double().mean().item() for p in tried]
    assert min(means) == 1
    assert max(means) == 5
    for kind in (mx.Patience(1, tolerance=0.5), mx.FixedExit):
        numbers = policies.sweep_settings(kind, policies.Known(6, 1))
        assert len(numbers) == (5 if isinstance(kind, mx.Patience) else 6)


def test_the_range_of_a_threshold_is_that_of_its_figure():
    for kind, C, low, high in ((mx.Entropy, 7, 0, math.log(7)), (mx.MaxProb, 4, 0.25, 1)):
        tried = [p.threshold for p in policies.sweep_settings(kind, policies.Known(6, C))]
        assert tried == sorted(tried)
        assert tried[0] < low < tried[1]
        assert tried[-2] < high < tried[-1]


def test_what_cannot_be_swept_is_named():
    with pytest.raises(ValueError, match=r"Named's mode is no number.*give it a default"):
        policies.sweep_settings(Named, policies.Known(6, 3))
