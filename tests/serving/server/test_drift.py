"""Drift since calibration: bets that are fair, alarms as seldom as promised and soon, in a service.

Letters: S streams of rows.
"""

import logging

import numpy as np
import pytest
import torch
from answering import texts
from helpers import benchmark
from starlette.testclient import TestClient

import multiexit as mx
from multiexit_runner.drift import BINS, Drift, bets, bins_of
from multiexit_runner.server.app import Service
from multiexit_runner.server.network import Left
from multiexit_runner.server.options import Options
from multiexit_runner.server.watch import Watch

alarms = benchmark("drift.py")["alarms"]  # of simulated rows


@pytest.mark.parametrize("calibrating", [45, 500])
def test_alarms_without_drift_are_as_seldom_as_promised(calibrating):
    at_S = alarms(calibrating, streams=400, rows=1500, alpha=0.1)
    assert np.isfinite(at_S).mean() <= 0.1 + 3 * np.sqrt(0.09 / 400)
    assert np.isfinite(at_S).any(), "a test that never gives an alarm is no use"


@pytest.mark.parametrize(
    ("harder", "before", "soon"), [(1.0, 0, 40), (0.5, 0, 200), (-0.5, 0, 200), (0.5, 1000, 300)]
)
def test_drift_gives_an_alarm_soon(harder, before, soon):
    at_S = alarms(500, streams=40, rows=1000, harder=harder, before=before)
    assert np.isfinite(at_S).all()
    assert 0 < np.median(at_S) <= soon


def test_bets_are_fair():
    paid = bets((np.arange(1000) + 0.5) / 1000)
    np.testing.assert_allclose(paid.mean(0), 1)
    assert paid.min() >= 0


def test_a_step_by_plain_counting():
    random, again = np.random.default_rng(3), np.random.default_rng(3)
    counts = random.integers(0, 3, (2, BINS))
    again.integers(0, 3, (2, BINS))
    drift = Drift(counts, random)
    rows = [(e, b) for e in range(2) for b in range(BINS) for _ in range(counts[e, b])]
    reserve, on_bets = 1.0, np.zeros(14)
    for number, row in enumerate([(1, 3), (0, 20), (1, 3), (0, 39), (1, 0)], 1):
        drift.add(*row)
        rows.append(row)
        later = sum(e > row[0] or (e == row[0] and b < row[1]) for e, b in rows)
        u = (later + again.random() * rows.count(row)) / len(rows)
        left = 1 / (1 + np.log(1 + number))
        tilts = [1 + epsilon * (2 * u - 1) for epsilon in (-1, -0.3, 0.3, 1)]
        tenths = [1.9 if d <= 10 * u < d + 1 else 0.9 for d in range(10)]
        on_bets = np.array(tilts + tenths) * (on_bets + (reserve - left) / 14)
        reserve = left
        assert drift.wealth == pytest.approx(reserve + on_bets.sum())
    assert drift.counts_ME.sum() == len(rows)


@pytest.mark.parametrize("problem", ["classification", "multi-label"])
def test_bins_hold_the_confidence_that_policies_go_by(problem):
    logits_BC = 4 * torch.randn(300, 5, dtype=torch.float64)
    sure_B = mx.problems.confidence(logits_BC, problem).numpy()
    bin_B = bins_of(logits_BC.numpy(), problem)
    assert (1 - np.exp(-bin_B / 4) <= sure_B + 1e-12).all()
    assert ((sure_B < 1 - np.exp(-(bin_B + 1) / 4)) | (bin_B == BINS - 1)).all()
    assert bins_of(logits_BC.numpy(), "embedding").tolist() == [0] * 300


@pytest.fixture(params=["model", "export"])
def client(request, text_served, onnx_operators):
    service = Service(text_served[1][request.param](), Options(drift_alpha=1e-6))
    with TestClient(service.app) as client:
        client.service = service
        yield client


def ask(client, inputs, **wishes):
    response = client.post("/predict", json={"inputs": inputs, **wishes})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert response.headers["x-multiexit-certified"] == str(answer["certified"]).lower()
    return answer["certified"]


def test_an_alarm_voids_the_certificate(client, caplog):
    watch = client.service.watch
    before_ME = watch.drift.counts_ME
    assert before_ME.sum() == 300
    for start in range(0, 300, 100):
        assert ask(client, texts(300)[start : start + 100])
    np.testing.assert_array_equal(watch.drift.counts_ME, 2 * before_ME)  # the same rows again
    for wish in ({"max_exit": 3}, {"budget_ms": 1e6}, {"threshold": 0.5}):
        assert not ask(client, "the cat", **wish)
    info = client.get("/info").json()
    assert info["drift"]["watched"]
    assert (info["drift"]["rows"], info["drift"]["alarm"]) == (300, None)
    assert {*info["certificate"]} == {"loss", "risk", "confidence", "rows", "observed"}
    assert "multiexit_certificate_valid 1.0" in client.get("/metrics").text

    with caplog.at_level(logging.WARNING, "multiexit.server"):
        answers = [ask(client, ["not a red fish"] * 20) for _ in range(10)]
    assert answers[0]
    assert not answers[-1]
    assert answers == sorted(answers, reverse=True), "once void, void for good"
    (line,) = [record.message for record in caplog.records]
    alarm = client.get("/info").json()["drift"]["alarm"]
    assert 300 < alarm["rows"] <= 500
    assert alarm["why"] in line
    assert "shares by exit were" in alarm["why"]
    assert "multiexit_certificate_valid 0.0" in client.get("/metrics").text
    assert not ask(client, texts(5))


def test_rows_count_in_the_order_in_which_they_came(text_served):
    watch = Watch(text_served[1]["model"](), 0.01)

    def left(exit, why="policy"):
        return Left(np.zeros(3, np.float32), exit, (), why, "", 0.0, 0.0)

    with watch.request() as first:
        with watch.request() as second:
            second += [left(0), left(0, "broken")]
        assert watch.drift.rows == 0
        with pytest.raises(KeyError), watch.request():
            raise KeyError
        first.append(left(3))
    assert watch.drift.rows == 2
    assert list(watch._exits) == [3, 0]


@pytest.mark.parametrize(
    ("change", "alpha", "why"),
    [
        (lambda c: None, 0.01, "no certificate"),
        (lambda c: c, 0.0, "drift_alpha is 0"),
        (lambda c: {k: v for k, v in c.items() if k != "counts"}, 0.01, "calibrate again"),
        (lambda c: {**c, "counts": c["counts"][1:]}, 0.01, "counts aren't 4 × 40"),
        (lambda c: {**c, "counts": [[-1] * 40] * 4}, 0.01, "counts aren't 4 × 40"),
    ],
)
def test_what_can_t_be_watched_says_so(change, alpha, why, text_served):
    of = text_served[1]["model"]()
    object.__setattr__(of, "certificate", change(of.certificate))
    service = Service(of, Options(drift_alpha=alpha))
    with TestClient(service.app) as client:
        info = client.get("/info").json()
        certified = [ask(client, ["not"] * 200) for _ in range(2)]
    assert certified == [of.certificate is not None] * 2
    assert not info["drift"]["watched"]
    assert why in info["drift"]["why_not"]


def test_older_certificates_still_load():
    made = mx.Certificate("accuracy", 0.1, 0.9, 7, 0.05)
    assert mx.Certificate.from_json(made.to_json()) == made
    assert "counts" not in made.to_json()
    for counts in (None, [[1] * BINS, [1] * 3], [[-1] * BINS], 4):
        with pytest.raises(ValueError, match="counts"):
            mx.Certificate.from_json(made.to_json() | {"counts": counts})
