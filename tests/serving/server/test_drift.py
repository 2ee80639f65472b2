"""Drift since calibration: bets that are fair, alarms as seldom as promised and soon, in a service.

Letters: S streams of rows.
"""

import json
import logging
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from answering import texts
from helpers import benchmark
from starlette.testclient import TestClient

import multiexit as mx
from multiexit_runner.drift import BINS, Drift, bets, bins_of, unpacked
from multiexit_runner.server.allowed import dial_of
from multiexit_runner.server.app import Service
from multiexit_runner.server.network import Left
from multiexit_runner.server.options import Options
from multiexit_runner.server.watch import Watch
from multiexit_runner.settings import parse_settings, without_bounds

simulated = benchmark("drift.py")
alarms, turned_alarms = simulated["alarms"], simulated["turned_alarms"]


@pytest.mark.parametrize("calibrating", [45, 500])
def test_alarms_without_drift_are_as_seldom_as_promised(calibrating):
    at_S = alarms(calibrating, streams=400, rows=1500, alpha=0.1)
    assert np.isfinite(at_S).mean() <= 0.1 + 3 * np.sqrt(0.09 / 400)
    assert np.isfinite(at_S).any(), "a test that never gives an alarm is no use"


def test_alarms_are_as_seldom_where_the_policy_jumps_between_settings():
    """Four settings, which share calibration rows: at α for each of them it would be 16 %."""
    at_S = turned_alarms(200, streams=400, rows=600, alpha=0.1)
    assert np.isfinite(at_S).mean() <= 0.1 + 3 * np.sqrt(0.09 / 400)
    assert np.isfinite(at_S).any()
    harder_S = turned_alarms(500, streams=40, rows=1000, harder=1.0)
    assert np.isfinite(harder_S).all()
    assert np.median(harder_S) <= 150


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
    (test,) = client.service.watch.tests
    before_ME = test.drift.counts_ME
    assert before_ME.sum() == 300
    for start in range(0, 300, 100):
        assert ask(client, texts(300)[start : start + 100])
    np.testing.assert_array_equal(test.drift.counts_ME, 2 * before_ME)  # the same rows again
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
    assert client.get("/info").json()["certificate"] is None
    counted = client.get("/metrics").text
    assert "multiexit_certificate_valid 0.0" in counted
    assert "multiexit_drift_alarm 1.0" in counted
    assert not ask(client, texts(5))
    answer = client.post("/predict", json={"inputs": "the cat", "threshold": 0.5}).json()
    assert answer["drift"]
    assert "expected_score" not in answer


@pytest.fixture
def turned(text_served):
    """What is served where the policy is turned, whose table is of `texts(300, 5)`."""
    return {kind: replace(served(), certificate=None) for kind, served in text_served[1].items()}


def sent(client, inputs, **wishes):
    response = client.post("/predict", json={"inputs": inputs, **wishes})
    assert response.status_code == 200, response.text
    assert response.headers["x-multiexit-policy"] == response.json()["policy"]
    return response.json()


EXPECTED = (
    "multiexit_expected_score",
    "multiexit_expected_layers",
    "multiexit_expected_loss_bound",
)


def gauges(client):
    samples = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines()]
    return {
        name: float(number)
        for name, number in samples
        if name in (*EXPECTED, "multiexit_drift_alarm", "multiexit_drift_evidence")
    }


@pytest.mark.parametrize("kind", ["model", "export"])
def test_an_alarm_voids_the_table_of_a_policy_that_is_turned(kind, turned, caplog):
    options = Options(budget_layers=2.5, min_score=0.1, drift_alpha=1e-6)
    service = Service(turned[kind], options)
    rows = texts(300, 5)
    with TestClient(service.app) as client:
        policies = set()
        for start in range(0, 300, 20):
            answer = sent(client, rows[start : start + 20])
            policies.add(answer["policy"])
            assert answer["expected_score"] >= 0.1
            assert answer["loss_bound"] is not None
            assert "drift" not in answer
        assert len(policies) > 1
        for wish in ({"max_exit": 3}, {"budget_ms": 1e6}, {"threshold": 0.5}):
            sent(client, "the cat", **wish)
        info = client.get("/info").json()
        assert info["drift"]["watched"]
        assert (info["drift"]["rows"], info["drift"]["alarm"]) == (300, None)
        assert {*info["settings"][0]} == {"policy", "score", "loss_bound", "mean_layers"}
        before = gauges(client)
        assert before["multiexit_drift_alarm"] == 0
        assert before["multiexit_drift_evidence"] == info["drift"]["evidence"] < 1e6
        assert all(before[name] > 0 for name in EXPECTED)

        with caplog.at_level(logging.WARNING, "multiexit.server"):
            answers = [sent(client, ["not a red fish"] * 20) for _ in range(20)]
        void = ["drift" in answer for answer in answers]
        assert (void[0], void[-1]) == (False, True)
        assert void == sorted(void), "once void, void for good"
        for answer in answers:
            assert (answer["expected_score"] is None) == ("drift" in answer)
            assert (answer["loss_bound"] is None) == ("drift" in answer)
        limited = sent(client, "the cat", max_exit=1)
        assert limited["drift"]
        assert "expected_score" not in limited
        streamed = client.post(
            "/predict", json={"inputs": texts(3)}, headers={"accept": "application/x-ndjson"}
        )
        last = json.loads(streamed.text.splitlines()[-1])
        assert last["drift"]
        assert last["expected_score"] is last["loss_bound"] is None
        (line,) = [record.message for record in caplog.records]
        said = client.get("/info").json()
        alarm = said["drift"]["alarm"]
        assert 300 < alarm["rows"] <= 700
        assert alarm["why"] in line
        assert "what min_score and max_loss bound" in line
        assert any(f"by {each.said} shares" in alarm["why"] for each in service.dial.settings)
        assert [each["policy"] for each in said["settings"]] == [
            each["policy"] for each in info["settings"]
        ]
        numbers = [number for each in said["settings"] for number in list(each.values())[1:]]
        assert {*numbers} == {None}
        after = gauges(client)
        assert after["multiexit_drift_alarm"] == 1
        assert after["multiexit_drift_evidence"] >= 1e6
        assert all(np.isnan(after[name]) for name in EXPECTED)


def test_each_setting_has_a_test_of_its_own(turned):
    """The alarm comes where one alone has made S/α of 1."""
    served = turned["export"]
    settings = dial_of(served, Options(target_ms=50)).settings
    watch = Watch(served, 0.01, settings, np.random.default_rng(0))
    counted = [unpacked(each.counts, 4, 300) for each in settings]
    again = np.random.default_rng(0)
    drifts, random = [Drift(each, again) for each in counted], np.random.default_rng(1)
    for _ in range(1000):
        place, exit = int(random.integers(len(settings))), int(random.integers(2))
        with watch.request(place) as lefts:
            lefts.append(Left(np.zeros(3, np.float32), exit, (), "policy", "", 0.0, 0.0))
        drifts[place].add(exit, bins_of(np.zeros((1, 3)), "classification")[0])
        most = max(drift.wealth for drift in drifts)
        assert watch.evidence == pytest.approx(most / len(settings))
        assert (watch.alarm is not None) == (most >= len(settings) / 0.01)
        if watch.alarm:
            break
    assert watch.alarm["rows"] == sum(drift.rows for drift in drifts) < 1000
    assert settings[place].said in watch.alarm["why"]


def test_a_table_of_before_says_that_drift_can_t_be_watched(turned, caplog):
    served = turned["model"]
    older = [
        {k: v for k, v in row.items() if k != "counts"} for row in served.calibration["settings"]
    ]
    table = {**served.calibration, "settings": older}
    again = mx.CalibrationTable.from_json(table).to_json()
    rounded = without_bounds({"policy": {}, "calibration": served.calibration})["calibration"]
    for each in (table, again, rounded):
        caplog.clear()
        service = Service(replace(served, calibration=each), Options(target_ms=60_000))
        (line,) = [record.message for record in caplog.records]
        with TestClient(service.app) as client:
            answers = [sent(client, ["not"] * 200) for _ in range(2)]
            drift = client.get("/info").json()["drift"]
        assert answers[1]["expected_score"] == older[0]["score"]
        assert not drift["watched"]
        assert drift["why_not"] == line
        assert "drift can't be watched: the calibration table doesn't say" in line
        assert "calibrate again" in line


@pytest.mark.parametrize(
    "wrong",
    [3, True, "", "0:300 ", "0:299", "0:0 1:300", "160:300", "999999999999:300", "0:-1 1:301",
     "1:1 0:299", "0:150 0:150", "0:150  1:150", "00:300", "0x1:300", "٣:300", "0:" + "9" * 9999,
     "0:300\n", ["0:300"], {"0": 300}],
)  # fmt: skip
def test_broken_counts_are_refused(wrong, exported_texts):
    """By all that reads a table: of a model, and of an export."""
    *_, folder = exported_texts
    settings = json.loads((folder / "export.json").read_text())
    place = settings["calibration"]["settings"][1]
    for counts, refused in ((place["counts"], False), ("0:300", False), (wrong, True)):
        place["counts"] = counts
        message = r"calibration\.settings\[1\]\.counts is .*; it must be null, or the calibration"
        for read in (
            lambda: parse_settings(json.dumps(settings).encode(), "here"),
            lambda: mx.CalibrationTable.from_json(settings["calibration"]),
        ):
            with pytest.raises(ValueError, match=message) if refused else nullcontext():
                read()


def test_rows_count_in_the_order_in_which_they_came(text_served):
    watch = Watch(text_served[1]["model"](), 0.01)

    def left(exit, why="policy"):
        return Left(np.zeros(3, np.float32), exit, (), why, "", 0.0, 0.0)

    with watch.request() as first:
        with watch.request() as second:
            second += [left(0), left(0, "broken")]
        assert watch.info()["rows"] == 0
        with pytest.raises(KeyError), watch.request():
            raise KeyError
        first.append(left(3))
    assert watch.info()["rows"] == 2
    assert [exit for exit, _ in watch.tests[0].late] == [3, 0]


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
