"""What is asked over HTTP and what comes back, of a model and of its export."""

import asyncio
import base64
import gzip
import html
import io
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import prometheus_client
import pytest
import uvicorn
from answering import pictures, text_model, texts, tokenizer_in
from PIL import Image
from starlette.testclient import TestClient

import multiexit as mx
from multiexit.serving import service
from multiexit.serving.stepping import of_model
from multiexit_runner.server.app import Service
from multiexit_runner.server.around import Named
from multiexit_runner.server.listening import sockets_at
from multiexit_runner.server.options import Options, merged
from multiexit_runner.server.orders import Orders
from multiexit_runner.server.saying import RESPONSES
from multiexit_runner.server.served import of_export


@pytest.fixture(params=["model", "export"])
def client(request, text_served):
    service = Service(text_served[1][request.param](), Options(max_request_rows=20))
    with TestClient(service.app, raise_server_exceptions=False) as client:
        client.classify, client.service, client.kind = text_served[0], service, request.param
        yield client


def ask(client, inputs, status=200, **wishes):
    response = client.post("/predict", json={"inputs": inputs, **wishes})
    assert response.status_code == status, response.text
    return response.json()


def same(answers, wanted):
    for answer, other in zip(answers, wanted, strict=True):
        assert answer["label"] == other["label"]
        assert answer["exit"] == other["exit"]
        assert answer["scores"] == pytest.approx(other["scores"], abs=1e-4)
        assert answer["stages"] == list(range(answer["exit"] + 1))


def test_answers_are_those_of_the_classifier(client):
    rows = texts(20)
    same(ask(client, rows)["answers"], client.classify(rows))
    same(ask(client, rows[0])["answers"], [client.classify(rows[0])])
    same(ask(client, [{"text": rows[0]}])["answers"], [client.classify(rows[0])])
    assert len({answer["exit"] for answer in ask(client, rows)["answers"]}) > 2
    for answer in ask(client, rows, top_k=1)["answers"]:
        assert len(answer["scores"]) == 1


def test_requests_have_policies_of_their_own_in_shared_batches(client, monkeypatch):
    """The network stands still until all requests wait."""
    rows, scheduler = texts(16, seed=3), client.service.scheduler
    network, going, batches = scheduler.network, threading.Event(), []

    def first(items, policies):
        batches.append({repr(policy) for policy in policies})
        group = type(network).first(network, items, policies)
        going.wait(60)
        return group

    monkeypatch.setattr(network, "first", first)
    wishes = [{}, {"threshold": 0.5}, {"threshold": 0.9}, {"policy": "max-prob=0.7"}]
    wishes += [{"max_exit": 1}, {"max_exit": 0}]
    if client.kind == "model":
        wishes += [{"policy": "patience=1"}, {"policy": "entropy=0.8"}]
    answers = {}

    def send(number):
        answers[number] = ask(client, rows, **wishes[number % len(wishes)])

    threads = [threading.Thread(target=send, args=[n]) for n in range(3 * len(wishes))]
    for thread in threads:
        thread.start()
    while scheduler.rows < len(rows) * len(threads):
        time.sleep(0.001)
    going.set()
    for thread in threads:
        thread.join()
    for number, answer in answers.items():
        wish = dict(wishes[number % len(wishes)])
        if "max_exit" in wish:
            full = client.classify(rows)
            assert [a["exit"] for a in answer["answers"]] == [
                min(a["exit"], wish["max_exit"]) for a in full
            ]
            assert {a["why"] for a in answer["answers"]} <= {"policy", "max_exit"}
            continue
        policy = wish.get("policy")
        policy = f"max-prob={wish['threshold']}" if "threshold" in wish else policy
        same(answer["answers"], client.classify(rows, policy=policy))
    assert len(batches) < len(threads)
    assert max(map(len, batches)) > 2


@pytest.mark.parametrize("kind", ["model", "export"])
def test_a_folder_that_changes_under_a_service_changes_nothing(kind, exported_texts, tmp_path):
    model, tokenizer, _, exported = exported_texts
    shutil.copytree(exported, tmp_path / "export")
    model.save_pretrained(tmp_path / "model", tokenizer)
    with TestClient(service(tmp_path / kind).app) as client:
        before = ask(client, texts(20))["answers"]
        for file in (tmp_path / kind).iterdir():
            os.truncate(file, 0)
        same(ask(client, texts(20))["answers"], before)
        shutil.rmtree(tmp_path / kind)
        same(ask(client, texts(20))["answers"], before)


def test_a_budget_is_kept_and_said(client):
    answer = ask(client, texts(8), budget_ms=0.001)
    assert {a["exit"] for a in answer["answers"]} == {0}
    assert {a["why"] for a in answer["answers"]} <= {"budget", "policy"}
    assert not answer["certified"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "required"),
        (b"{", 400, "can't be read as JSON: Expecting"),
        (b'{"inputs": "\xff"}', 400, "can't be read as JSON: 'utf-8' codec"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", 400, "can't be read as JSON: Exceeds the limit"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b"{%s}" % b",".join(b'"%d": 1' % i for i in range(500_000)), 422, "got 500000"),
        (b'{"inputs": "a", "threshold": NaN}', 422, "threshold"),
        (b'{"inputs": "a", "threshold": 1e999}', 422, "threshold"),
        (b'{"inputs": "a", "polcy": "x"}', 422, "'polcy': did you mean 'policy'? A request may"),
        (b'{"Inputs": "a"}', 422, "no key 'Inputs': did you mean 'inputs'?"),
        (b'{"inputs": "a", "threshold": 0.5, "threshold": 0.9}', 422, "'threshold' is there twice"),
        (b'{"inputs": [{"text": "a", "text": "b"}]}', 422, "'text' is there twice"),
        (b'{"inputs": []}', 422, "1 to 20 inputs, got 0"),
        (b'{"inputs": null}', 422, r"inputs[0] is None"),
        (b'{"inputs": [["a"]]}', 422, "inputs[0]"),
        (b'{"inputs": "  "}', 422, "an empty text"),
        (b'{"inputs": "\\ud800"}', 422, "half a character"),
        (b'{"inputs": "a", "policy": "margin=0.5"}', 422, "requests may name max-prob"),
        (b'{"inputs": "a", "policy": "max-prop=0.5"}', 422, "did you mean 'max-prob'? Requests"),
        (b'{"inputs": "a", "policy": "max-prob"}', 422, "max-prob"),
        (b'{"inputs": "a", "policy": "max-prob=0.5", "threshold": 0.5}', 422, "not both"),
        (b'{"inputs": "a", "policy": "max-prob=0_9"}', 422, "max-prob=0_9"),
        (b'{"inputs": "a", "policy": "max-prob=,0.8"}', 422, "max-prob=THRESHOLD"),
        (b'{"inputs": "a", "policy": "max-prob=30"}', 422, "threshold is 30.0; it must be from"),
        (b'{"inputs": "a", "threshold": 30}', 422, "threshold is 30.0; it must be from -0.1 to 1"),
        (b'{"inputs": "a", "threshold": -1}', 422, "it must be from -0.1 to 1.1"),
        (b'{"inputs": "a", "max_exit": 9}', 422, "from 0 to 3, got 9"),
        (b'{"inputs": "a", "max_exit": true}', 422, "max_exit"),
        (b'{"inputs": "a", "max_exit": -1}', 422, "max_exit"),
        (b'{"inputs": "a", "top_k": 4}', 422, "top_k"),
        (b'{"inputs": "a", "budget_ms": 0}', 422, "budget_ms"),
        (json.dumps({"inputs": ["a"] * 21}).encode(), 422, "1 to 20 inputs, got 21"),
        (json.dumps({"inputs": "a" * 20_001}).encode(), 422, "20001 characters"),
        (json.dumps({"inputs": "a" * 9_000_000}).encode(), 413, "at most 8 MB"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(client, body, status, words):
    response = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert words in response.json()["detail"]
    ask(client, "the cat")  # it lives


def test_a_wish_in_the_address_and_a_body_in_gzip_are_not_lost(client):
    asked = {"content": b'{"inputs": "a"}', "headers": {"content-type": "application/json"}}
    for wish in ("threshold=0.9", "Threshold=0.9&max-exit=0", "thresh=0.5", "trace", "%ff="):
        response = client.post(f"/predict?{wish}", **asked)
        assert response.status_code == 422
        assert "is in the address, of which nothing is read: say it in" in response.json()["detail"]
    assert client.post("/predict?", **asked).status_code == 200
    for codings in (["gzip"], ["identity", "gzip"], ["Identity, gzip"]):
        packed = [("content-encoding", coding) for coding in codings] + [*asked["headers"].items()]
        response = client.post("/predict", content=gzip.compress(asked["content"]), headers=packed)
        assert response.status_code == 415
        assert response.json()["detail"] == "a body in gzip isn't read: send it as it is"
    for coding in ("", "identity", ", IDENTITY"):
        plain = {"content-encoding": coding, **asked["headers"]}
        assert client.post("/predict", content=asked["content"], headers=plain).status_code == 200


@pytest.mark.parametrize("path", ["/predict/", "/health/", "/", "/Predict"])
def test_a_path_that_there_is_not_is_404_in_a_sentence(client, path):
    for method in ("GET", "POST"):
        response = client.request(method, path, follow_redirects=False)
        assert response.status_code == 404
        said = response.json()["detail"]
        assert said.startswith(f"no path '{path}'")
        assert "/predict, /health, /ready, /info, /metrics, /docs" in said


def test_another_method_is_405_in_a_sentence(client):
    response = client.get("/predict")
    assert response.status_code == 405
    assert response.json() == {"detail": "/predict takes POST, got GET"}
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"k" * 500_000: 1}},
        {"inputs": "a", "k" * 500_000: 1},
        {"inputs": "a", "policy": "max-prob=" + "," * 500_000 + "a"},
        {"inputs": "a", "policy": "max-prob=" + "1," * 500_000},
        {"inputs": "a", "policy": "max-prob=" + "a" * 500_000},
        {"inputs": "a", "policy": "k" * 500_000},
        {"inputs": "a", "top_k": "k" * 500_000},
    ],
)
def test_a_refusal_repeats_no_more_than_a_line(client, body):
    assert len(ask(client, **body, status=422)["detail"]) <= 500


def test_a_text_longer_than_the_network_takes_is_refused(tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    model = text_model(tokenizer)
    model.backbone.limits = lambda: ({}, 8)
    with TestClient(Service(of_model(mx.Classifier(model, tokenizer)), Options()).app) as client:
        ask(client, "cat " * 6)
        detail = ask(client, ["a", "cat " * 7], 422)["detail"]
        assert detail == "inputs[1]: a text of 9 tokens; this network takes at most 8"


def test_a_row_on_which_the_network_fails_is_500_and_the_others_are_answered(text_served):
    service = Service(text_served[1]["model"](), Options())
    network, first = service.served.network, service.served.network.first

    def fragile(items, policies):
        if any(len(item["input_ids"]) == 3 for item in items):
            raise RuntimeError("secret {0}")
        return first(items, policies)

    network.first = fragile
    with TestClient(service.app) as client:
        answers = {}
        inputs = {"fine": ["the cat"] * 5, "bad": ["the cat", "cat"]}

        def send(name):
            answers[name] = ask(client, inputs[name], 500 if name == "bad" else 200)

        threads = [threading.Thread(target=send, args=[name]) for name in inputs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers["fine"]["answers"]) == 5
        assert answers["bad"]["detail"] == "exit 0 fails on inputs[1]"
        assert "multiexit_queue_rows 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded"])
def test_what_is_no_json_by_its_type_is_refused(client, given):
    response = client.post("/predict", content=b'{"inputs": "a"}', headers={"content-type": given})
    assert response.status_code == 415
    said = f"the content type must be application/json, or …+json, got {given}"
    assert response.json()["detail"] == said
    for types in ([given, "application/json"], ["application/json", given]):
        headers = [("content-type", kind) for kind in types]
        response = client.post("/predict", content=b'{"inputs": "a"}', headers=headers)
        assert response.status_code == 415
        assert response.json()["detail"].endswith(f"got {', '.join(types)}")


def test_json_of_any_name_is_taken(client):
    for given in ("application/json; charset=utf-8", "application/vnd.api+json"):  # RFC 6839
        headers = {"content-type": given}
        response = client.post("/predict", content=b'{"inputs": "a"}', headers=headers)
        assert response.status_code == 200, response.text


def test_a_body_is_measured_though_its_length_is_not_said(client):
    parts = (b" " * 1_000_000 for _ in range(20))
    response = client.post("/predict", content=parts, headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_a_body_that_does_not_come_is_given_up(text_served):
    """Its last byte, or any after the first."""
    service = Service(text_served[1]["export"](), Options(read_seconds=0.05))
    sent = []

    async def send(message):
        sent.append(message)

    async def ask_in_part(parts):
        async def receive():
            if not parts:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": parts.pop(), "more_body": True}

        headers = [(b"content-type", b"application/json"), (b"content-length", b"50")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        await service.app(scope, receive, send)

    for parts in ([], [b'{"inputs": ']):
        sent.clear()
        asyncio.run(ask_in_part(parts))
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]
        assert b"must come within 0.05 s" in sent[1]["body"]
    with TestClient(service.app) as client:
        assert 'multiexit_requests_total{status="408"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson"])
def test_layers_of_rows_whose_client_has_gone_are_run_but_not_saved(text_served, accept):
    service = Service(text_served[1]["export"](), Options())
    service.ready = True  # the scheduler is stepped by hand
    body = json.dumps({"inputs": ["the cat saw a dog"] * 3, "threshold": 1}).encode()
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json"), (b"accept", accept.encode())]

    async def run(steps):
        gone, asked = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if not asked:
                await gone.wait()
            return asked.pop() if asked else {"type": "http.disconnect"}

        async def send(message):
            pass

        running = asyncio.create_task(service.app(scope, receive, send))
        while not service.scheduler.rows:
            await asyncio.sleep(0)
        for _ in range(steps):
            service.scheduler.step()
        gone.set()
        await running
        while service.scheduler.rows:
            service.scheduler.step()
        await asyncio.sleep(0)  # until that is known

    asyncio.run(run(2))
    said = prometheus_client.generate_latest(service.metrics.registry).decode()
    assert 'multiexit_rows_total{exit="1",why="abandoned"} 3.0' in said
    assert 'multiexit_requests_total{status="499"} 1.0' in said
    assert f"multiexit_layers_run_total {3.0 * 2}" in said
    assert "multiexit_layers_saved_total 0.0" in said


def test_the_page_of_documentation_needs_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text
    assert "<script" not in page.text
    described = client.get("/openapi.json").json()
    for path in described["paths"]:
        assert f"{path}</code>" in page.text
    for name, field in described["components"]["schemas"]["Ask"]["properties"].items():
        assert f"<code>{name}</code>" in page.text
        assert html.escape(field["description"]) in page.text
    assert client.get("/redoc").status_code == 404
    responses = described["paths"]["/predict"]["post"]["responses"]
    for status, body in ((200, {"inputs": ["a", "b"]}), (422, {"inputs": []})):
        assert str(status) in responses
        said, model = client.post("/predict", json=body).json(), RESPONSES[status]["model"]
        model.model_validate(said)
        assert said.keys() <= model.model_fields.keys()
    assert "HTTPValidationError" not in described["components"]["schemas"]
    assert "<code>milliseconds</code>" in page.text


def test_a_full_queue_says_when_to_come_again(text_served):
    service = Service(text_served[1]["export"](), Options(max_rows=4))
    with TestClient(service.app) as client:
        for _ in range(2):  # for ever
            response = client.post("/predict", json={"inputs": ["a cat"] * 5})
            assert response.status_code == 413
            assert "retry-after" not in response.headers
            assert response.json()["detail"] == "5 inputs; this service has room for 4"
        ask(client, ["a cat"] * 4)
        service.scheduler.max_rows = 3  # as if one were on its way
        response = client.post("/predict", json={"inputs": ["a cat"] * 4})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert "4 rows for a queue with 3 places" in response.json()["detail"]


def test_numbers_stay_within_the_operators_limits(text_served):
    service = Service(text_served[1]["model"](), Options(limits="threshold=0.55..0.9"))
    with TestClient(service.app) as client:
        ask(client, "a cat", threshold=0.9)
        for wish in ({"threshold": 0.5}, {"policy": "max-prob=0.95"}):
            assert "from 0.55 to 0.9 here" in ask(client, "a cat", 422, **wish)["detail"]
        detail = ask(client, "a cat", 422, policy="margin=0.6")["detail"]
        assert detail == "no policy 'margin'; requests may name max-prob, patience, entropy"


@pytest.mark.parametrize("kind", ["model", "export"])
def test_last_exits_and_budgets_stay_within_the_operators_limits(kind, text_served):
    rows, options = texts(20), Options(limits="max_exit=1..2,budget_ms=5..50000")
    with TestClient(Service(text_served[1][kind](), options).app) as client:
        for wish, said in [
            ({"max_exit": 0}, "max_exit must be from 1 to 2 here, got 0"),
            ({"max_exit": 3, "budget_ms": 5}, "max_exit must be from 1 to 2 here, got 3"),
            ({"max_exit": 2, "budget_ms": 4.9}, "budget_ms must be from 5 to 50000 here, got 4.9"),
        ]:
            assert ask(client, rows, 422, **wish)["detail"] == said
        for wish, last in [({"max_exit": 2}, 2), ({"budget_ms": 50_000}, 3), ({}, 3)]:
            assert max(a["exit"] for a in ask(client, rows, **wish)["answers"]) == last


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("treshold=0.7..1", "requests may give threshold, patience, max_exit, budget_ms here"),
        ("threshold=1..0.7", "leaves no number"),
        ("threshold=nan..1", "leaves no number"),
        ("max_exit=4..9", "leaves no number: it is from 0 to 3"),
        ("budget_ms=-2..-1", "leaves no number: it is from 0 to inf"),
        ("threshold=0..0.5,threshold=0.2..1", "limits has threshold twice: give it once"),
    ],
)
def test_limits_that_would_bound_nothing_are_refused(text_served, limits, message):
    with pytest.raises(ValueError, match=message):
        Service(text_served[1]["model"](), Options(limits=limits))


def test_limits_that_leave_nothing_of_what_a_policy_takes_are_refused(text_served):
    model, export = text_served[1]["model"](), text_served[1]["export"]()
    for served in (model, export):
        with pytest.raises(ValueError, match=r"leaves no number: it is from -0.1 to 1.1"):
            Orders(served, Options(limits="threshold=2..3"))
        Orders(served, Options(limits="threshold=1.1..3"))
    with pytest.raises(ValueError, match=r"'patience=0..0' leaves no number: it is from 1 to"):
        Orders(model, Options(limits="patience=0..0"))
    Orders(model, Options(limits="threshold=1.15..9"))  # of entropy's, up to ln 3


@pytest.mark.parametrize("kind", ["model", "export"])
def test_a_policy_far_off_its_scale_is_refused_at_the_start(text_served, kind):
    with pytest.raises(ValueError, match=r"threshold is 30.0; it must be from -0.1 to 1.1"):
        Service(text_served[1][kind](), Options(policy="max-prob=30"))


def test_a_response_says_all_of_the_policy_that_was_run(tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    model = text_model(tokenizer)
    classify = mx.Classifier(model, tokenizer, mx.PatientConfident(0.123456789, patience=2))
    with TestClient(Service(of_model(classify), Options()).app) as client:
        assert ask(client, "a cat")["policy"] == "patient-confident=0.123456789,2"
        answer = ask(client, texts(9), threshold=0.4567891)
        assert answer["policy"] == "patient-confident=0.4567891,2"
        same(answer["answers"], classify(texts(9), policy=answer["policy"]))


def test_it_says_what_it_is_and_counts(client):
    ask(client, texts(5))
    ask(client, "", 422)
    for path in ("/predikt", "/also/not"):
        assert client.get(path).status_code == 404
    for path in ("/predict", "/info"):
        assert client.delete(path).status_code == 405
    info = client.get("/info").json()
    assert info["policy"] == "max-prob=0.6"
    assert info["exits"] == 4
    backend = {"model": "torch", "export": "onnxruntime"}[client.kind]
    assert (info["runtime"]["backend"], info["runtime"]["precision"]) == (backend, "float32")
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").status_code == 200
    assert "/predict" in client.get("/openapi.json").json()["paths"]
    others = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("own", "of another", registry=others).inc()
    counted = client.get("/metrics").text
    assert 'multiexit_requests_total{status="200"} 1.0' in counted
    assert 'multiexit_requests_total{status="422"} 1.0' in counted
    assert 'multiexit_requests_total{status="404"} 2.0' in counted
    assert 'multiexit_requests_total{status="405"} 2.0' in counted
    assert "multiexit_request_seconds_count 1.0" in counted  # what is refused is no speed
    assert 'multiexit_policy_number{name="threshold"} 0.6' in counted
    assert "_created" not in counted
    assert b"own_created" in prometheus_client.generate_latest(others)  # of who embeds the app
    run = saved = 0.0
    for line in counted.splitlines():
        name, _, value = line.partition(" ")
        run += float(value) if name == "multiexit_layers_run_total" else 0
        saved += float(value) if name == "multiexit_layers_saved_total" else 0
    assert run + saved == 5 * 4


def bomb():
    """A small file that says that it is a huge picture."""
    file = io.BytesIO()
    Image.new("1", (4_000, 4_000)).save(file, "PNG")
    return {"image": base64.b64encode(file.getvalue()).decode()}


def test_images_come_as_base64(exported_images):
    model, folder = exported_images
    classify = mx.Classifier(model, policy=mx.MaxProb(0.6))
    images = pictures(6)
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append({"image": base64.b64encode(file.getvalue()).decode()})
    for served in (
        of_model(classify),
        of_export(mx.Classifier.from_pretrained(folder)),
    ):
        with TestClient(Service(served, Options(max_pixels=1000)).app) as client:
            same(ask(client, files)["answers"], classify(images))
            for wrong, words in [
                ("cat.png", "base64"),
                ({"image": "/etc/passwd"}, "base64"),
                ({"image": base64.b64encode(b"no image").decode()}, "inputs[0]"),
                ({"image": "\u00e9"}, "inputs[0].image is no base64"),
                ({"image": base64.b64encode(b"<svg/>").decode()}, "of no format that is read"),
                (bomb(), "16000000 pixels; this service takes at most 1000"),
            ]:
                assert words in ask(client, [wrong], 422)["detail"]
            many = ask(client, files * 6, 422)["detail"]
            assert "pixels; this service takes at most 1000 in a request: send fewer" in many


@pytest.mark.parametrize("kind", ["pairs", "words", "image model", "image export"])
def test_it_is_warm_before_it_is_ready_whatever_it_reads(kind, tmp_path, exported_images, caplog):
    if kind == "image export":
        served = of_export(mx.Classifier.from_pretrained(exported_images[1]))
    elif kind == "image model":
        served = of_model(mx.Classifier(exported_images[0], policy=mx.MaxProb(0.6)))
    else:
        tokenizer = tokenizer_in(tmp_path)
        problem = "token-classification" if kind == "words" else "classification"
        model = text_model(tokenizer, problem, pairs=kind == "pairs")
        served = of_model(mx.Classifier(model, tokenizer, mx.MaxProb(0.6)))
    caplog.set_level("INFO", "multiexit.server")
    with TestClient(Service(served, Options(batch_size=6)).app) as client:
        assert client.get("/ready").status_code == 200
    warm, *_ = caplog.records
    assert warm.msg["message"] == "warmed up"
    assert warm.msg["rows"] > 1 + 2 + 4 + 6  # and the last runs, which are measured
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_options_come_from_flags_then_variables_then_the_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nbatch_size = 2\nhost = "::"\nmax_wait_ms = 3\n')
    environment = {"MULTIEXIT_SERVE_PORT": "4", "MULTIEXIT_SERVE_BATCH_SIZE": "5", "HOME": "/"}
    with merged(file, {"port": 6, "batch_size": None}, environment) as options:
        assert (options.port, options.batch_size, options.host) == (6, 5, "::")
        assert options.max_wait_ms == 3.0


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("port = 70000", {}, "serve.toml's 'port' must be at most 65535"),
        ("threads = 100000", {}, "'threads' must be at most 1024"),
        ("max_body_mb = 1e308", {}, "'max_body_mb' must be at most"),
        ("max_body_mb = 0", {}, "'max_body_mb' must be at least 0.001"),
        ("shutdown_seconds = 0", {}, "'shutdown_seconds' must be at least 1"),
        ("shutdown_seconds = 1.5", {}, "'shutdown_seconds' must be a whole number, got 1.5"),
        ("max_wait_ms = 1" + "0" * 400, {}, "'max_wait_ms' must be a finite number"),
        ('port = "many"', {}, "'port' must be a whole number, got 'many'"),
        ("port = true", {}, "'port' must be a whole number, got True"),
        ("ports = 1", {}, r"serve.toml: no option 'ports': did you mean 'port'\? There are host"),
        ("port =", {}, "can't be read"),
        ("port = " + "[" * 5000, {}, "can't be read: maximum recursion"),
        ("", {"MULTIEXIT_SERVE_PORTS": "1"}, r"did you mean 'MULTIEXIT_SERVE_PORT'\?"),
        ("", {"MULTIEXIT_SERVE_MAX_WAIT_MS": "nan"}, "^MULTIEXIT_SERVE_MAX_WAIT_MS must be a fini"),
        ("", {"MULTIEXIT_SERVE_BATCH_SIZE": "0"}, "^MULTIEXIT_SERVE_BATCH_SIZE must be at least 1"),
        ("", {"MULTIEXIT_SERVE_LOG_LEVEL": "loud"}, "^MULTIEXIT_SERVE_LOG_LEVEL must be debug"),
        (
            "target_ms = 50",
            {"MULTIEXIT_SERVE_BUDGET_MS": "4"},
            "one of .*, --budget-layers, .* got .*serve.toml's 'target_ms' and MULTIEXIT_SERVE_BU",
        ),
    ],
)
def test_options_that_will_not_do(tmp_path, text, environment, message):
    (tmp_path / "serve.toml").write_text(text)
    given = merged(tmp_path / "serve.toml", {}, environment)
    with pytest.raises(ValueError, match=message), given:
        pass


@pytest.mark.parametrize(
    ("own", "kinds"), [(mx.MaxProb(0.9), ["certainty"]), (mx.Certainty(0.9), [])]
)
def test_certainty_of_heads_that_have_none_is_refused_at_the_start(own, kinds, tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    classify = mx.Classifier(text_model(tokenizer), tokenizer, own)
    with pytest.raises(ValueError, match=r"this model has none: make it with head='pooler\+lte'"):
        of_model(classify, kinds)


def test_a_request_that_has_no_time_left_at_the_end_gets_503():
    told, begun = [], threading.Event()

    async def endless(scope, receive, send):
        begun.set()
        await asyncio.sleep(1000)

    app = Named(endless, lambda path, status, *_: told.append((path, status)))
    (listening,) = sockets_at("127.0.0.1", 0)
    listening.listen()  # a request that comes before the server's thread waits
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/predict"
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    )
    serving = threading.Thread(target=server.run, args=([listening],))
    serving.start()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.get, url, timeout=20)
        assert begun.wait(20)
        server.should_exit = True
        assert answer.result().status_code == 503
    serving.join()
    assert "had no time left" in answer.result().json()["detail"]
    assert told == [("/predict", 503)]


def test_a_cancel_of_whoever_runs_the_app_is_his():
    async def endless(scope, receive, send):
        await asyncio.sleep(1000)

    async def at_most():
        async with asyncio.timeout(0.01):
            await Named(endless, print)({"type": "http", "headers": []}, None, None)

    with pytest.raises(TimeoutError):
        asyncio.run(at_most())


def test_an_app_that_does_not_run_says_so_and_may_be_started_again(text_served):
    service = Service(text_served[1]["model"](), Options())
    client = TestClient(service.app)
    for method, path in (("GET", "/ready"), ("HEAD", "/ready"), ("POST", "/predict")):
        body = {"json": {"inputs": "a"}} if method == "POST" else {}
        assert client.request(method, path, **body).status_code == 503
    assert client.head("/health").status_code == 200
    for _ in range(2):
        with client:
            assert client.head("/ready").status_code == 200
            assert len(ask(client, texts(3))["answers"]) == 3
    assert "isn't running" in ask(client, "a", 503)["detail"]
