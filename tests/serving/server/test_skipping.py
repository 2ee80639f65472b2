"""Layers that an answer says were skipped were not run: counted where they run, by their clock.

Each layer counts the rows that it gets and turns the scheduler's clock by a time of its own, so
that what the service says of segments, milliseconds and layers is compared with what ran. At the
end layers sleep, and a real clock tells.
"""

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from answering import text_model, texts, tokenizer_in
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import multiexit as mx
from multiexit.serving.stepping import of_model
from multiexit_runner.server.app import Service
from multiexit_runner.server.options import Options

LAYERS = 4
SECONDS = (0.003, 0.005, 0.007, 0.011)
"""Of a row in each layer."""


class Ran:
    """What layers ran: rows and seconds by layer, and the clock that they turn."""

    def __init__(self):
        self.rows, self.seconds, self.now = [0] * LAYERS, [0.0] * LAYERS, 0.0

    def __call__(self):
        return self.now

    def run(self, layer, rows):
        self.rows[layer] += rows
        self.seconds[layer] += rows * SECONDS[layer]
        self.now += rows * SECONDS[layer]


class Slept:
    """Layers that sleep, most of what an answer takes on a busy machine too."""

    def run(self, layer, rows):
        time.sleep(0.02)


def of_torch(served, ran):
    """Hooks on the layers themselves."""
    layers = [m for m in served.network.model.modules() if type(m).__name__ == "BertLayer"]
    assert len(layers) == LAYERS
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda module, args, out, n=number: ran.run(n, len(args[0])))


class Session:
    """A graph's session that tells when it runs."""

    def __init__(self, inner, told):
        self.inner, self.told = inner, told

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def run(self, names, feeds, *more):
        outputs = self.inner.run(names, feeds, *more)
        self.told(len(outputs[0]))
        return outputs


def values(text):
    """What /metrics counts, by name and labels."""
    return {
        (sample.name.removeprefix("multiexit_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def check(served, ran, exits):
    """Requests of several kinds at once; then what was said of them against what ran.

    Args:
        served: whose layers turn the clock.
        ran: what they ran.
        exits: the layer of each exit.
    """
    service = Service(replace(served, examples=[]), Options(batch_size=7))
    service.scheduler._clock = ran
    rows = texts(24, seed=3)
    wishes = [{}, {"threshold": 0.5}, {"threshold": 0.95}, {"max_exit": 0}, {"threshold": 0.7}]
    answers = []

    def send(wish):
        response = client.post("/predict", json={"inputs": rows, **wish})
        answers.extend(response.json()["answers"])

    with TestClient(service.app) as client:
        threads = [threading.Thread(target=send, args=[wish]) for wish in wishes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counted = values(client.get("/metrics").text)
        before = [*ran.rows]
        send({"max_exit": 0})
    first = exits[0] + 1
    later = [now - then for now, then in zip(ran.rows, before, strict=True)]
    assert later == [len(rows)] * first + [0] * (LAYERS - first)
    told = answers[: -len(rows)]
    assert len(told) == len(rows) * len(wishes)
    assert len({answer["exit"] for answer in told}) == len(exits)
    segments = [[*range(low + 1, high + 1)] for low, high in pairwise((-1, *exits))]
    for exit, layers in enumerate(segments):
        came = sum(exit in answer["stages"] for answer in told)
        assert [before[layer] for layer in layers] == [came] * len(layers)
        seconds = sum(came * SECONDS[layer] for layer in layers)
        assert counted["segment_seconds_sum", str(exit)] == pytest.approx(seconds)
        assert counted["batch_rows_sum", str(exit)] == came
    assert counted["layers_run_total",] == sum(before)
    assert counted["layers_saved_total",] == len(told) * LAYERS - sum(before)
    assert counted["layers_saved_total",] > 0
    for answer in told:
        assert answer["layers"] == exits[answer["exit"]] + 1
        assert answer["stages"] == [*range(answer["exit"] + 1)]
        alone = 1000 * sum(SECONDS[: answer["layers"]])
        assert answer["milliseconds"] >= alone - 1e-3


def of_graphs(served, ran, monkeypatch):
    """Around the sessions of an export, one a layer."""
    runner = served.network.runner
    told = [
        Session(session, lambda rows, n=number: ran.run(n, rows))
        for number, session in enumerate(runner._sessions)
    ]
    monkeypatch.setattr(runner, "_sessions", told)


def test_of_an_export(text_served, monkeypatch):
    ran, served = Ran(), text_served[1]["export"]()
    of_graphs(served, ran, monkeypatch)
    check(served, ran, [0, 1, 2, 3])


@pytest.mark.parametrize("exits", ["all", [1, 3]])
def test_of_a_model(exits, tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    model = text_model(tokenizer, exits=exits)
    served = of_model(mx.Classifier(model, tokenizer, mx.MaxProb(0.6)))
    ran = Ran()
    of_torch(served, ran)
    check(served, ran, [*model.exits])


@pytest.mark.parametrize("kind", ["model", "export"])
def test_the_time_of_a_skipped_layer_is_saved(kind, tmp_path, text_served, monkeypatch):
    if kind == "export":
        served = text_served[1]["export"]()
        of_graphs(served, Slept(), monkeypatch)
    else:
        tokenizer = tokenizer_in(tmp_path)
        served = of_model(mx.Classifier(text_model(tokenizer), tokenizer, mx.MaxProb(0.6)))
        of_torch(served, Slept())

    def seconds(**wish):
        start = time.perf_counter()
        (answer,) = client.post("/predict", json={"inputs": "a cat", **wish}).json()["answers"]
        return time.perf_counter() - start, answer["layers"]

    with TestClient(Service(replace(served, examples=[]), Options()).app) as client:
        early = min(seconds(max_exit=0) for _ in range(3))
        late = min(seconds(threshold=1.05) for _ in range(3))
    assert (early[1], late[1]) == (1, LAYERS)
    assert late[0] > 2 * early[0]
