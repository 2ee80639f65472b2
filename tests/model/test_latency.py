"""What a latency table says of other sizes, of a shrinking batch and of fewer exits."""

import pytest
from helpers import latency_table

import multiexit as mx


def test_between_sizes_it_is_interpolated_and_beyond_in_proportion(mlp):
    latency = latency_table(mlp[0], (2.0, 9.0), 0.0, sizes=(1, 8))
    assert [latency.at((2.0, 9.0), rows) for rows in (1, 2, 8, 16)] == [2.0, 3.0, 9.0, 18.0]


def test_the_expected_time_of_a_shrinking_batch(mlp):
    """At batch size 1 it is the mean over rows of the time until their exit."""
    latency = mx.profile(mlp[0], batch_sizes=(1, 4), repeats=1)
    shares = [0.5, 0.0, 0.25, 0.0, 0.25]
    alone = sum(s * ms for s, ms in zip(shares, latency.until_exit_ms(1), strict=True))
    assert latency.expected_ms(shares, 1) == pytest.approx(alone)
    nobody = [0.0, 0.0, 0.0, 0.0, 1.0]
    assert latency.expected_ms(nobody, 4) == pytest.approx(latency.until_exit_ms(4)[-1])


def test_fewer_exits_cost_the_same_stages(mlp):
    latency = mx.profile(mlp[0], batch_sizes=(1,), repeats=1)
    some = latency.with_exits([1, 2, 4])
    spent = [sum(x[0] for x in table.stages_ms) for table in (latency, some)]
    assert spent[0] == pytest.approx(spent[1])
    assert some.check_ms == tuple(latency.check_ms[m] for m in (1, 2, 4))
    assert some.stages_ms[0][0] == pytest.approx(sum(x[0] for x in latency.stages_ms[:2]))
