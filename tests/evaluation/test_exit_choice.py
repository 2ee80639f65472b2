"""Exits that pay, against all choices."""

from dataclasses import replace

import pytest
import torch
from helpers import latency_table
from torch.utils.data import TensorDataset

import multiexit as mx


def test_exits_that_pay_are_the_best_choice(mlp):
    """Against all 2^4 choices: the greedy one is as fast, here where checks cost differently."""
    model, inputs = mlp
    data = TensorDataset(inputs["x"], torch.arange(24) % 3)
    outputs, policy = mx.collect(model, data), mx.MaxProb(0.6)
    plain = latency_table(model, (1.0, 24.0), 0.0)
    for check in (
        (0.0,) * 5,
        (9.0, 9.0, 9.0, 9.0, 0.0),
        (0.2, 0.9, 0.1, 0.6, 0.3),
        (0.9, 0.1, 0.1, 0.9, 0.1),
    ):
        latency = replace(plain, check_ms=tuple((ms, 24 * ms) for ms in check))

        def ms(kept, latency=latency):
            exit_B = mx.simulate(policy, outputs.logits_MBC[kept])
            until = latency.with_exits(kept).until_exit_ms(1)
            return sum(until[exit] for exit in exit_B.tolist()) / 24

        every = [[m for m in range(4) if mask >> m & 1] + [4] for mask in range(16)]
        kept = mx.exits_that_pay(outputs, policy, latency)
        assert ms(kept) == pytest.approx(min(map(ms, every)))
        assert kept[-1] == 4
        assert check[0] < 9 or kept == [4]
