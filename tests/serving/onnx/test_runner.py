"""The runner alone: int8 by hand, rows that are checked, damaged folders, streams that stall."""

import copy
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

import multiexit as mx
from multiexit.serving.onnx import int8
from multiexit_runner import Runner
from multiexit_runner.folder import seal
from multiexit_runner.reading import windows

pytestmark = pytest.mark.usefixtures("onnx_operators")

WIDTH = 64


@pytest.fixture(scope="module")
def exported(once):
    """Folders of one network: float, int8 for any CPU, and int8 of its first exit for VNNI."""
    return once("runner", _export)


def _export(root):
    torch.manual_seed(0)
    stages = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(2))
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(*stages)), 3, head="linear").eval()
    policy = mx.MaxProb(0.4).with_certificate(mx.Certificate("accuracy", 0.1, 0.9, 50, 0.0))
    mx.export(model, root / "float", policy)
    mx.export(model, root / "auto", policy, int8=True)
    first = mx.keep_exits(model, [0])
    mx.export(first, root / "vnni", mx.MaxProb(0.4), int8=True, target="vnni")


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(exported / "float", tmp_path / "graphs"))


def test_files_have_the_permissions_of_the_users_umask(exported):
    mask = os.umask(0)
    os.umask(mask)
    folder = exported / "auto"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_certificate_is_of_the_float_model(exported):
    said = [json.loads((exported / name / "export.json").read_text()) for name in ("float", "auto")]
    assert ["certificate" in settings["policy"] for settings in said] == [True, False]
    precisions = [Runner(exported / name, 1).runtime["precision"] for name in ("float", "auto")]
    assert precisions == ["float32", "int8"]


def _batches(count, rows=4):
    x = np.random.default_rng(0).standard_normal((count, rows, WIDTH)).astype(np.float32)
    return list(x)


# int8


def _saturated(q_BK, Q_KN):
    """`q @ Q` as vpmaddubsw adds it: neighbouring products in 16 bits, cut at the ends."""
    products = q_BK[:, :, None].astype(np.int64) * Q_KN
    return products.reshape(len(q_BK), -1, 2, Q_KN.shape[1]).sum(2).clip(-(2**15), 2**15 - 1).sum(1)


def _products(path):
    """Each integer product's 8-bit weights and their scales, in order."""
    graph = onnx.load(path).graph
    values = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    return [
        (values[node.input[1]], values[node.input[1].removesuffix("int8") + "scale"])
        for node in graph.node
        if node.op_type == "MatMulIntegerToFloat"
    ]


@pytest.mark.parametrize(("target", "right"), [("auto", True), ("vnni", False)])
def test_sixteen_bits_hold_what_auto_multiplies(exported, target, right):
    """On CPUs without VNNI neighbours are added in 16 bits."""
    graphs = sorted((exported / target).glob("exit-*.onnx"))
    weights = [Q_KN for graph in graphs for Q_KN, _ in _products(graph)]
    assert len(weights) == len(graphs) > 0  # a head's three outputs stay float
    exact = True
    for Q_KN in weights:
        assert Q_KN.dtype == np.int8
        assert Q_KN.min() >= -127
        # The worst activations there are: all of them at the top where weights have one sign.
        for q_BK in (np.full((1, WIDTH), 255), 255 * (Q_KN.T > 0), 255 * (Q_KN.T < 0)):
            exact &= bool((_saturated(q_BK, Q_KN) == q_BK.astype(np.int64) @ Q_KN).all())
    assert exact == right


def test_int8_by_hand(exported):
    """The first exit's logits, worked out in numpy."""
    (x_BK,) = _batches(1)
    values = {
        value.name: numpy_helper.to_array(value)
        for value in onnx.load(exported / "float" / "exit-0.onnx").graph.initializer
    }
    biases = [value for name, value in sorted(values.items()) if name.endswith("bias")]
    ((Q_KN, t_N),) = _products(exported / "auto" / "exit-0.onnx")
    s_B1 = np.abs(x_BK).max(1, keepdims=True) / 127
    product_BN = s_B1 * (np.rint(x_BK / s_B1).astype(np.int64) @ Q_KN) * t_N
    by_size = {len(bias): bias for bias in biases}
    (head_CN,) = (value for value in values.values() if value.shape == (3, WIDTH))
    hidden_BN = np.maximum(product_BN + by_size[WIDTH], 0)
    logits_BC = hidden_BN @ head_CN.T + by_size[3]  # so few outputs stay float
    got = Runner(exported / "auto").forward(x_BK)[0]
    np.testing.assert_allclose(got, logits_BC, atol=1e-5)
    apart = np.abs(got - Runner(exported / "float").forward(x_BK)[0]).max()
    assert 1e-5 < apart < 0.02


@pytest.mark.parametrize("odd", [7, 8])
def test_scales_use_all_the_bits_there_are(odd):
    weight_KN = np.random.default_rng(0).standard_normal((odd, 500)).astype(np.float32)
    for wide in (True, False):
        Q_KN = np.rint(weight_KN / int8.scales(weight_KN, wide))
        pairs = np.pad(Q_KN, [(0, odd % 2), (0, 0)]).reshape(-1, 2, 500)
        sums = np.maximum(pairs.clip(min=0).sum(1), (-pairs).clip(min=0).sum(1)).max(0)
        assert np.abs(Q_KN).max() <= 127
        assert (sums.max() <= 128) == (not wide)
        assert ((np.abs(Q_KN).max(0) if wide else sums) >= 126).all()
    assert (int8.scales(0 * weight_KN, False) > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_nan_in_int8(exported, value):
    (x,) = _batches(1)
    x[2, 5] = value
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 2"):
        Runner(exported / "auto").predict(x)


# Rows that are checked when a runner is made


def _change(folder, name, change):
    """Change a file and write the checksums anew, as an attacker would."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    seal(folder)


def test_a_machine_that_answers_otherwise_is_refused(exported, tmp_path):
    """int8 for VNNI on a CPU that cuts at 16 bits: the kept rows come out otherwise."""
    folder = Path(shutil.copytree(exported / "vnni", tmp_path / "graphs"))
    with np.load(folder / "check.npz") as kept:
        arrays = {name: kept[name] for name in kept.files}
    assert arrays["float"].shape == (1, 4, 3)
    allowed = max(0.01, 2 * np.abs(arrays["exported"] - arrays["float"]).max())
    for shift, refused in ((0.9 * allowed, False), (1.1 * allowed, True), (np.nan, True)):
        moved = {name: arrays[name].copy() for name in ("float", "exported")}
        for logits_MBC in moved.values():
            logits_MBC[0, 2, 0] += shift
        np.savez(folder / "check.npz", **{**arrays, **moved})
        seal(folder)
        if not refused:
            Runner(folder)
            continue
        message = (
            "finite" if np.isnan(shift) else r"other answers.*differ by up to 0\.0[1-9]\d?.*VNNI"
        )
        with pytest.raises(ValueError, match=message):
            Runner(folder)
        assert Runner(folder, check=False).predict(_batches(1)[0]).exit_B.shape == (4,)


def test_the_rows_given_are_kept(tmp_path):
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(nn.Linear(6, 6))), 3).eval()
    rows = [torch.rand(7, 6), torch.rand(2, 6)]
    parity = mx.export(model, tmp_path / "out", mx.FixedExit(0), rows=rows)
    assert (parity.rows, parity.same_answer_alone) == (9, 1.0)
    assert parity.largest_difference_alone < 1e-5
    with np.load(tmp_path / "out" / "check.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["input.x"], rows[0][:4])
        np.testing.assert_allclose(kept["float"], model(rows[0][:4]).detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"providers": ["CUDAExecutionProvider2"]}, "no provider 'CUDAExecutionProvider2'.*CPUEx"),
        ({"providers": []}, "must be a list of names"),
        ({"providers": "CPUExecutionProvider"}, "must be a list of names"),
        ({"providers": [7]}, "must be a list of names"),
        ({"threads": 1.5}, "threads must be a whole number"),
        ({"threads": True}, "threads must be a whole number"),
        ({"check": "no"}, "True or False"),
    ],
)
def test_wrong_arguments_are_refused(exported, arguments, message):
    with pytest.raises(ValueError, match=message):
        Runner(exported / "float", **arguments)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e39, True, "0.5", None, [1]])
def test_knobs_are_finite_numbers(exported, number):
    runner = Runner(exported / "float")
    with pytest.raises(ValueError, match=r"threshold is .* must be a finite number"):
        runner.set(threshold=number)
    assert runner.knobs == {"threshold": 0.4}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("treshold", r"'treshold': did you mean 'threshold'\? This policy has threshold"),
        ("x", "no number 'x'; this policy has threshold"),
    ],
)
def test_unknown_knobs_are_named_beside_the_nearest(exported, name, message):
    with pytest.raises(ValueError, match=message):
        Runner(exported / "float").set(**{name: 0.5})


# Damaged folders


WRONG = [None, True, -1, 1.5, 10**30, float("nan"), "", "../x", [], {"x": {}}, [[]]]


def _places(tree, path=()):
    """All places in plain data."""
    yield path
    pairs = enumerate(tree) if isinstance(tree, list) else ()
    for key, value in tree.items() if isinstance(tree, dict) else pairs:
        yield from _places(value, (*path, key))


def _changed(settings):
    """Every place with every wrong value, or gone."""
    for path in _places(settings):
        for value in [*WRONG, "gone"]:
            tree = copy.deepcopy({"": settings})
            here = tree
            for key in ("", *path)[:-1]:
                here = here[key]
            last = ("", *path)[-1]
            if value == "gone":
                del here[last]
            else:
                here[last] = value
            yield path, value, tree.get("")


def _ends_well(folder, what, **arguments):
    """A runner is made and answers, or there is a ValueError with a message."""
    try:
        runner = Runner(folder, threads=1, **arguments)
        assert runner.predict(_batches(1)[0]).logits_BC.shape == (4, 3)
        assert all(np.isfinite(number) for number in runner.knobs.values())
    except ValueError:
        return False
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    return True


def test_any_changed_setting_is_answered_or_refused(folder):
    settings = json.loads((folder / "export.json").read_text())
    tried = answered = 0
    for path, value, changed in _changed(settings):
        _change(folder, "export.json", lambda _, data=changed: json.dumps(data).encode())
        tried, answered = tried + 1, answered + _ends_well(folder, (path, value))
    assert tried > 500
    assert answered < tried / 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "export.json"),
        (b"\xff\xfe{}", "export.json"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
        (b'{"format": 2, "format": 2}', "'format' is there twice"),
        (b'{"format": NaN}', "NaN is no JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "export.json"),
        (b"[]", "the whole is .* a JSON object"),
        (b'{"format": true}', "format True"),
    ],
)
def test_settings_that_are_no_settings(folder, text, message):
    _change(folder, "export.json", lambda _: text)
    with pytest.raises(ValueError, match=message):
        Runner(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("segments", 0, "file"), "../exit-0.onnx", r"segments\[0\].file is '../exit-0.onnx'"),
        (("segments", 0, "file"), "/etc/passwd", "a plain file name"),
        (("segments", 0, "file"), "other.onnx", "is missing|can't be read"),
        (("segments", 0, "outputs"), ["logits"], r"names with \['logits', 'stop'\]"),
        (("knobs", "threshold"), 1e39, "knobs.threshold is 1e.39; it must be a finite number"),
        (("knobs", "threshold"), 1, "reads policy.threshold as tensor.float., but export.json"),
        (("num_classes",), 10**12, r"says num_classes is 1000000000000"),
        (("labels",), ["a"], "null or 3 strings"),
        (("inputs", "x", "dtype"), "float64", "one of int64, int32"),
    ],
)
def test_a_setting_is_named_with_what_is_right(folder, path, value, message):
    settings = json.loads((folder / "export.json").read_text())
    here = settings
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    _change(folder, "export.json", lambda _: json.dumps(settings).encode())
    with pytest.raises(ValueError, match=message):
        Runner(folder)


def test_what_is_not_listed_is_not_run(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    for name in ("exit-1.onnx", "export.json", "check.npz"):
        kept = [line for line in lines if not line.endswith(f"  {name}\n")]
        (folder / "SHA256SUMS").write_text("".join(kept))
        with pytest.raises(ValueError, match=f"{name}.* (is not the file|isn't listed)"):
            Runner(folder)


@pytest.mark.parametrize(
    "line",
    ["0" * 64 + "  ../x", "0" * 64 + "  /etc/passwd", "0" * 64 + "  a/b", "x  exit-0.onnx", "",
     "0" * 64 + "  exit-0.onnx", "0" * 64 + "  .."],
)  # fmt: skip
def test_names_are_plain(folder, line):
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 5 is"):
        Runner(folder)


@pytest.mark.parametrize("name", ["exit-0.onnx", "export.json", "check.npz", "SHA256SUMS"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "link out", "link to itself", "device", "gone"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX file system")
def test_what_is_no_file_of_the_folder(folder, name, kind):
    path = folder / name
    elsewhere = folder.parent / "elsewhere"
    path.rename(elsewhere)
    makes = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link out": lambda: path.symlink_to(elsewhere),
        "link to itself": lambda: path.symlink_to(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "gone": lambda: None,
    }
    makes[kind]()
    with pytest.raises(ValueError, match=name):
        Runner(folder)


@pytest.mark.parametrize("name", ["exit-0.onnx", "exit-1.onnx", "check.npz", "SHA256SUMS"])
def test_any_flipped_or_missing_bytes_are_answered_or_refused(folder, name):
    """With checksums that fit: whoever changes a graph can write those too."""
    good = (folder / name).read_bytes()
    generator = np.random.default_rng(0)
    for at in [*range(0, 60, 3), *generator.integers(0, len(good), 20)]:
        for change in (
            lambda data, at=at: data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :],
            lambda data, at=at: data[:at],
        ):
            (folder / name).write_bytes(change(good))
            if name != "SHA256SUMS":
                seal(folder)
            _ends_well(folder, (name, at))


def test_weights_in_other_files_are_refused(folder):
    (folder.parent / "secret").write_bytes(b"\0" * 4 * WIDTH * WIDTH)
    graph = onnx.load(folder / "exit-0.onnx")
    weight = max(graph.graph.initializer, key=lambda value: len(value.raw_data))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    _change(folder, "exit-0.onnx", lambda _: graph.SerializeToString())
    with pytest.raises(ValueError, match="weights in another file"):
        Runner(folder)


def test_compressed_rows_are_refused(folder):
    with np.load(folder / "check.npz") as kept:
        np.savez_compressed(folder / "check.npz", **dict(kept))
    seal(folder)
    with pytest.raises(ValueError, match="compressed"):
        Runner(folder)


@pytest.mark.parametrize("folder", [None, 7, "\0", "x" * 5000, "/dev/null", "/nowhere"])
def test_no_folder_at_all(folder):
    with pytest.raises(ValueError, match=r"no (such )?folder|no SHA256SUMS|null byte"):
        Runner(folder)


# Streams


def test_a_source_that_stalls_holds_nothing_back(exported):
    runner, go = Runner(exported / "float", threads=1), threading.Event()
    batches = _batches(4)

    def source():
        yield from batches[:3]
        assert go.wait(60)
        yield batches[3]

    answers = runner.stream(source())
    for batch in batches[:3]:
        np.testing.assert_array_equal(next(answers).exit_B, runner.predict(batch).exit_B)
    go.set()
    assert len(list(answers)) == 1


def test_no_more_than_a_window_is_read_ahead(exported):
    runner, read = Runner(exported / "float", threads=1), []

    def source():
        for number, batch in enumerate(_batches(9)):
            read.append(number)
            yield batch

    for answered, _ in enumerate(runner.stream(source(), window=3)):
        assert len(read) <= answered // 3 * 3 + 3  # a window is out before the next is begun


def test_good_answers_come_before_an_error(exported):
    runner = Runner(exported / "float", threads=1)
    whole = _batches(12)

    def failing():
        yield from whole[:5]
        raise OSError("the disk is gone")

    nan = [batch.copy() for batch in whole]
    nan[10][3, 0] = nan[11][0, 0] = np.nan
    short = [*whole[:9], whole[9][:, :5], *whole[10:]]
    for batches, error, message, good in (
        (failing(), OSError, "the disk is gone", 5),
        (nan, ValueError, "logits for row 43 of the stream", 10),
        (short, ValueError, r"batch 9 of the stream: x must be .* \[4, 5\]", 9),
        ([*whole, None], ValueError, "batch 12 of the stream", 12),
    ):
        answers = []
        with pytest.raises(error, match=message):
            answers.extend(runner.stream(batches))
        assert len(answers) == good
        for answer, batch in zip(answers, whole, strict=False):
            wanted = runner.predict(batch)
            np.testing.assert_array_equal(answer.exit_B, wanted.exit_B)
            np.testing.assert_allclose(answer.logits_BC, wanted.logits_BC, atol=1e-5)


@pytest.mark.parametrize("name", ["batch_size", "window"])
@pytest.mark.parametrize("value", [1.5, True, "8", None, 0, -1, float("nan"), [8]])
def test_sizes_are_checked_at_once(exported, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number and at least 1"):
        Runner(exported / "float").stream(_batches(1), **{name: value})


@pytest.mark.parametrize("batches", [None, 7, "x", {"x": 1}, np.zeros((2, WIDTH))])
def test_a_stream_needs_batches(exported, batches):
    with pytest.raises(ValueError, match="an iterable of batches"):
        Runner(exported / "float").stream(batches)


def test_a_stream_keeps_the_numbers_it_began_with(exported):
    runner = Runner(exported / "float", threads=1)
    runner.set(threshold=1.0)
    answers = runner.stream(_batches(4), window=1)
    next(answers)
    runner.set(threshold=0.0)
    assert all((answer.exit_B == 1).all() for answer in answers)
    assert (runner.predict(_batches(1)[0]).exit_B == 0).all()


class OneArray:
    """Things that all lie in one array, in turn."""

    def __init__(self, arrays, given):
        self.arrays, self.buffer, self.given = arrays, np.empty_like(arrays[0]), given

    def __len__(self):
        return len(self.arrays)

    def __iter__(self):
        for array in self.arrays:
            self.buffer[:] = array
            yield self.given(self.buffer)


@pytest.mark.parametrize("as_source", [iter, lambda source: source], ids=["generator", "sized"])
def test_a_source_may_fill_one_array_again(exported, as_source):
    runner, batches = Runner(exported / "float", threads=1), _batches(6)
    numbers = [np.linspace(0, 1, len(batches[0])) + place / 7 - 0.4 for place in range(6)]
    numbers = [np.clip(each, 0, 1) for each in numbers]
    together = runner.stream(
        as_source(OneArray(batches, lambda x: {"x": x})),
        knobs=as_source(OneArray(numbers, lambda given: {"threshold": given})),
    )
    for batch, threshold_B, answer in zip(batches, numbers, together, strict=True):
        wanted = runner.predict(batch, knobs={"threshold": threshold_B})
        np.testing.assert_array_equal(answer.exit_B, wanted.exit_B)
        np.testing.assert_allclose(answer.logits_BC, wanted.logits_BC, atol=1e-5)


def test_a_reader_that_is_no_longer_needed_ends():
    def forever():
        while True:
            yield 0

    reading = windows(forever(), 2)
    assert next(reading).batches == [0, 0]
    reading.close()
    for thread in threading.enumerate():
        if thread.name == "multiexit-stream":
            thread.join(10)
            assert not thread.is_alive()


def test_each_row_has_numbers_and_a_last_exit_of_its_own(exported):
    runner, (batch,) = Runner(exported / "float", threads=1), _batches(1, rows=8)
    threshold_B = np.linspace(0.0, 1.0, 8)
    last_B = np.array([1, 1, 1, 1, 0, 1, 0, 1])
    together = runner.predict(batch, knobs={"threshold": threshold_B}, max_exit=last_B)
    for row in range(8):
        alone = copy.copy(runner)
        alone.set(threshold=threshold_B[row])
        answer = alone.predict(batch[row : row + 1])
        exit = min(int(answer.exit_B[0]), int(last_B[row]))
        assert together.exit_B[row] == exit
        logits_MBC = runner.forward(batch[row : row + 1])
        np.testing.assert_allclose(together.logits_BC[row], logits_MBC[exit, 0], atol=1e-5)
    assert {*together.exit_B.tolist()} == {0, 1}
    assert runner.predict(batch).exit_B.tolist() == runner.predict(batch, knobs={}).exit_B.tolist()


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=8),
    batch_size=st.integers(1, 9),
    window=st.integers(1, 5),
    data=st.data(),
)
def test_batches_and_rows_of_a_stream_have_numbers_of_their_own(
    exported, sizes, batch_size, window, data
):
    runner = Runner(exported / "float", threads=1, check=False)
    batches = [batch[:size] for size, batch in zip(sizes, _batches(8, rows=7), strict=False)]
    number = st.floats(0, 1)
    own = []
    for size in sizes:
        each = number | st.lists(number, min_size=size, max_size=size).map(np.array)
        own.append(data.draw(st.none() | st.just({}) | st.builds(dict, threshold=each)))
    whole = {"threshold": data.draw(number)}
    given, wanted = data.draw(
        st.sampled_from([(own, own), (iter(own), own), (whole, [whole] * len(sizes))])
    )
    answers = runner.stream(batches, batch_size, window, knobs=given)
    for batch, knobs, answer in zip(batches, wanted, answers, strict=True):
        alone = runner.predict(batch, knobs=knobs)
        np.testing.assert_array_equal(answer.exit_B, alone.exit_B)
        np.testing.assert_allclose(answer.logits_BC, alone.logits_BC, atol=1e-5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("threshold", "numbers by name, such as {'threshold': 0.4.*; got 'threshold'"),
        (0.5, "or an iterable with those of each batch; got 0.5"),
        ({"treshold": 0.5}, "did you mean 'threshold'"),
        ({"threshold": 30}, "threshold is 30; it must be from"),
        ({"threshold": [0.5] * 4}, "threshold must be one number for the whole stream"),
        ([{"threshold": 0.5}] * 8, "the stream has 4 batches, and knobs 8 items"),
    ],
)
def test_numbers_of_a_stream_are_checked_when_it_is_asked_for(exported, knobs, message):
    with pytest.raises(ValueError, match=message):
        Runner(exported / "float", threads=1).stream(_batches(4), knobs=knobs)


@pytest.mark.parametrize(
    ("knobs", "good", "message"),
    [
        (iter([None] * 3), 3, "batch 3 of the stream: knobs has ended"),
        (iter([None] * 5), 4, "knobs goes on behind the stream's 4 batches"),
        ([None, {}, {"threshold": 30}, {}], 2, "batch 2 of the stream: threshold is 30"),
        ([None, {"threshold": [0.5]}, {}, {}], 1, "batch 1 of the stream: .* each of 4 rows"),
        ([0.5] * 4, 0, "batch 0 of the stream: knobs are numbers by name, .*; got 0.5"),
    ],
)
def test_good_answers_come_before_numbers_that_won_t_do(exported, knobs, good, message):
    answers = []
    with pytest.raises(ValueError, match=message):
        answers.extend(Runner(exported / "float", threads=1).stream(_batches(4), knobs=knobs))
    assert len(answers) == good


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"knobs": {"treshold": 0.5}}, "did you mean 'threshold'"),
        ({"knobs": {"threshold": [0.5, 0.6]}}, r"one for each of 4 rows; got shape \[2\]"),
        ({"knobs": {"threshold": [0.5, 0.6, np.nan, 0.5]}}, "threshold is nan"),
        ({"max_exit": 9}, "max_exit must be from 0 to 1; got 9"),
        ({"max_exit": 1.0}, "max_exit must be the index of an exit"),
        ({"max_exit": [0, 1]}, "one for each of 4 rows"),
    ],
)
def test_numbers_of_rows_are_checked(exported, arguments, message):
    with pytest.raises(ValueError, match=message):
        Runner(exported / "float", threads=1).predict(_batches(1)[0], **arguments)
