"""What benchmarks/serving_load.py makes of requests' fates."""

from helpers import benchmark

program = benchmark("serving_load.py")


def row(rate, answered, refused, seconds=0.01):
    """Of a part of one second: its first requests are answered, the others refused."""
    part = program["Part"](rate, begin=3.0, seconds=1.0)
    part.statuses.update({200: answered, 503: refused})
    answer = {"answers": [{"layers": 2}], "expected_score": 0.75}
    part.answered += [(3 + n / rate, seconds, answer) for n in range(answered)]
    return {"way": "turned", "kind": "steady"} | part.row(target=0.05)


def test_what_is_refused_is_a_miss():
    found = row(100, answered=80, refused=20)
    assert (found["in time (%)"], found["p95 (ms)"], found["refused"]) == (80.0, 10.0, 20)
    assert (found["a second"], found["expected score"], found["mean layers"]) == (80.0, 0.75, 2.0)
    assert row(100, answered=80, refused=0, seconds=0.06)["in time (%)"] == 0.0


def test_the_load_at_the_target_lies_between_measured_rates():
    plain = [
        {**row(rate, rate - late, late), "way": "plain"} for rate, late in ((50, 0), (100, 10))
    ]
    turned = [row(100, 100, 0), row(200, 180, 20), row(300, 300, 0)]
    assert [(each["kind"], each["rate"]) for each in program["at_the_target"](plain + turned)] == [
        ("at the target", 75.0),
        ("at the target", 150.0),
    ]
    (found,) = program["at_the_target"](plain[:1])
    assert (found["kind"], found["rate"]) == ("below the target", 50.0)
