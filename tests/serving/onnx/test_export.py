"""Exported graphs say what the model says, without torch, and refuse what they weren't made for."""

import copy
import json
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import timm
import torch
import torchvision
from helpers import ROOT, command
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AlbertConfig,
    BertConfig,
    BertTokenizerFast,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    MobileBertModel,
    RobertaConfig,
)
from transformers import AutoModel as Auto

import multiexit as mx
from multiexit_runner import Runner
from multiexit_runner.folder import seal

pytestmark = pytest.mark.usefixtures("onnx_operators")

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
LAYERS = {"num_hidden_layers": 3, "max_position_embeddings": 40}
BERT = {**SIZES, **LAYERS, "initializer_range": 0.5}
DISTIL = {"vocab_size": 60, "dim": 16, "n_heads": 2, "hidden_dim": 32, "n_layers": 2}
CONFIGS = {
    "bert": lambda: BertConfig(**BERT),
    "albert": lambda: AlbertConfig(**BERT, embedding_size=8),
    "distilbert": lambda: DistilBertConfig(
        **DISTIL, max_position_embeddings=40, initializer_range=0.5
    ),
    "roberta": lambda: RobertaConfig(**BERT, type_vocab_size=1),
    "electra": lambda: ElectraConfig(**BERT, embedding_size=8),
}


@dataclass(frozen=True)
class Rising(mx.ExitPolicy):
    """A user's: stop when the margin grew `times` times by a factor; `strict` is a decision."""

    factor: float
    times: int
    strict: int

    def init(self, logits_BC):
        return {
            "margin": logits_BC.new_zeros(len(logits_BC)),
            "rose": logits_BC.new_zeros(len(logits_BC)),
        }

    def step(self, state, logits_BC):
        top = logits_BC.softmax(-1).topk(2).values
        margin_B = top[:, 0] - top[:, 1]
        grown_B = margin_B > self.factor * state["margin"]
        rose_B = state["rose"] + grown_B
        if not self.strict:
            rose_B = rose_B + 1
        return {"margin": margin_B, "rose": rose_B}, rose_B >= self.times


class Nested(mx.Backbone):
    """A user's backbone: a nested carry with constants, None, and an input handed through."""

    def __init__(self, count_rows=False, tampered=False):
        super().__init__([(6,)] * 3)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.count_rows, self.tampered = count_rows, tampered

    def start(self, x, shift):
        size = len(x) if self.count_rows else 2
        return {"x": x, "side": {"shift": shift, "none": None}, "size": size}

    def stage(self, carry, index):
        scale = 2 if carry["size"] > 0 else 1
        x = torch.tanh(self.layers[index](carry["x"])) * scale + carry["side"]["shift"]
        if self.tampered and torch.compiler.is_compiling():
            x = x + 0.01
        return {**carry, "x": x}, x

    def stage_module(self, index):
        return self.layers[index]

    def example_inputs(self, batch=1):
        return {"x": torch.zeros(batch, 6), "shift": torch.zeros(batch, 1)}


def _text(kind):
    return mx.wrap(Auto.from_config(CONFIGS[kind]()))


def _mlp():
    return mx.wrap(nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))))


def _vit():
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return mx.wrap(timm.models.VisionTransformer(**size), input_shape=(3, 16, 16))


def _basic(layers):
    net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, layers)
    return mx.wrap(net, input_shape=(3, 32, 32))


CASES = {
    "bert, mean, a threshold per exit": (
        lambda: _text("bert"), "pooler", [0, 1], mx.MaxProb((0.7,))),
    "albert": (lambda: _text("albert"), "linear", [0, 1], mx.MaxProb(0.5)),
    "distilbert, attention": (
        lambda: _text("distilbert"), "attention", [0, 1], mx.Entropy(1.0)),
    "roberta, learned": (lambda: _text("roberta"), "pooler+lte", [0, 1], mx.Certainty(0.5)),
    "electra": (lambda: _text("electra"), "linear", [0, 1], mx.PatientConfident(0.9, 1)),
    "cifar, mixed-pool": (
        lambda: mx.cifar_resnet(20), "mixed-pool", [0, 1], mx.MostConfident(0.4)),
    "vit of timm, mix": (_vit, "linear+mix", [0, 1], mx.Margin(0.1)),
    "resnet of timm": (
        lambda: mx.wrap(timm.create_model("resnet10t", num_classes=0), input_shape=(3, 32, 32)),
        "linear", [0, 1], mx.NormalizedEntropy(0.95)),
    "resnet of torchvision": (lambda: _basic([1, 1, 1, 1]), "own-pooler", [0, 1], mx.FixedExit(0)),
    "mlp, cascade, a user's policy": (_mlp, "linear+cascade", [0, 1, 2], Rising(1.1, 2, 1)),
    "mlp, regression": (_mlp, "linear", [0, 1, 2], mx.Patience(1, 0.3)),
    "mlp, gates": (_mlp, "linear+gates", [0, 1, 2], mx.Certainty(0.5)),
    "mlp, product": (_mlp, "linear", [0, 1, 2], mx.ProductOfExperts(0.5)),
    "mlp, beem": (_mlp, "linear", [0, 1, 2], mx.Beem(0.2)),
    "mlp, beem, a weight per exit": (
        _mlp, "linear", [0, 1, 2], mx.Beem((0.1, 0.3), (0.5, 0.9, 1.0))),
    "a user's backbone": (Nested, "linear", [0, 1, 2], mx.MaxProb(0.5)),
}  # fmt: skip


def _model(make, head, exits, classes=3):
    torch.manual_seed(0)
    pool = "mean" if head == "pooler" else None
    model = mx.MultiExitModel(make(), classes, exits, head, pool).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, mx.heads.Vote):
            module.on.fill_(True)
    return model


def _spread(model, policy):
    """Tell rows apart: centre and scale the exits' logits, and take the threshold at which most
    exits have leavers."""
    inputs = _inputs(model, 40)
    with torch.no_grad():
        for m, head in enumerate(model.heads):
            getattr(head, "base", head).linear.bias -= model(**inputs)[m].mean(0)
        model.temperature_M.copy_(model(**inputs).std((1, 2)))
    if not isinstance(getattr(policy, "threshold", None), float):
        return policy
    each = [replace(policy, threshold=t / 50) for t in range(1, 50)]
    return max(each, key=lambda one: float(model.predict(one, **inputs).exit_B.float().std()))


def _inputs(model, rows, tokens=9):
    """Other inputs than those the export draws itself."""
    example = model.backbone.example_inputs(rows)
    if "input_ids" not in example:
        return {name: torch.randn(value.shape) for name, value in example.items()}
    mask = torch.arange(tokens) < torch.randint(1, tokens - 1, (rows, 1))  # two columns too many
    made = {"input_ids": torch.randint(5, 60, mask.shape) * mask, "attention_mask": mask.long()}
    if model.backbone.config.model_type in ("bert", "albert", "electra"):
        made["token_type_ids"] = torch.randint(2, mask.shape)
    return made


def _arrays(inputs):
    return {name: value.numpy() for name, value in inputs.items()}


def _assert_same(model, policy, runner, inputs):
    wanted, got = model.predict(policy, **inputs), runner.predict(**_arrays(inputs))
    np.testing.assert_array_equal(got.exit_B, wanted.exit_B)
    np.testing.assert_allclose(got.logits_BC, wanted.logits_BC, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def exported(once):
    """`exported(name)`: a case's model, its policy and its folder, made once."""

    @cache
    def get(name):
        make, head, exits, policy = CASES[name]
        model = _model(make, head, exits, 1 if "regression" in name else 3)
        policy = _spread(model, policy)
        folder = once(f"export {name}", lambda folder: mx.export(model, folder, policy))
        return SimpleNamespace(model=model, policy=policy, folder=folder)

    return get


@pytest.mark.parametrize("name", CASES)
def test_says_what_the_model_says(exported, name):
    case = exported(name)
    runner = Runner(case.folder, threads=1)
    for rows in (1, 2, 13):
        _assert_same(case.model, case.policy, runner, _inputs(case.model, rows))
    inputs = _inputs(case.model, 7)
    logits_MBC = case.model(**inputs).detach()
    np.testing.assert_allclose(runner.forward(**_arrays(inputs)), logits_MBC, atol=2e-5, rtol=1e-4)
    exit_B = runner.predict(**_arrays(_inputs(case.model, 40))).exit_B
    assert len(set(exit_B)) > 1 or name == "resnet of torchvision"  # some leave early, some don't


def test_what_is_carried_is_what_is_read(exported):
    segments = Runner(exported("a user's backbone").folder).settings["segments"]
    assert segments[1]["inputs"] == ["carry.x", "carry.side.shift", "policy.threshold"]
    assert segments[0]["outputs"] == ["logits", "stop", "carry.x", "carry.side.shift"]
    assert segments[1]["outputs"] == ["logits", "stop", "carry.x"]  # the shift stays as it was
    assert segments[2]["outputs"] == ["logits"]
    cascade = Runner(exported("mlp, cascade, a user's policy").folder).settings["segments"]
    assert "memory.log_p" in cascade[1]["inputs"]
    assert cascade[2]["inputs"] == ["carry.x"]


def test_the_policys_numbers_can_be_turned(exported):
    case = exported("a user's backbone")
    runner = Runner(case.folder)
    inputs = _inputs(case.model, 50)
    exits = []
    for threshold in (0.4, 0.6, 0.9):
        runner.set(threshold=np.float32(threshold))
        _assert_same(case.model, mx.MaxProb(threshold), runner, inputs)
        exits.append(runner.predict(**_arrays(inputs)).exit_B.mean())
    assert exits[0] < exits[1] < exits[2]
    assert runner.knobs == {"threshold": float(np.float32(0.9))}
    runner.set(threshold=0.9)
    for wrong, message in (
        ({"thresh": 1}, "thresh"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": 30}, r"threshold is 30; it must be from -0\.1 to 1\.1"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.set(**wrong)
        with pytest.raises(ValueError, match=message):
            runner.predict(**_arrays(inputs), knobs=wrong)
    assert runner.knobs == {"threshold": 0.9}
    for again in (pickle.loads(pickle.dumps(runner)), copy.deepcopy(runner)):
        assert again.knobs == {"threshold": 0.9}
        _assert_same(case.model, mx.MaxProb(0.9), again, inputs)
        again.set(threshold=0.4)
    assert runner.knobs == {"threshold": 0.9}


def test_numbers_outside_of_the_policys_range_are_refused(exported, tmp_path):
    folder = _copied(exported("mlp, regression").folder, tmp_path / "graphs")
    runner = Runner(folder)
    runner.set(patience=np.int64(2))
    for number in (0, -3, 2**40):
        with pytest.raises(ValueError, match=rf"patience is {number}; it must be from 1 to"):
            runner.set(patience=number)
    assert runner.knobs["patience"] == 2
    path = folder / "export.json"
    said = json.loads(path.read_text())
    del said["ranges"], said["scales"]  # as older folders
    path.write_text(json.dumps(said))
    seal(folder)
    assert Runner(folder).knobs["patience"] == 1
    path.write_text(json.dumps({**said, "ranges": {"patience": [2, 3]}}))
    seal(folder)
    with pytest.raises(ValueError, match=r"knobs\.patience is 1; it must be from 2 to 3"):
        Runner(folder)


def test_a_users_policy_can_be_turned_where_it_is_no_python_decision(exported, tmp_path):
    case = exported("mlp, cascade, a user's policy")
    runner = Runner(case.folder)
    assert runner.knobs == {"factor": 1.1, "times": 2}  # `strict` is built in
    runner.set(factor=0.5, times=1)
    _assert_same(case.model, Rising(0.5, 1, 1), runner, _inputs(case.model, 40))
    with pytest.raises(ValueError, match="whole"):
        runner.set(times=1.5)
    with pytest.warns(UserWarning, match="Rising's strict can't be turned in the export"):
        mx.export(_model(_mlp, "linear", 2), tmp_path / "small", case.policy)
    assert Runner(exported("bert, mean, a threshold per exit").folder).knobs == {}


def watched(runner):
    """A runner's sessions, and what they will have seen: exit and rows of each call."""
    seen = []

    class Watched:
        def __init__(self, exit, session):
            self.exit, self.session = exit, session

        def run(self, names, feed):
            seen.append((self.exit, len(feed["x" if "x" in feed else "carry.x"])))
            return self.session.run(names, feed)

    return [Watched(*each) for each in enumerate(runner._sessions)], seen


def test_rows_that_stopped_are_not_run_again(exported):
    case = exported("a user's backbone")
    runner = Runner(case.folder)
    runner._sessions, seen = watched(runner)
    exit_B = runner.predict(**_arrays(_inputs(case.model, 50))).exit_B
    assert seen == [(0, 50), (1, (exit_B > 0).sum()), (2, (exit_B > 1).sum())]
    seen.clear()
    runner.set(threshold=0.0)
    runner.predict(**_arrays(_inputs(case.model, 50)))
    assert seen == [(0, 50)]


@pytest.mark.parametrize("name", CASES)
def test_a_stream_says_what_predict_says_and_runs_fuller(exported, name):
    case = exported(name)
    runner = Runner(case.folder, threads=1)
    arrays = _arrays(_inputs(case.model, 41))
    wanted = runner.predict(**arrays)
    bounds = [0, 1, 1, 9, 14, 30, 41]  # one of them is empty
    cut = [{k: v[a:b] for k, v in arrays.items()} for a, b in pairwise(bounds)]
    for window in (1, 4, 9):
        answers = list(runner.stream(cut, batch_size=8, window=window))
        assert [len(answer.exit_B) for answer in answers] == [b - a for a, b in pairwise(bounds)]
        logits_BC, exit_B = map(np.concatenate, zip(*answers, strict=True))
        np.testing.assert_array_equal(exit_B, wanted.exit_B)
        np.testing.assert_allclose(logits_BC, wanted.logits_BC, atol=2e-5, rtol=1e-4)
    if len(arrays) == 1:
        (alone,) = arrays.values()
        (answer,) = runner.stream([alone], batch_size=41)
        np.testing.assert_array_equal(answer.exit_B, wanted.exit_B)


def test_a_stream_fills_deep_graphs(exported):
    case = exported("a user's backbone")
    runner = Runner(case.folder)
    runner._sessions, seen = watched(runner)
    arrays = _arrays(_inputs(case.model, 64))
    cut = [{k: v[at : at + 4] for k, v in arrays.items()} for at in range(0, 64, 4)]
    exits = [answer.exit_B for answer in runner.stream(cut, batch_size=8, window=16)]
    deeper = int((np.concatenate(exits) > 0).sum())
    assert [exit for exit, _ in seen].count(0) == 8
    assert [exit for exit, _ in seen].count(1) <= deeper // 8 + 1 < 8
    for wrong in ({"batch_size": 0}, {"window": 0}):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            next(runner.stream(cut, **wrong))


def test_a_network_that_reads_its_padding_is_refused_by_that_name(tmp_path):
    """MobileBERT, in which a token sees its neighbours' embeddings, real or not."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "embedding_size": 16, "intra_bottleneck_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    network = MobileBertModel(MobileBertConfig(vocab_size=99, num_feedforward_networks=1, **sizes))
    model = mx.MultiExitModel(mx.wrap(network), num_classes=2).eval()
    with pytest.raises(ValueError, match=r"this network reads its padding, .*input_shape=\(T,\)"):
        mx.export(model, tmp_path / "graphs", mx.FixedExit(0))
    assert not list(tmp_path.iterdir())


def test_padding_that_all_rows_share_is_cut(exported):
    case = exported("bert, mean, a threshold per exit")
    runner = Runner(case.folder)
    inputs = _inputs(case.model, 5)
    far = {name: np.pad(value, ((0, 0), (0, 500))) for name, value in _arrays(inputs).items()}
    near = runner.predict(**_arrays(inputs))
    np.testing.assert_array_equal(runner.predict(**far).logits_BC, near.logits_BC)


def test_runs_where_there_is_no_torch(exported, tmp_path):
    case = exported("bert, mean, a threshold per exit")
    inputs = _inputs(case.model, 6)
    np.savez(tmp_path / "in.npz", **_arrays(inputs))
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "multiexit", "transformers", "onnx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from multiexit_runner import Runner

answer = Runner(sys.argv[1], threads=1).predict(**np.load(sys.argv[2]))
np.savez(sys.argv[3], *answer)
"""
    words = [case.folder, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, cwd=ROOT)
    out = np.load(tmp_path / "out.npz")
    wanted = case.model.predict(case.policy, **inputs)
    np.testing.assert_array_equal(out["arr_1"], wanted.exit_B)
    np.testing.assert_allclose(out["arr_0"], wanted.logits_BC, atol=2e-5)


def test_an_empty_batch(exported):
    runner = Runner(exported("bert, mean, a threshold per exit").folder)
    none = {name: np.zeros((0, 4), np.int64) for name in runner.settings["inputs"]}
    answer = runner.predict(**none)
    assert answer.logits_BC.shape == (0, 3)
    assert answer.exit_B.shape == (0,)
    assert runner.forward(**none).shape == (2, 0, 3)


def test_wrong_inputs_are_refused(exported):
    case = exported("bert, mean, a threshold per exit")
    runner = Runner(case.folder)
    good = _arrays(_inputs(case.model, 3))
    ids, mask = good["input_ids"], good["attention_mask"]
    without = {name: good[name] for name in good if name != "token_type_ids"}
    wrong = {
        "takes the inputs": without,
        "got .*extra": {**good, "extra": ids},
        "input_ids must be int64": {**good, "input_ids": ids.astype(np.float32)},
        r"attention_mask must be int64 of shape \[B, T\]": {**good, "attention_mask": mask[0]},
        "B = 3": {**good, "attention_mask": mask[:2]},
        "in 0..59": {**good, "input_ids": ids + 60},
        "values from -100": {**good, "input_ids": ids * 0 - 100},
        "no tokens": {name: value[:, :0] for name, value in good.items()},
        "at most 40": {name: np.ones((2, 41), np.int64) for name in good},
    }
    for message, inputs in wrong.items():
        with pytest.raises(ValueError, match=message):
            runner.predict(**inputs)
    images = Runner(exported("vit of timm, mix").folder)
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\].*\[2, 3, 32, 32\]"):
        images.predict(np.zeros((2, 3, 32, 32), np.float32))
    with pytest.raises(ValueError, match="2 inputs"):
        images.predict(*[np.zeros((2, 3, 16, 16), np.float32)] * 2)


def test_infinite_logits_are_refused(exported):
    case = exported("a user's backbone")
    inputs = _arrays(_inputs(case.model, 5))
    inputs["shift"][3] = np.inf
    with pytest.raises(ValueError, match="exit 0 gave NaN or infinite logits for row 3"):
        Runner(case.folder).predict(**inputs)


def test_a_damaged_folder_is_refused(exported, tmp_path):
    def copy(name):
        return _copied(exported("a user's backbone").folder, tmp_path / name)

    missing = copy("missing")
    (missing / "exit-1.onnx").unlink()
    altered = copy("altered")
    data = bytearray((altered / "exit-2.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (altered / "exit-2.onnx").write_bytes(data)
    turned = copy("turned")
    (turned / "export.json").write_text((turned / "export.json").read_text().replace("0.5", "0.1"))
    newer = copy("newer")
    settings = json.loads((newer / "export.json").read_text())
    (newer / "export.json").write_text(json.dumps({**settings, "format": 99}))
    seal(newer)
    for folder, message in (
        (missing, "exit-1.onnx is missing"),
        (altered, "exit-2.onnx is not the file"),
        (turned, "export.json is not the file"),
        (newer, "format 99"),
        (tmp_path / "nowhere", "no such folder: "),
        (tmp_path, "no SHA256SUMS"),
    ):
        with pytest.raises(ValueError, match=message):
            Runner(folder)
    with pytest.raises(ValueError, match="threads"):
        Runner(exported("a user's backbone").folder, threads=0)


def _copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_the_checksums_are_those_of_sha256sum(exported):
    folder = exported("a user's backbone").folder
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder)
    assert done.returncode == 0


def test_what_differs_when_traced_is_refused(tmp_path):
    model = _model(lambda: Nested(tampered=True), "linear", [1])
    with pytest.raises(ValueError, match="don't say what the model says"):
        mx.export(model, tmp_path / "out", mx.MaxProb(0.5))
    assert list(tmp_path.iterdir()) == []


def test_a_carry_that_counts_the_batch_is_refused(tmp_path):
    model = _model(lambda: Nested(count_rows=True), "linear", [0, 2])
    with pytest.raises(ValueError, match="depends on the batch"):
        mx.export(model, tmp_path / "out", mx.MaxProb(0.5))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_at_once(mlp, tmp_path):
    model, _ = mlp
    (tmp_path / "there").mkdir()
    for arguments, message in (
        ((tmp_path / "there", mx.MaxProb(0.9)), "exists already"),
        ((tmp_path / "out",), "needs a policy"),
        ((tmp_path / "out", mx.Certainty(0.5)), "learns to exit"),
    ):
        with pytest.raises(ValueError, match=message):
            mx.export(model, *arguments)
    with pytest.raises(ValueError, match=r"model\.eval"):
        mx.export(model.train(), tmp_path / "out", mx.MaxProb(0.9))
    model.eval().backbone.train()
    with pytest.raises(ValueError, match="train mode of its part backbone"):
        mx.export(model, tmp_path / "out", mx.MaxProb(0.9))
    with pytest.raises(ValueError, match="the data set is empty"):
        mx.export(model.eval(), tmp_path / "out", mx.MaxProb(0.9), rows=[torch.rand(0, 4)])
    with pytest.raises(ValueError, match=r"model\.float"):
        mx.export(model.eval().double(), tmp_path / "out", mx.MaxProb(0.9))
    model.float()
    for agreement in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"agreement must be a number in \[0, 1\], got"):
            mx.export(model, tmp_path / "out", mx.MaxProb(0.9), int8=True, agreement=agreement)
    images = mx.MultiExitModel(mx.cifar_resnet(20), 3).eval()
    with pytest.raises(ValueError, match="convolutions"):
        mx.export(images, tmp_path / "out", mx.MaxProb(0.9), int8=True)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_int8_that_changes_too_many_answers_is_refused(tmp_path):
    model = _model(_mlp, "linear", [1])
    _spread(model, mx.FixedExit(0))
    rows = [_inputs(model, 300), _inputs(model, 200)]
    with pytest.raises(ValueError, match=r"of the 500 rows .* 100\.0% must"):
        mx.export(model, tmp_path / "no", mx.MaxProb(0.5), int8=True, rows=rows, agreement=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path):
    """A model that was saved with its tokenizer: the folder and both."""
    model = _model(lambda: _text("bert"), "pooler", [0])
    model.labels, model.preprocessing = ["a", "b", "c"], {"kind": "text", "max_length": 32}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(55))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    model.save_pretrained(tmp_path / "model", tokenizer)
    return tmp_path / "model", model, tokenizer


def test_the_command_line(saved, tmp_path):
    folder, model, _ = saved
    words = ["export", folder, tmp_path / "out", "--policy", "max-prob=0.6"]
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert "1 graphs" in ended.out
    runner = Runner(tmp_path / "out")
    assert (runner.labels, runner.preprocessing) == (model.labels, model.preprocessing)
    encoded = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("w1 w30", "w7")
    inputs = {
        "input_ids": torch.tensor([encoded.ids]),
        "attention_mask": torch.tensor([encoded.attention_mask]),
        "token_type_ids": torch.tensor([encoded.type_ids]),
    }
    _assert_same(model, mx.MaxProb(0.6), runner, inputs)
    again = command(*words)
    assert again.code == 2
    assert "exists already" in again.err
    for more, message in (
        (["--target", "vnni"], "int8 alone"),
        (["--target", "z80", "--int8"], "no int8 target 'z80'"),
        (["--agreement", "0.9"], "--data or --task"),
        (["--data", "x", "--task", "mrpc"], "leave out --task"),
    ):
        wrong = command("export", folder, tmp_path / "no", *words[3:], *more)
        assert wrong.code == 2
        assert message in wrong.err
    for judging in (["evaluate"], ["calibrate", "--speedup", "2"]):
        wrong = command(judging[0], tmp_path / "out", *judging[1:])
        assert wrong.code == 2
        assert "calibrate and export the model that it was made of" in wrong.err


def test_int8_is_near_and_compared_on_rows(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("multiexit.cli.noted.PAUSE", 0.0)
    folder, model, tokenizer = saved
    lines = [" ".join(f"w{7 * i * (i + j) % 55}" for j in range(1 + i % 7)) for i in range(32)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    words = ["export", folder, tmp_path / "int8", "--policy", "max-prob=0.5", "--int8"]
    ended = command(*words, "--data", tmp_path / "lines.txt", "--agreement", "0")
    assert ended.code == 0, ended.err
    assert "Over 32 rows" in ended.out
    for note in ("1 of 1 graphs are traced", "1 of 1 batches of rows are compared"):
        assert f"multiexit: {note}\n" in ended.err
    assert "int8 for any CPU" in ended.out
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8" / "exit-0.onnx").graph.node}
    assert "MatMulIntegerToFloat" in kinds
    assert "Gemm" not in kinds
    runner = Runner(tmp_path / "int8")
    assert runner.settings["int8"] == {"target": "auto", "machines": "any CPU"}
    parity = SimpleNamespace(**runner.settings["parity"])
    assert (parity.on, parity.rows) == ("rows", 32)
    some = (lines[:20], lines[20:])
    rows = [dict(tokenizer(part, padding=True, return_tensors="pt")) for part in some]
    kept = np.load(tmp_path / "int8" / "check.npz", allow_pickle=False)
    np.testing.assert_array_equal(kept["input.input_ids"][0, :3], rows[0]["input_ids"][0, :3])
    logits_BC = torch.cat([model(**batch)[0] for batch in rows]).detach().numpy()
    graph_BC = np.concatenate([runner.predict(**_arrays(batch)).logits_BC for batch in rows])
    apart = np.abs(graph_BC - logits_BC).max()
    assert 1e-4 < apart < 0.2 * np.abs(logits_BC).max()
    assert parity.largest_difference == pytest.approx(apart, rel=1e-4)
    same = (graph_BC.argmax(-1) == logits_BC.argmax(-1)).mean()
    assert parity.same_answer == parity.same_class == pytest.approx(same, abs=1e-6)
    assert parity.same_answer_alone == parity.same_answer
    assert parity.largest_difference_alone < 1e-5
    for batch in rows:  # the same answer alone, in its batch, and with more padding beside it
        arrays = _arrays(batch)
        together = runner.predict(**arrays).logits_BC
        each = [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(together))]
        alone = np.concatenate([runner.predict(**one).logits_BC for one in each])
        np.testing.assert_allclose(alone, together, atol=1e-5)
        (streamed,) = runner.stream([arrays], batch_size=5)
        np.testing.assert_allclose(streamed.logits_BC, together, atol=1e-5)


def test_one_batch_is_no_list_of_batches(tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=2).eval()
    images = torch.zeros(2, 3, 32, 32)
    for rows in (images, {"x": images}):
        with pytest.raises(ValueError, match="rows is a data set or a list of batches"):
            mx.export(model, tmp_path / "out", mx.Patience(1), rows=rows)
    assert not (tmp_path / "out").exists()
