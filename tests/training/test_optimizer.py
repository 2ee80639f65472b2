"""The learning rate of every step, and what decays."""

import math

import pytest
from helpers import Table, chain, config, convnet, fit, images, tensors
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from multiexit.training.optimizer import learning_rate


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"schedule": "constant"}, [2.0] * 10),
        ({"schedule": "linear"}, [2 - 0.2 * i for i in range(10)]),
        (
            {"schedule": "linear", "warmup": 0.2},
            [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25],
        ),
        ({"schedule": "cosine"}, [1 + math.cos(math.pi * i / 10) for i in range(10)]),
        ({"schedule": "step"}, [2.0] * 5 + [0.2] * 3 + [0.02] * 2),
        ({"schedule": "step", "milestones": (0.3,)}, [2.0] * 3 + [0.2] * 7),
        ({"schedule": "constant", "warmup": 0.5}, [0.4, 0.8, 1.2, 1.6, 2.0] + [2.0] * 5),
    ],
)
def test_the_learning_rate_at_every_step(changes, wanted):
    settings = config(lr=2.0, **changes)
    assert [learning_rate(settings, step, 10) for step in range(10)] == pytest.approx(wanted)
    settings = config(lr=2e-9, batch_size=8, **changes)
    history = fit(chain(), "joint", settings, Table())
    assert [row["lr"] for row in history.steps] == pytest.approx([1e-9 * rate for rate in wanted])


@given(
    schedule=st.sampled_from(["linear", "cosine", "step", "constant"]),
    warmup=st.floats(0, 0.99),
    steps=st.integers(1, 300),
)
@hypothesis_settings(deadline=None, max_examples=80)
def test_rates_rise_once_and_then_never(schedule, warmup, steps):
    settings = config(lr=3.0, schedule=schedule, warmup=warmup)
    rates = [learning_rate(settings, step, steps) for step in range(steps)]
    assert all(0 < rate <= 3.0 for rate in rates)
    warm = int(warmup * steps)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


def test_decay_spares_biases_and_norms():
    model = convnet()
    before = tensors(model)
    # A gradient of next to nothing moves Adam by lr at most; decay by lr·decay·p.
    settings = config(optimizer="adamw", lr=1e-4, weight_decay=5000.0, max_steps=1)
    fit(model, "joint", settings, images())
    for name, now in model.named_parameters():
        decayed = now.detach() - before[name] * (0.5 if now.ndim > 1 else 1.0)
        assert decayed.abs().max() <= 1.01e-4, name
