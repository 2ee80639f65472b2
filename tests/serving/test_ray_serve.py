"""The service as a Ray Serve deployment, of up to two replicas on this machine."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from answering import text_model, texts, tokenizer_in
from helpers import ROOT, free_port

import multiexit as mx

EXAMPLE = "examples/serving/ray_serve.py"
CODE = """
import functools, runpy, sys, ray
from ray import serve

def at_once(autoscaling_config, whole=serve.deployment, **options):
    delays = {"upscale_delay_s": 0, "look_back_period_s": 1, "metrics_interval_s": 0.5}
    return whole(autoscaling_config=autoscaling_config | delays, **options)

serve.deployment = at_once
own = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
ray.init = functools.partial(ray.init, **own)  # the example starts Ray
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COUNT = 'multiexit_requests_total{status="200"} '
MANY = 2_000
"""Rows of a request that is at work for seconds."""


@contextmanager
def replicas(folder, *words):
    """A Ray of its own that serves a folder: its process, and a client."""
    port, place = free_port(), tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets: short paths
    words = [sys.executable, "-c", CODE, EXAMPLE, str(folder), *words]
    changes = {
        "HOME": place,
        "MULTIEXIT_SERVE_MAX_REQUEST_ROWS": str(MANY),
        "MULTIEXIT_SERVE_MAX_ROWS": str(MANY),
        "MULTIEXIT_SERVE_PORT": str(port),
        "RAY_TMPDIR": place,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    process = subprocess.Popen(words, cwd=ROOT, env=os.environ | changes, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield process, client
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(place, ignore_errors=True)


def count_of(client) -> int:
    """The requests that a replica, any of them, has answered."""
    lines = client.get("/metrics").text.splitlines()
    return sum(int(float(line.removeprefix(COUNT))) for line in lines if line.startswith(COUNT))


def rows_in(client) -> float:
    """The rows on their way in a replica, any of them."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("multiexit_queue"))


def wait_for(process, client, path):
    for _ in range(1200):
        assert process.poll() is None, process.returncode
        try:
            if client.get(path).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{path} isn't there")


def test_load_starts_a_second_replica_which_answers_and_both_end_with_their_work_done(tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    model = text_model(tokenizer)
    model.policy = mx.MaxProb(0.6)
    model.save_pretrained(tmp_path / "model", tokenizer)
    rows = texts(41)
    wanted = mx.Classifier(model, tokenizer)(rows)
    assert len({answer["exit"] for answer in wanted}) > 2
    up_to_two = "--min-replicas", "1", "--max-replicas", "2", "--seconds", "0.001"
    with (
        replicas(tmp_path / "model", *up_to_two) as (process, client),
        ThreadPoolExecutor(8) as pool,
    ):
        wait_for(process, client, "/ready")

        def ask(row):
            return client.post("/predict", json={"inputs": row})

        response = client.get("/health", headers={"X-Request-ID": "one"})
        assert response.headers.get_list("x-request-id") == ["one"]

        sent, counts, until = 0, set(), time.monotonic() + 120
        while sum(counts) != sent or len(counts) < 2:  # the second replica comes of the load
            assert time.monotonic() < until, counts
            for response, answer in zip(pool.map(ask, rows), wanted, strict=True):
                assert response.status_code == 200, response.text
                (got,) = response.json()["answers"]
                assert (got["label"], got["exit"]) == (answer["label"], answer["exit"])
                assert got["scores"] == pytest.approx(answer["scores"], abs=1e-4)
            sent += len(rows)
            counts = {count_of(client) for _ in range(12)} - {0}

        long = pool.submit(ask, rows * (MANY // len(rows)))
        while not rows_in(client):
            assert not long.done(), long.result().text
        process.send_signal(signal.SIGTERM)
        assert not long.done()  # it was on its way
        assert long.result().status_code == 200
        assert len(long.result().json()["answers"]) == MANY // len(rows) * len(rows)
        assert process.wait(60) == 0


def test_replicas_are_as_many_as_the_work_that_waits_needs():
    by_work = runpy.run_path(str(ROOT / EXAMPLE))["ByWork"](seconds=0.1)
    for metrics, wanted in [
        ({"seconds": {"one": 0.25, "other": 0.15}}, 4),
        ({"seconds": {"one": 0.0}}, 0),
        ({}, 0),
        (None, 0),
    ]:
        replicas, state = by_work(SimpleNamespace(aggregated_metrics=metrics))
        assert replicas == pytest.approx(wanted)
        assert state == {}
