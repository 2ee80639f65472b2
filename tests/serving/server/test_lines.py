"""An answer line by line: each row's as soon as it has left."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import ANY

import httpx
import pytest
import uvicorn
from answering import text_model, texts, tokenizer_in
from starlette.testclient import TestClient

import multiexit as mx
from multiexit.serving.stepping import of_model
from multiexit_runner.server.app import Service
from multiexit_runner.server.ending import Server
from multiexit_runner.server.lines import LINES, takes_lines
from multiexit_runner.server.listening import listen, sockets_at
from multiexit_runner.server.options import Options
from multiexit_runner.server.saying import BrokenLine, LastLine, RowLine
from multiexit_runner.server.wire import LimitedHttp

ASKED = {"Accept": LINES}


class Held:
    """A network that stands still before all segments but the first."""

    def __init__(self, network):
        self.network, self.going = network, threading.Event()

    def __getattr__(self, name):
        return getattr(self.network, name)

    def run(self, exit, group):
        if exit:
            assert self.going.wait(60)
        return self.network.run(exit, group)


@contextmanager
def serving(service, seconds=20):
    """An app behind a real server: this, and a client of it."""
    sockets = sockets_at("127.0.0.1", 0)
    listen(sockets)
    config = uvicorn.Config(
        service.app,
        http=partial(LimitedHttp, seconds=20),
        log_config=None,
        timeout_graceful_shutdown=seconds,
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as client:
            client.get("/ready")  # it has warmed up
            yield server, client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def held(text_served):
    """A service whose network stands still once rows have left its first exit, and what lets it
    go on."""
    served = text_served[1]["export"]()
    network = Held(served.network)
    network.going.set()  # while it warms up
    return Service(replace(served, network=network), Options(max_wait_ms=60_000)), network.going


def read(response):
    """Its lines, as they come."""
    assert response.status_code == 200
    assert response.headers["content-type"] == LINES
    assert "x-multiexit-certified" not in response.headers  # it isn't known yet
    return map(json.loads, response.iter_lines())


def asking(client, rows, **wishes):
    return client.stream("POST", "/predict", json={"inputs": rows, **wishes}, headers=ASKED)


def counted(client, *lines):
    """Once `/metrics` has these."""
    for _ in range(500):
        if {*lines} <= {*(text := client.get("/metrics").text).splitlines()}:
            return
        time.sleep(0.02)
    raise AssertionError(text)


def nearly(value):
    """An answer, its numbers nearly so and its times as they may be."""
    if isinstance(value, dict):
        return {k: ANY if k == "milliseconds" else nearly(each) for k, each in value.items()}
    if isinstance(value, list):
        return [nearly(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def served_as(kind, text_served, folder):
    """What is served, its inputs and the service's options."""
    if kind in text_served[1]:
        return text_served[1][kind](), texts(20), Options()
    if kind == "turned":
        return text_served[1]["export"](), texts(20), Options(target_ms=60_000, max_loss=99)
    tokenizer = tokenizer_in(folder)
    model = text_model(tokenizer, kind, classes={"regression": 1, "embedding": 16}.get(kind, 3))
    policy = {"regression": mx.Patience(1, tolerance=0.8), "embedding": mx.FixedExit(2)}
    served = of_model(mx.Classifier(model, tokenizer, policy.get(kind, mx.MaxProb(0.6))))
    words = [row.split() for row in texts(20)]
    return served, words if kind == "token-classification" else texts(20), Options()


WISHES = [
    {},
    {"threshold": 0.45},
    {"threshold": 1.0},
    {"policy": "patience=1"},
    {"policy": "entropy=0.8"},
    {"max_exit": 1},
    {"budget_ms": 60_000},
    {"top_k": 1},
]


@pytest.mark.parametrize(
    "kind",
    ["model", "export", "turned", "multi-label", "regression", "embedding", "token-classification"],
)
def test_lines_are_those_of_the_usual_answer(kind, text_served, tmp_path):
    served, rows, options = served_as(kind, text_served, tmp_path)
    taken = 0
    with TestClient(Service(served, options).app) as client:
        for wish in WISHES:
            usual = client.post("/predict", json={"inputs": rows, **wish})
            with asking(client, rows, **wish) as response:
                if usual.status_code != 200:
                    assert (response.status_code, response.read()) == (422, usual.content)
                    continue
                *lines, last = read(response)
            whole = usual.json()
            for place, answer in enumerate(whole.pop("answers")):
                (line,) = [each for each in lines if each["row"] == place]
                assert line == nearly({"row": place, **answer})
                RowLine.model_validate(line)
            assert len(lines) == len(rows)
            assert last == {"done": True, **whole}
            assert last.keys() <= LastLine.model_fields.keys()
            name = "x-multiexit-policy"
            assert response.headers[name] == usual.headers[name]
            taken += 1
    assert taken > 2


def test_a_line_comes_before_the_last_row_has_left_and_the_end_waits_for_all(held):
    service, going = held
    rows = texts(20)
    with serving(service) as (server, client):
        usual = client.post("/predict", json={"inputs": rows}).json()
        going.clear()
        with asking(client, rows) as response:
            lines = read(response)
            first = next(lines)
            assert first["exit"] == 0  # the others can't have left
            server.should_exit = True
            while not all(each._ends for each in server.server_state.connections):
                time.sleep(0.01)  # until it has heard
            going.set()
            *others, last = lines
    assert {line["row"] for line in [first, *others]} == {*range(20)}
    exits = [line["exit"] for line in [first, *others]]
    assert exits == sorted(exits)
    assert len({*exits}) > 2
    assert last == {"done": True, "policy": usual["policy"], "certified": usual["certified"]}


def test_the_time_to_end_is_up_in_the_middle(held):
    service, going = held
    told = []
    service.metrics.on_request = lambda status, seconds: told.append(status)
    with serving(service, seconds=1) as (server, client):
        going.clear()
        with asking(client, texts(20)) as response:
            lines = read(response)
            told_rows = [next(lines)["row"]]
            server.should_exit = True
            for line in lines:
                told_rows.append(line.get("row"))
        going.set()
    assert told_rows[-1] is None
    assert "done" not in line
    assert "had no time left" in line["error"]
    assert told == [503]


def test_rows_of_a_client_that_goes_in_the_middle_are_dropped(held):
    service, going = held
    with serving(service) as (_, client):
        going.clear()
        with asking(client, texts(20)) as response:
            assert next(read(response))["exit"] == 0
        counted(client, 'multiexit_requests_total{status="499"} 1.0')
        going.set()
        counted(client, "multiexit_queue_rows 0.0")
        text = client.get("/metrics").text
        assert 'why="abandoned"' in text
        assert 'status="200"' not in text
        assert client.get("/info").json()["drift"]["rows"] == 0  # early ones alone would be drift
        assert client.post("/predict", json={"inputs": texts(20)}).status_code == 200
        assert client.get("/info").json()["drift"]["rows"] == 20


def test_a_client_that_reads_slowly_holds_up_nobody(held):
    """It takes one line, and no more until all is over."""
    service, _ = held
    body = json.dumps({"inputs": texts(20)}).encode()
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json"), (b"accept", LINES.encode())]
    scope["http_version"] = "1.1"

    async def run():
        sent, reads = [], asyncio.Event()
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if not asked:
                await asyncio.Event().wait()
            return asked.pop()

        async def send(message):
            sent.append(message)
            if len(sent) > 1:
                await reads.wait()

        async with asyncio.timeout(60), service._life(service.app):
            slow = asyncio.create_task(service.app(scope, receive, send))
            while service.watch.info()["rows"] < 20:
                await asyncio.sleep(0.001)
            assert len(sent) == 2
            reads.set()
            await slow
        return [json.loads(each["body"]) for each in sent[1:-1]]

    *lines, last = asyncio.run(run())
    assert len(lines) == 20
    assert last["done"]


def test_a_client_that_does_not_read_is_cut_off_at_the_end(held):
    """Its connection is full: what is written at the end is cancelled as what went before."""
    service, _ = held
    told = []
    service.metrics.on_request = lambda status, seconds: told.append(status)
    asked = [{"type": "http.request", "body": b'{"inputs": "the cat"}', "more_body": False}]
    headers = [(b"content-type", b"application/json"), (b"accept", LINES.encode())]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1"}

    async def run():
        full = asyncio.Event()

        async def receive():
            if not asked:
                await asyncio.Event().wait()
            return asked.pop()

        async def send(message):
            if message["type"] == "http.response.body":
                full.set()
                await asyncio.Event().wait()

        async with asyncio.timeout(60), service._life(service.app):
            stuck = asyncio.create_task(service.app(scope, receive, send))
            for _ in range(2):
                await full.wait()
                full.clear()
                stuck.cancel("Task cancelled, timeout graceful shutdown exceeded")
            await stuck

    asyncio.run(run())
    assert told == [503]


def test_http_1_0_has_no_lines(text_served):
    service = Service(text_served[1]["export"](), Options())
    body = b'{"inputs": ["the cat", "the dog"]}'
    head = f"POST /predict HTTP/1.0\r\nAccept: {LINES}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with serving(service) as (_, client), socket.socket() as plain:
        plain.connect((client.base_url.host, client.base_url.port))
        plain.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: plain.recv(65536), b""))
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in headers.lower()
    assert len(json.loads(content)["answers"]) == 2


@pytest.mark.parametrize("fails", ["network", "say"])
def test_what_fails_in_the_middle_is_said(text_served, fails, caplog):
    served, rows = text_served[1]["model"](), [*["the cat"] * 5, "cat", "the dog saw a cat"]
    first, say = served.network.first, served.say

    def fragile(items, policies):
        if any(len(item["input_ids"]) == 3 for item in items):
            raise RuntimeError("secret")
        return first(items, policies)

    def speechless(answer_C, exit, encoded, top_k):
        if len(encoded.inputs["input_ids"]) == 3:
            raise RuntimeError("secret")
        return say(answer_C, exit, encoded, top_k)

    if fails == "network":
        served.network.first = fragile
    else:
        served = replace(served, say=speechless)
    with TestClient(Service(served, Options()).app, raise_server_exceptions=False) as client:
        with asking(client, rows, threshold=0) as response:
            *lines, last = read(response)
        usual = client.post("/predict", json={"inputs": rows, "threshold": 0})
        assert usual.status_code == 500
        if fails == "network":
            assert {line["row"] for line in lines} == {*range(7)}
            (broken,) = [line for line in lines if "error" in line]
            assert broken == {"row": 5, "error": usual.json()["detail"]}
            BrokenLine.model_validate(broken)
            assert last["done"]
        else:
            assert last == {"error": usual.json()["detail"]}
            assert "row" in lines[0]
        counted(client, 'multiexit_requests_total{status="500"} 2.0')
    assert "secret" in caplog.text


def test_what_is_refused_before_the_first_line_is_plain(text_served):
    service = Service(text_served[1]["export"](), Options(max_rows=4))
    with TestClient(service.app) as client:
        for inputs, status in (("", 422), (["a"] * 5, 413), (["a"] * 4, 429)):
            service.scheduler.max_rows = 3 if status == 429 else 4
            response = client.post("/predict", json={"inputs": inputs}, headers=ASKED)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/json"
            assert response.json()["detail"]


@pytest.mark.parametrize(
    ("accepts", "lines"),
    [
        ([], False),
        (["*/*"], False),
        (["application/*"], False),
        (["text/html"], False),
        ([""], False),
        ([",;q,,q=;=;\x00é"], False),
        ([LINES], True),
        (["Application/X-NDJSON; charset=utf-8"], True),
        ([f"{LINES};q=0.001"], True),
        ([f"{LINES}, application/json"], True),
        ([f"{LINES}, */*;q=0.1"], True),
        ([f"{LINES};q=0.5, application/json;q=0.4, */*"], True),
        (["text/html", LINES], True),
        ([f"{LINES};q=0.9, application/json"], False),
        ([f"{LINES};q=0.9, */*"], False),
        ([f"{LINES};q=0"], False),
        ([f"{LINES};q=0.000, */*;q=0"], False),
        ([f"{LINES};q=nan"], False),
        ([f"{LINES};q=1e3"], False),
        ([f"{LINES};q=2"], False),
        ([f"{LINES};q=-1"], False),
        ([f"{LINES}x"], False),
    ],
)
def test_lines_are_for_those_who_name_them(accepts, lines, text_served):
    assert takes_lines(accepts) is lines
