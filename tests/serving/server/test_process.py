"""A service as a process: what it imports, what clients may send it, and how it ends."""

import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
import uvicorn
from answering import texts
from helpers import ROOT, free_port

from multiexit_runner.server.app import Service
from multiexit_runner.server.ending import Server
from multiexit_runner.server.listening import listen, sockets_at
from multiexit_runner.server.logs import json_lines
from multiexit_runner.server.options import Options
from multiexit_runner.server.wire import LimitedHttp

CODE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "multiexit", "transformers", "onnx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from multiexit_runner.server.serve import main

sys.exit(main(sys.argv[1:]))
"""
PATIENT = "from multiexit_runner.server import wire; wire.LINGER = 3\n" + CODE
"""Where a machine has much to do, a request may be on its way for longer."""


@pytest.fixture(autouse=True)
def no_port_in_common(monkeypatch):
    monkeypatch.setenv("MULTIEXIT_SERVE_PORT", "0")


@pytest.fixture(scope="module")
def exported(exported_texts):
    return exported_texts[-1]


JSON = b"Content-Type: application/json\r\n\r\n"


@contextmanager
def serving(folder, *flags, code=CODE):
    """A service without torch; its process and a client."""
    port = free_port()
    words = [sys.executable, "-c", code, str(folder), "--port", str(port), "--threads", "1", *flags]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                for _ in range(200):
                    assert process.poll() is None, process.stderr.read()
                    try:
                        client.get("/ready")
                        break
                    except httpx.ConnectError:
                        time.sleep(0.05)
                yield process, client, port
        finally:
            process.kill()


def raw(port, data):
    """What comes back first for bytes of any kind, after which nothing more is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(data)
        wire.shutdown(socket.SHUT_WR)
        return wire.recv(1 << 16)


def rest(wire):
    """All that comes until the service closes the connection."""
    return b"".join(iter(lambda: wire.recv(1 << 16), b""))


def told(port, data):
    """All that comes back for bytes of any kind."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(data)
        return rest(wire)


def test_it_lives_through_what_clients_do_and_ends_when_told(exported):
    with serving(exported, "--max-rows", "64") as (process, client, port):
        rows = texts(8)
        assert len(client.post("/predict", json={"inputs": rows}).json()["answers"]) == 8
        assert raw(port, b"\x16\x03\x01 no HTTP at all\r\n\r\n").startswith(b"HTTP/1.1 400")
        other = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 15\r\n"
        asked = b"POST /predict HTTP/1.1\r\nHost: x\r\n" + other + JSON + b'{"inputs": "a"}'
        assert b"This service speaks HTTP/1.1: send no Upgrade" in raw(port, asked)
        tunnel = raw(port, b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n")
        assert tunnel.startswith(b"HTTP/1.1 400")
        assert tunnel.endswith(b"This service is no proxy: it takes no CONNECT.")
        sockets = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        asked = b"GET /predict HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: eA==\r\n" + sockets
        assert raw(port, asked + b"\r\n").startswith(b"HTTP/1.1 400")
        flood = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: " + b"a" * 4_000_000 + b"\r\n\r\n"
        with suppress(OSError):  # closed in the middle
            assert not raw(port, flood).startswith(b"HTTP/1.1 200")
        answer = told(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + b"garbage\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")  # of what came before
        assert b"connection: close" in answer
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + JSON
        whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2
        answer = told(port, whole + head + b"ZZZ\r\n")
        assert answer.count(b"HTTP/1.1 200") == 2
        assert b"HTTP/1.1 400" not in answer
        assert told(port, head + b"ZZZ\r\n").startswith(b"HTTP/1.1 400")
        with socket.create_connection(("127.0.0.1", port)) as hanging:  # a body that never comes
            hanging.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            assert client.get("/health").status_code == 200
        body = json.dumps({"inputs": rows}).encode()
        for _ in range(5):  # clients that leave before their answer
            with socket.create_connection(("127.0.0.1", port)) as leaving:
                head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                leaving.sendall(head.encode() + JSON + body)
        assert client.post("/predict", json={"inputs": rows}).status_code == 200
        for _ in range(100):  # those of clients that left are dropped
            if "multiexit_queue_rows 0.0" in client.get("/metrics").text:
                break
            time.sleep(0.05)
        else:
            raise AssertionError(client.get("/metrics").text)
        statuses = []

        def send():
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as own:
                for _ in range(50):
                    try:
                        statuses.append(own.post("/predict", json={"inputs": rows}).status_code)
                    except httpx.ConnectError:
                        return  # no longer taken: refused before anything was sent
                    except httpx.RemoteProtocolError:
                        statuses.append("lost")

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(statuses) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(20) == 0
        assert {*statuses} <= {200, 429, 503}
        assert statuses.count(200) >= 20


def test_a_request_that_is_on_its_way_when_it_ends_is_answered(exported):
    """On connections that were idle, one of them with half a request sent."""
    with serving(exported, code=PATIENT) as (process, _, port):
        wires = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(5)]
        health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        for wire in (*wires[:2], wires[4]):
            wire.sendall(health + (health[:20] if wire is wires[4] else b""))
            while b'{"status":"alive"}' not in wire.recv(1 << 16):
                pass
        wires[1].sendall(health[:20])
        wires[3].sendall(health[:20])  # and no more
        process.send_signal(signal.SIGTERM)
        with suppress(OSError):  # as soon as it has heard
            while True:  # not so often that the kernel's queue fills up, and a try takes seconds
                socket.create_connection(("127.0.0.1", port)).close()
                time.sleep(0.01)
        wires[0].sendall(health)
        wires[1].sendall(health[20:])
        for wire in wires[:2]:
            data = rest(wire)
            assert data.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in data
        assert wires[2].recv(1) == b""
        for wire in wires[3:]:
            assert wire.recv(1 << 16).startswith(b"HTTP/1.1 408")
        assert process.wait(20) == 0
        for wire in wires:
            wire.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_who_waits_to_be_accepted_when_it_ends_is_answered(text_served, loop):
    """It is told to end while it warms up, when nobody is accepted."""
    pytest.importorskip(loop)
    sockets = [sockets_at("127.0.0.1", 0)[0] for _ in range(2)]
    listen(sockets)
    wires = [socket.create_connection(each.getsockname(), timeout=20) for each in sockets * 20]
    for wire in wires[:-1]:
        wire.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n" + JSON)
        wire.sendall(b'{"inputs": "a"}')
    service = Service(text_served[1]["export"](), Options())
    http = partial(LimitedHttp, seconds=20)
    server = Server(uvicorn.Config(service.app, http=http, loop=loop, log_config=None))
    server.should_exit = True
    server.run(sockets)
    for wire in wires[:-1]:
        answer = rest(wire)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
    assert wires[-1].recv(1) == b""  # who asks nothing
    for wire in wires:
        wire.close()


def test_what_does_not_come_in_time_is_given_up(exported):
    """Half of the headers, half of a body, half of the headers of a second request."""
    with serving(exported, "--read-seconds", "0.5") as (_, client, port):
        wires = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(4)]
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n" + JSON
        wires[0].sendall(head[:30])
        wires[1].sendall(head + b"{")
        wires[2].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        alive = b""
        while b'{"status":"alive"}' not in alive:
            alive += wires[2].recv(1 << 16)
        assert alive.startswith(b"HTTP/1.1 200")
        wires[2].sendall(head[:30])
        wires[3].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + head[:30])
        answers = []
        for wire in wires:
            with wire:
                answers.append(rest(wire))
        first, late, answers[3] = answers[3].partition(b"HTTP/1.1 408")
        assert first.startswith(b"HTTP/1.1 200")
        answers[3] = late + answers[3]
        for answer in answers:
            assert answer.startswith(b"HTTP/1.1 408")
        assert b"must come within 0.5 s" in answers[1]
        assert client.get("/health").status_code == 200


def test_its_log_is_lines_of_json_whoever_says_them(exported, capfd):
    with serving(exported) as (process, client, port):
        assert client.post("/predict", json={"inputs": "a cat"}).status_code == 200
        assert client.post("/predict", json={"inputs": ""}).status_code == 422
        raw(port, b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert all({"time", "level"} < line.keys() for line in lines)
    said = [line["message"] for line in lines if "message" in line]
    assert said[:2] == ["serving", "warmed up"]
    assert lines[0]["options"].keys() == {"port", "threads"}
    assert (lines[0]["backend"], lines[0]["precision"]) == ("onnxruntime", "float32")
    assert (lines[0]["providers"], lines[0]["threads"]) == (["CPUExecutionProvider"], 1)
    assert "Invalid HTTP request received." in said
    statuses = [line["status"] for line in lines if line.get("path") == "/predict"]
    assert statuses == [200, 422]
    with json_lines("warning"):
        warnings.warn("two\nlines", stacklevel=1)
        logging.getLogger("elsewhere").error("it failed", exc_info=ValueError("so"))
        logging.getLogger("elsewhere").info("nothing")
    warned, failed = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (warned["level"], warned["message"]) == ("warning", "two lines")
    assert failed["message"] == "it failed"
    assert failed["traceback"].endswith("ValueError: so")


def test_the_image_runs_and_its_check_asks_at_the_port_that_is_set(exported, tmp_path):
    """What the Dockerfile runs, in a folder that holds what it copies, at another port."""
    lines = (ROOT / "examples/serving/Dockerfile").read_text().splitlines()
    said = {line.split()[0]: line for line in lines if line}
    start = json.loads(said["CMD"].removeprefix("CMD "))
    check = shlex.split(said["HEALTHCHECK"].partition(" CMD ")[2])
    assert start[0] == check[0] == "python"
    for copied, place in ((ROOT / "multiexit_runner", "multiexit_runner"), (exported, "export")):
        shutil.copytree(copied, tmp_path / place)
    set_here = dict(pair.split("=") for pair in said["ENV"].split()[1:])
    assert set_here["MULTIEXIT_SERVE_HOST"] == "0.0.0.0"
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | set_here
    variables["MULTIEXIT_SERVE_PORT"] = str(free_port())

    def healthy():
        words = [sys.executable, *check[1:]]
        return subprocess.run(words, env=variables, capture_output=True).returncode == 0

    with subprocess.Popen([sys.executable, *start[1:]], cwd=tmp_path, env=variables) as process:
        try:
            assert not healthy()
            wait = time.monotonic() + 60
            while not healthy():
                assert process.poll() is None
                assert time.monotonic() < wait
        finally:
            process.terminate()
    assert not healthy()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "many"], "Error: --port must be a whole number, got 'many'"),
        (["--prot", "80"], "no option '--prot': did you mean '--port'?"),
        (["--port", "80", "--port", "81"], "--port is given twice: give it once"),
        (["--batch-size"], "argument --batch-size: expected one argument"),
        (["--target-ms", "9", "--policy", "x"], "a policy or --target-ms, not both: --target-ms"),
        (["--target-ms", "9"], "say with --max-loss what"),
        (["--budget-layers", "99", "--max-loss", "99"], "Error: --budget-layers must be from 1"),
        (["--policy", "patience=2"], "these graphs hold the policy max-prob"),
        (["--policies", "patience"], "hold max-prob, and no patience"),
        (["--limits", "threshold"], "--limits must be like threshold=0.7..1"),
    ],
)
def test_what_cannot_be_served_is_one_line(exported, flags, message, capsys):
    from multiexit_runner.server.serve import main

    assert main([str(exported), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_help_names_every_option(capsys):
    from multiexit_runner.server.options import read

    with pytest.raises(SystemExit) as ended:
        read(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in said for name in vars(Options()))


def test_a_folder_is_named_as_it_is_though_an_option_is_called_so(tmp_path, monkeypatch, capsys):
    from multiexit import cli
    from multiexit_runner.server.serve import main

    monkeypatch.chdir(tmp_path)
    for name in ("policy", "my budget_ms run", "port=1"):
        Path(name).mkdir()
        for typed in (name, f"./{name}"):
            assert main([typed]) == 2
            assert capsys.readouterr().err.startswith(f"Error: {name} is no export")
            monkeypatch.setattr(sys, "argv", ["multiexit", "serve", typed, "--backend", "openvino"])
            with pytest.raises(SystemExit):
                cli.main()
            said = f"--backend=openvino is for an export, and {name} is run by torch"
            assert said in capsys.readouterr().err


def test_keys_of_files_and_limits_are_spelled_as_they_are_typed(exported, tmp_path):
    for text, words in (
        ("targets_ms = 5", "did you mean 'target_ms'? There are host, port"),
        ("target_ms = 5", "say with --max-loss what"),
        ('limits = "treshold=0.5..1"', "but requests may give threshold, max_exit, budget_ms here"),
    ):
        (tmp_path / "serve.toml").write_text(text)
        command = ["serve", str(exported), "--config", str(tmp_path / "serve.toml")]
        done = subprocess.run(
            [sys.executable, "-m", "multiexit.cli", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert words in done.stderr
        assert "--target-ms" not in done.stderr
        assert "--budget-ms" not in done.stderr


def test_a_model_folder_needs_the_other_command(tmp_path, capsys):
    from multiexit_runner.server.serve import main

    assert main([str(tmp_path)]) == 2
    assert "no export" in capsys.readouterr().err
    assert main([str(tmp_path / "typo")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(exported):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = str(listening.getsockname()[1])
        words = [sys.executable, "-c", CODE, str(exported), "--port", port]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == f"Error: can't listen at host '127.0.0.1', port {port}: Address already in use"


def test_of_two_that_have_bound_one_port_one_listens():
    first = sockets_at("127.0.0.1", 0)
    second = sockets_at("127.0.0.1", first[0].getsockname()[1])
    listen(first)
    with pytest.raises(ValueError, match=r"can't listen .*Address already in use"):
        listen(second)
    for each in (*first, *second):
        each.close()


def test_a_free_port_is_told_and_a_name_is_listened_at_wholly(exported):
    words = [sys.executable, "-c", CODE, str(exported), "--port", "0", "--host", "localhost"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        url = json.loads(process.stderr.readline())["url"]
        for _ in range(100):
            with suppress(httpx.ConnectError):
                assert httpx.get(url).status_code == 200
                break
            time.sleep(0.05)
        else:
            raise AssertionError(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


LOADING = """
import builtins, signal, sys
from multiexit_runner.server import serve

whole = builtins.__import__

def told(name, *rest, **others):
    if name == sys.argv[1]:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:  # so a module in C, in the middle of its beginning
            raise ImportError("initialization failed") from error
    return whole(name, *rest, **others)

builtins.__import__ = told
sys.exit(serve.main([*sys.argv[2:], "--port", "0"]))
"""


@pytest.mark.parametrize("module", ["uvicorn", "onnxruntime"])
def test_it_ends_in_silence_when_told_while_it_loads(exported, module):
    words = [sys.executable, "-c", LOADING, module, str(exported)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_where_it_cannot_begin_signals_are_as_they_were(exported):
    from multiexit_runner.server import serve

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        serve.run(exported, Options(port=0), lambda *_: 1 // 0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_host_that_is_not_this_machine_is_one_line(exported, capsys):
    from multiexit_runner.server.serve import main

    for host in ("999.1.1.1", "192.0.2.1"):
        assert main([str(exported), "--host", host]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"can't listen at host '{host}'" in line
