"""What runs graphs: other backends and providers, and what isn't there."""

import json
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from answering import texts
from helpers import command

from multiexit_runner import Classifier, Runner
from multiexit_runner.backends import opener
from multiexit_runner.server.options import Options
from multiexit_runner.server.serve import load_export

GPUS = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]


@pytest.fixture(scope="module")
def openvino():
    return pytest.importorskip("openvino", reason="openvino is not installed")


def batch_of(exported_texts, count, seed=0):
    _, tokenizer, _, _ = exported_texts
    return dict(tokenizer(texts(count, seed), padding=True, return_tensors="np"))


@pytest.mark.usefixtures("openvino")
def test_batches_and_lengths_of_any_size_get_the_same_answers(exported_texts):
    folder = exported_texts[-1]
    theirs, ours = Runner(folder, 1), Runner(folder, 1, backend="openvino")
    for rows in (1, 7, 2, 33):
        batch = batch_of(exported_texts, rows, rows)
        wanted, got = theirs.predict(**batch), ours.predict(**batch)
        np.testing.assert_array_equal(got.exit_B, wanted.exit_B)
        np.testing.assert_allclose(got.logits_BC, wanted.logits_BC, atol=1e-5)
    rows = [batch_of(exported_texts, 8, seed) for seed in range(3)]
    for got, wanted in zip(ours.stream(rows), theirs.stream(rows), strict=True):
        np.testing.assert_array_equal(got.exit_B, wanted.exit_B)
    ours.set(threshold=1.1)
    assert set(ours.predict(**batch).exit_B) == {3}
    assert {*ours.predict(**batch, max_exit=1).exit_B} == {1}


@pytest.mark.usefixtures("openvino")
def test_images_get_the_same_answers(exported_images):
    _, folder = exported_images
    theirs, ours = Runner(folder, 1), Runner(folder, 1, backend="openvino")
    for rows in (1, 7, 3):
        x = np.random.default_rng(rows).standard_normal((rows, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(ours.forward(x), theirs.forward(x), atol=1e-4)
        np.testing.assert_array_equal(ours.predict(x).exit_B, theirs.predict(x).exit_B)
    x[1, 0, 2, 2] = np.nan
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 1"):
        ours.predict(x)


def test_bfloat16_is_near_where_the_cpu_has_it_and_refused_elsewhere(
    exported_images, openvino, monkeypatch
):
    _, folder = exported_images
    graph = (folder / "exit-0.onnx").read_bytes()
    x = np.random.default_rng(0).standard_normal((33, 3, 8, 8)).astype(np.float32)
    in_float = opener("openvino", 1, None)(graph)
    feed = {"x": x} | {name: np.zeros(1, np.float32) for name in in_float.inputs if name != "x"}
    wanted = in_float.run(None, feed)[0]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        got = opener("openvino-bf16", 1, None)(graph).run(None, feed)[0]
        assert 0 < abs(got - wanted).max() < 0.03 * abs(wanted).max()
    elsewhere = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr(openvino, "Core", lambda: elsewhere)
    with pytest.raises(ValueError, match="this CPU has no bfloat16; take 'openvino'"):
        Runner(folder, 1, backend="openvino-bf16")


@pytest.mark.usefixtures("openvino")
def test_threads_may_run_one_network_at_once(exported_texts):
    runner = Runner(exported_texts[-1], 1, backend="openvino")
    batches = [batch_of(exported_texts, 1 + seed % 5, seed) for seed in range(40)]
    wanted = [runner.forward(**batch) for batch in batches]
    got: list[Any] = [None] * len(batches)

    def work(start):
        for place in range(start, len(batches), 4):
            got[place] = runner.forward(**batches[place])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.usefixtures("openvino")
def test_a_service_runs_an_export_by_its_backend(exported_texts):
    folder = exported_texts[-1]
    served = load_export(folder, Options(backend="openvino", threads=1))
    assert (served.runtime["backend"], served.runtime["threads"]) == ("openvino", 1)
    network: Any = served.network
    assert "_openvino" in network.runner._sessions[0].run.__qualname__
    inputs = texts(9)
    got: Any = Classifier.from_pretrained(folder, 1, backend="openvino")(inputs)
    wanted: Any = Classifier.from_pretrained(folder, 1)(inputs)
    for one, other in zip(got, wanted, strict=True):
        assert (one["label"], one["exit"]) == (other["label"], other["exit"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_backend_that_is_not_installed_names_the_extra(exported_texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"pip install 'multiexit-torch\[openvino\]'"):
        Runner(exported_texts[-1], backend="openvino")
    ended = command("serve", exported_texts[-1], "--port", "0", "--backend", "openvino")
    assert ended.code == 2
    assert "multiexit-torch[openvino]" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tvm"}, "no backend 'tvm'; there are onnxruntime, openvino"),
        ({"backend": None}, "no backend None"),
        ({"backend": ["openvino"]}, "no backend"),
        ({"backend": "openvino", "providers": GPUS}, "providers are onnxruntime's"),
        ({"providers": GPUS[1:]}, "no provider 'CUDAExec.*pip install onnxruntime-gpu"),
    ],
)
def test_what_is_not_there_is_refused(exported_texts, arguments, message):
    with pytest.raises(ValueError, match=message):
        Runner(exported_texts[-1], **arguments)


def test_a_model_of_torch_has_no_backend(exported_texts, tmp_path):
    model, tokenizer, *_ = exported_texts
    model.save_pretrained(tmp_path / "model", tokenizer)
    for name, *words in (
        ("serve", "--port", "0", "--backend", "openvino"),
        ("serve", "--port", "0", "--providers", "CPUExecutionProvider"),
        ("predict", "--backend", "openvino"),
    ):
        ended = command(name, tmp_path / "model", *words, stdin="the cat\n")
        assert ended.code == 2
        assert "is for an export" in ended.err


@pytest.mark.usefixtures("openvino")
def test_a_table_is_answered_by_the_backend(exported_texts, tmp_path):
    (tmp_path / "in.csv").write_text("\n".join(["review", *texts(30, seed=2), ""]))
    words = ("predict", exported_texts[-1], tmp_path / "in.csv", "--text", "review")
    answers = []
    for backend in ("onnxruntime", "openvino"):
        ended = command(*words, "--backend", backend)
        assert ended.code == 0, ended.err
        answers.append([json.loads(line) for line in ended.out.splitlines()])
    for one, other in zip(*answers, strict=True):
        score = pytest.approx(other["score"], abs=1e-5)
        assert {**one, "scores": None} == {**other, "score": score, "scores": None}
    ended = command(*words, "--backend", "tvm")
    assert (ended.code, "no backend 'tvm'" in ended.err) == (2, True)


def test_providers_are_asked_for_in_their_order(exported_texts, monkeypatch):
    """CUDA and TensorRT as an onnxruntime for GPUs has them, on a machine that has them or not."""
    asked, real = [], onnxruntime.InferenceSession

    def session(data, options, providers, disabled_optimizers):
        assert disabled_optimizers == []  # that is for CPUs alone
        asked.append(providers)
        made = real(data, options, ["CPUExecutionProvider"])
        made.get_providers = lambda: [*usable, "CPUExecutionProvider"]
        return made

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [*GPUS, "CPUExecutionProvider"]
    )
    usable = GPUS
    options = Options(providers=",".join(GPUS), threads=1)
    assert load_export(exported_texts[-1], options).runtime["providers"] == GPUS
    assert asked == [GPUS] * 4
    usable = GPUS[:1]
    with pytest.raises(ValueError, match="CUDAExecutionProvider is in this onnxruntime but can't"):
        load_export(exported_texts[-1], options)


def test_a_machine_without_the_drivers_is_told_so(exported_texts, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPUS)
    warned = pytest.warns(UserWarning, match="CUDAExecutionProvider")
    with warned, pytest.raises(ValueError, match="can't be used on this machine"):
        Runner(exported_texts[-1], providers=GPUS[1:])
