"""Convolutions in 8-bit integers: by hand, near the model, on any CPU, in any batch."""

import json
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import multiexit as mx
from multiexit_runner import Runner

pytestmark = pytest.mark.usefixtures("onnx_operators")

POLICY = mx.MaxProb(0.5)


def images(rows, seed=0):
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made: Any = mx.MultiExitModel(mx.cifar_resnet(20, size=16), 3, [0, 4, 8]).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            state = module.state_dict()
            state["running_mean"].normal_(0, 0.1)
            state["running_var"].uniform_(0.5, 2)
    with torch.no_grad():  # at each exit some rows are sure and some are not
        for head, logits_BC in zip(made.heads, made(images(40)), strict=True):
            head.linear.bias.sub_(logits_BC.mean(0))
            head.linear.weight.mul_((1.5 / logits_BC.std(0)).unsqueeze(1))
    return made


@pytest.fixture(scope="module")
def exported(model, once):
    """`exported(target)`: the folder of its graphs in int8."""

    def export(target):
        how: Any = {"int8": True, "target": target, "rows": [images(40), images(300, 1)]}
        return lambda folder: mx.export(model, folder, POLICY, **how, agreement=0.8)

    return lambda target: once(f"convolutions {target}", export(target))


def graphs(folder):
    return [onnx.load(path).graph for path in sorted(folder.glob("exit-*.onnx"))]


def test_it_is_near_the_model_and_the_same_in_any_batch(model, exported):
    runner = Runner(exported("auto"), 1)
    assert runner.settings["int8"] == {"target": "auto", "machines": "any CPU"}
    parity = runner.settings["parity"]
    assert (parity["on"], parity["rows"]) == ("rows", 340)
    assert parity["largest_difference_alone"] < 1e-5
    x = images(50, 7)
    wanted = model(x).detach().numpy()
    got = runner.forward(x.numpy())
    assert 1e-3 < np.abs(got - wanted).max() < 0.2 * np.abs(wanted).max()
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.99
    alone = np.concatenate([runner.forward(x[i : i + 1].numpy()) for i in range(50)], 1)
    np.testing.assert_allclose(alone, got, atol=1e-5)
    runner.set(threshold=0.4)
    early = runner.predict(x.numpy()).exit_B
    runner.set(threshold=0.9)
    assert early.mean() < runner.predict(x.numpy()).exit_B.mean()


def test_all_convolutions_are_of_integers_and_heads_are_not(exported):
    for graph in graphs(exported("auto")):
        writers = {name: node for node in graph.node for name in node.output}
        readers = {name: node.op_type for node in graph.node for name in node.input}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert convolutions
        for node in convolutions:
            assert [writers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            relu = readers[node.output[0]] == "Relu"
            assert relu or readers[node.output[0]] == "QuantizeLinear"
        (head,) = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
        assert writers[head.input[0]].op_type != "DequantizeLinear"


@pytest.mark.parametrize(("target", "most"), [("auto", 64), ("vnni", 127)])
def test_two_neighbours_fit_in_sixteen_bits_unless_the_cpu_adds_in_more(exported, target, most):
    largest = [
        int(np.abs(numpy_helper.to_array(value).astype(int)).max())
        for graph in graphs(exported(target))
        for value in graph.initializer
        if value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 4
    ]
    assert len(largest) == 19
    assert most - 1 <= min(largest) <= max(largest) <= most


def test_int8_by_hand(tmp_path):
    """One convolution and its head, worked out in numpy from the smallest and largest values."""
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Conv2d(2, 4, 3, bias=True))
    model: Any = mx.MultiExitModel(mx.wrap(network, input_shape=(2, 5, 5)), 3).eval()
    seen, x = torch.randn(20, 2, 5, 5), torch.randn(6, 2, 5, 5)
    mx.export(model, tmp_path / "out", mx.FixedExit(0), int8=True, rows=[seen], agreement=0)

    def rounded(values, known):
        low, high = min(float(known.min()), 0.0), max(float(known.max()), 0.0)
        s = (high - low) / 255
        z = round(-low / s)
        return s * ((values / s).round() + z).clamp(0, 255).sub(z)

    conv, head = network[0], model.heads[0].linear
    t = conv.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 64
    W = t * (conv.weight.detach() / t).round()
    with torch.no_grad():
        y = nn.functional.conv2d(rounded(x, seen), W, conv.bias)
        y = rounded(y, conv(seen))
        wanted = head(y.mean((2, 3)))
        plain = head(conv(x).mean((2, 3)))
    got = torch.from_numpy(Runner(tmp_path / "out", 1).forward(x.numpy())[0])
    assert (got - wanted).abs().median() < 1e-6  # of what lies between two steps, some go the other
    assert (got - wanted).abs().max() < 0.5 * (got - plain).abs().max()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_nan(exported, value):
    x = images(5).numpy()
    x[3, 1, 2, 2] = value
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 3"):
        Runner(exported("auto"), 1).predict(x)


def test_values_beyond_those_of_calibration_are_cut_off(exported):
    x = images(4).numpy()
    runner = Runner(exported("auto"), 1)
    np.testing.assert_allclose(runner.forward(1e4 * x), runner.forward(1e6 * x), atol=1e-5)


def test_openvino_gives_the_same_answers(exported):
    pytest.importorskip("openvino")
    x = images(30, 3).numpy()
    wanted = Runner(exported("auto"), 1).forward(x)
    got = Runner(exported("auto"), 1, backend="openvino").forward(x)
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.999


def test_the_calibration_keeps_the_first_rows_alone(model, tmp_path):
    """Rows behind the first 256 are compared and change no scale."""
    folders = []
    for name, more in (("small", 0.5), ("large", 100.0)):
        rows = [images(256), more * images(10, 2)]
        folders.append(tmp_path / name)
        first = mx.keep_exits(model, [0])
        mx.export(first, folders[-1], mx.FixedExit(0), int8=True, rows=rows, agreement=0)
    one, other = ((folder / "exit-0.onnx").read_bytes() for folder in folders)
    assert one == other
    said = [json.loads((folder / "export.json").read_text())["parity"] for folder in folders]
    assert said[0]["rows"] == said[1]["rows"] == 266
