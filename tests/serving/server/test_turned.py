"""A service whose policy is turned: over HTTP, of a model and of its export."""

import shlex
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from answering import texts
from starlette.testclient import TestClient

import multiexit as mx
from multiexit.cli import next_steps
from multiexit.policies.certificate import Certificate
from multiexit.serving.stepping import of_model
from multiexit_runner.server.allowed import dial_of, place_of
from multiexit_runner.server.app import Service
from multiexit_runner.server.options import Options
from multiexit_runner.settings import without_bounds


@pytest.fixture
def turned(text_served):
    """What is served, without the certificate, which bounds another loss than the table."""
    return {kind: replace(served(), certificate=None) for kind, served in text_served[1].items()}


def test_a_threshold_is_that_of_the_policy_that_is_turned(text_served):
    """Not of the model's own, which isn't used."""
    classify, rows = text_served[0], texts(5)
    served = of_model(mx.Classifier(classify.model, classify.tokenizer, mx.Patience(1)))
    with TestClient(Service(served, Options(budget_layers=2)).app) as client:
        answer = client.post("/predict", json={"inputs": rows, "threshold": 0.7})
        assert answer.json()["policy"] == "max-prob=0.7"
    with TestClient(Service(served, Options()).app) as client:
        answer = client.post("/predict", json={"inputs": rows, "threshold": 0.7})
        assert (answer.status_code, "no threshold to turn" in answer.text) == (422, True)


@pytest.mark.parametrize("kind", ["model", "export"])
def test_requests_without_a_policy_follow_the_dial(turned, kind):
    served, rows = turned[kind], texts(20)
    slowest, *_, fastest = served.calibration["settings"]
    service = Service(served, Options(target_ms=60_000))
    with TestClient(service.app) as client:
        response = client.post("/predict", json={"inputs": rows})
        answer = response.json()
        assert response.headers["x-multiexit-policy"] == answer["policy"]
        assert answer["policy"] == f"max-prob={slowest['policy']['threshold']}"
        assert answer["expected_score"] == slowest["score"]
        assert answer["loss_bound"] == slowest["loss_bound"]
        cut = client.post("/predict", json={"inputs": rows, "max_exit": 1}).json()
        assert cut["policy"] == answer["policy"]
        assert "expected_score" not in cut
        info = client.get("/info").json()
        assert info["policy"] == answer["policy"]
        assert info["options"] == {"target_ms": 60_000}
        assert len(info["settings"]) == len(served.calibration["settings"])
        own = client.post("/predict", json={"inputs": rows, "threshold": 0.5}).json()
        assert own["policy"] == "max-prob=0.5"
        assert "expected_score" not in own
        assert f"multiexit_expected_score {slowest['score']}" in client.get("/metrics").text
        service.dial._rows_SK[-1, 0] = 10**9  # work for hours
        answer = client.post("/predict", json={"inputs": rows})
        assert answer.status_code == 503
        assert answer.headers["x-multiexit-shedding"] == "true"
        assert int(answer.headers["retry-after"]) > 1000
        assert "more than the 54000 ms that are allowed" in answer.json()["detail"]
        counted = client.get("/metrics").text
        assert "multiexit_shed_requests_total 1.0" in counted
        assert f"multiexit_expected_layers {fastest['mean_layers']}" in counted
        number = f'multiexit_policy_number{{name="threshold"}} {fastest["policy"]["threshold"]}'
        assert number in counted


def test_that_a_certificate_is_put_aside_is_said(text_served, caplog):
    served = text_served[1]["export"]()
    assert served.certificate is not None
    service = Service(served, Options(target_ms=60_000, max_loss=99))
    (said,) = [record.message for record in caplog.records if "put aside" in record.message]
    assert said.startswith(f"the certificate of {served.policy} is put aside")
    with TestClient(service.app) as client:
        answer = client.post("/predict", json={"inputs": texts(3)}).json()
        drift = client.get("/info").json()["drift"]
    assert not answer["certified"]
    assert answer["loss_bound"] is not None
    assert drift["watched"]


def test_a_target_turns_the_policy_while_rows_wait(turned):
    """The network stands still while requests come: each waits for those before it."""
    served = turned["export"]
    going, run = threading.Event(), served.network.run

    class Held:
        def __getattr__(self, name):
            return getattr(served.network, name)

        def run(self, exit, group):
            going.wait()
            time.sleep(0.02)
            return run(exit, group)

    service = Service(replace(served, network=Held()), Options(target_ms=2000))
    answers = []

    def send():
        answers.append(client.post("/predict", json={"inputs": texts(4)}))

    going.set()
    with TestClient(service.app) as client:
        send()
        going.clear()
        threads = []
        for _ in range(60):
            threads.append(threading.Thread(target=send))
            threads[-1].start()
        while len(answers) + service.scheduler.rows / 4 < 61:
            time.sleep(0.001)
        going.set()
        for thread in threads:
            thread.join()
        assert not service.dial._rows_SK.any()
    policies = [each.json()["policy"] for each in answers if each.status_code == 200]
    assert policies[0] == service.dial.settings[0].said
    assert len({*policies}) > 1
    assert {each.status_code for each in answers} == {200, 503}


@pytest.mark.parametrize("kind", ["model", "export"])
def test_what_is_slow_the_first_time_is_no_load(turned, kind):
    """Each segment is slow the first time in a thread, as kernels and pools of threads are."""
    served, met = turned[kind], set()

    class Cold:
        def __getattr__(self, name):
            return getattr(served.network, name)

        def run(self, exit, group):
            place = threading.get_ident(), exit
            if place not in met:
                met.add(place)
                time.sleep(0.3)
            return served.network.run(exit, group)

    service = Service(replace(served, network=Cold()), Options(target_ms=600))
    with TestClient(service.app) as client:
        for text in texts(6):
            answer = client.post("/predict", json={"inputs": text}).json()
            assert answer["policy"] == service.dial.settings[0].said
        assert 'multiexit_batch_rows_sum{exit="0"} 6.0' in client.get("/metrics").text


def test_a_network_that_fails_before_the_first_row_is_served(turned, caplog):
    served = turned["export"]
    service = Service(replace(served, examples=["a", ""]), Options(target_ms=60_000))
    with TestClient(service.app) as client:
        assert client.post("/predict", json={"inputs": texts(3)}).status_code == 200
    assert "what comes before the first row failed" in caplog.text


@pytest.mark.parametrize("kind", ["model", "export"])
def test_a_request_with_a_threshold_of_its_own_costs_what_the_next_slower_setting_does(
    turned, kind
):
    service = Service(turned[kind], Options(target_ms=60_000))
    settings, of = service.dial.settings, service.orders.of
    numbers = [float(each.said.partition("=")[2]) for each in settings]
    middle = len(settings) // 2
    between = (numbers[middle] + numbers[middle + 1]) / 2

    def place(policy=None, threshold=None, max_exit=None):
        return place_of(of(policy, threshold, max_exit, None), service.served, settings)

    assert place() is None
    assert place(threshold=between) == place(f"max-prob={between}") == middle
    assert place(threshold=numbers[middle]) == middle
    assert place(threshold=0.0) == len(settings) - 1
    assert place(threshold=1.1) == 0
    if kind == "model":
        assert place("patience=2") == 0
    capped = settings[place("max-prob=1.1", max_exit=1)]
    faster = [each for each in settings if each.mean_layers < capped.mean_layers]
    assert capped.mean_layers >= 2 > max(each.mean_layers for each in faster)


def test_a_full_queue_leaves_the_dial_as_it_was(turned):
    service = Service(turned["export"], Options(target_ms=60_000, max_rows=4))
    with TestClient(service.app) as client:
        service.scheduler.max_rows = 2  # as if two were on their way
        assert client.post("/predict", json={"inputs": ["a cat"] * 3}).status_code == 429
        assert not service.dial._rows_SK.any()


def test_layers_are_held_at_a_budget(turned):
    served = turned["model"]
    layers = [row["mean_layers"] for row in served.calibration["settings"]]
    budget = (layers[0] + layers[-1]) / 2
    with TestClient(Service(served, Options(budget_layers=budget)).app) as client:
        total, answers = 0, []
        for seed in range(10):
            answers += client.post("/predict", json={"inputs": texts(60, seed)}).json()["answers"]
        total = sum(answer["layers"] for answer in answers)
    assert total / len(answers) == pytest.approx(budget, abs=0.2)


def test_settings_stay_within_the_operators_bounds(turned):
    served = turned["export"]
    rows = served.calibration["settings"]
    score, loss = rows[len(rows) // 2]["score"], 100 * rows[len(rows) // 3]["loss_bound"]
    dial = dial_of(served, Options(target_ms=50, min_score=score, max_loss=loss))
    assert 1 < len(dial.settings) < len(rows)
    assert min(each.score for each in dial.settings) >= score
    assert max(100 * each.loss_bound for each in dial.settings) <= loss
    certificate = {"loss": "accuracy", "risk": loss / 100, "confidence": 0.9}
    certified = dial_of(replace(served, certificate=certificate), Options(target_ms=50))
    assert max(100 * each.loss_bound for each in certified.settings) <= loss
    other = replace(served, certificate={**certificate, "loss": "disagreement"})
    with pytest.raises(ValueError, match=r"certificate bounds disagreement .* say with max_loss"):
        dial_of(other, Options(target_ms=50))
    assert dial_of(other, Options(target_ms=50, max_loss=loss)).settings == certified.settings
    observed = dial_of(other, Options(target_ms=50, min_score=score))
    assert [each.score for each in observed.settings] == [
        row["score"] for row in rows if row["score"] >= score
    ]


@pytest.mark.parametrize("loss", [None, "accuracy", "disagreement"])
@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_the_line_that_an_export_prints_starts_a_service(loss, confidence, turned):
    served = turned["export"]
    certificate = Certificate(loss, 0.9, confidence, 100, 0.1) if loss else None
    said = next_steps.after_export(Path("there"), served.calibration, certificate)
    command, folder, *words = shlex.split(said.split("`")[1])[1:]
    assert (command, folder) == ("serve", "there")
    given = {
        name.removeprefix("--").replace("-", "_"): float(value)
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    kept = certificate and certificate.to_json()
    dial = dial_of(replace(served, certificate=kept), Options(**given))
    assert len(dial.settings) > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"target_ms": 50, "min_score": 1.5},
            r"has min_score=1.5: the best .* \(accuracy, a share\) is 0.37",
        ),
        ({"target_ms": 50, "min_score": 97}, r"is 0.37\w*: did you mean 0.97\?"),
        ({"target_ms": 50, "max_loss": 0.004}, r"max_loss=0.004 points \(as a share, .* 0.4\?\)"),
        ({"budget_layers": 9}, "budget_layers must be from 1.* to 4.00"),
        ({"budget_layers": 2, "target_ms": 50}, "budget_ms, got target_ms and budget_layers"),
        ({"policy": "max-prob=0.9", "target_ms": 50}, "a policy or target_ms, not both"),
        ({"min_score": 0.5}, "min_score bounds how far .* give one of target_ms, .* budget_ms"),
        ({"max_loss": 1.0}, "max_loss bounds how far"),
        ({"max_loss": 101.0, "target_ms": 50}, "max_loss is in points, at most 100"),
        ({"min_score": float("nan")}, "min_score must be a number"),
        ({"target_ms": float("nan")}, "target_ms must be a finite number, got nan"),
    ],
)
def test_what_no_setting_meets_is_refused(turned, options, words):
    with pytest.raises(ValueError, match=words):
        dial_of(turned["export"], Options(**options))


def test_where_nothing_is_bounded_another_bound_is_named(turned):
    rounded = without_bounds({"policy": {}, "calibration": turned["export"].calibration})
    served = replace(turned["export"], calibration=rounded["calibration"])
    with pytest.raises(ValueError, match=r"max_loss=1: .* int8 .* bound min_score in its place"):
        dial_of(served, Options(target_ms=50, max_loss=1))
    assert dial_of(served, Options(target_ms=50, min_score=0.3)).settings[0].loss_bound is None


def test_that_the_table_is_of_another_policy_is_said(turned, caplog):
    served = turned["model"]
    dial_of(served, Options(budget_layers=2))
    assert not caplog.text
    dial_of(replace(served, policy="patience=2"), Options(budget_layers=2))
    assert "budget_layers turns max-prob, the policy of the calibration table" in caplog.text
    assert "the model's own, patience=2, isn't used" in caplog.text


def test_without_a_table_it_says_how_to_make_one(turned):
    for options in (Options(target_ms=50), Options(budget_layers=2)):
        with pytest.raises(ValueError, match="multiexit calibrate FOLDER --table"):
            dial_of(replace(turned["model"], calibration=None), options)
