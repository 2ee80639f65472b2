"""Folders that lie: one sentence refuses each, and none of them runs, fetches or opens more."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import ROOT, command
from networks import MAKE
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

import multiexit as mx

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "y"]


def _bert(folder: Path) -> None:
    model = mx.MultiExitModel(MAKE["bert"](), 2, [1, 4], labels=["bad", "good"])
    model.preprocessing = {"kind": "text", "task": "sst2", "max_length": 16, "pairs": False}
    certificate = mx.Certificate("disagreement", 0.1, 0.9, 50, 0.05, (1, 2, 3))
    model.policy = mx.MaxProb((0.9, 0.8)).with_certificate(certificate)
    M = model.num_exits
    model.latency = mx.Latency(
        "here", (1, 2), (1.0, 2.0), ((1.0, 2.0),) * M, ((0.1, 0.2),) * M, (0.1, 0.2), (9.0, 9.0)
    )
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    model.save_pretrained(folder, BertTokenizer(str(folder / "vocab.txt")))


def _vision(name: str, **kwargs):
    def make(folder: Path) -> None:
        backbone = mx.wrap(name, **kwargs)
        mx.MultiExitModel(backbone, 2, exits=[backbone.num_stages - 1]).save_pretrained(folder)

    return make


MAKERS = {
    "bert": _bert,
    "cifar": _vision("cifar-resnet-20"),
    "timm": _vision("timm:test_resnet", input_shape=(3, 32, 32)),
    "torchvision": _vision("torchvision:resnet18", input_shape=(3, 32, 32)),
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A saved folder of each kind; `made(kind)`."""
    root, done = tmp_path_factory.mktemp("made"), {}

    def make(kind: str) -> Path:
        if kind not in done:
            torch.manual_seed(0)
            MAKERS[kind](root / kind)
            done[kind] = root / kind
        return done[kind]

    return make


@pytest.fixture
def folder(made, tmp_path):
    """`folder(kind)`: a copy to be changed."""

    def duplicate(kind: str = "bert") -> Path:
        shutil.copytree(made(kind), tmp_path / kind)
        return tmp_path / kind

    return duplicate


WRONG = [
    *(None, True, -1, 0, 10**12, 10**400, 0.5, 1e300, "", "no\nsuch", "x" * 10_000, [], [None]),
    *([[]], [-1, 2], ["a"], {}, {"a": {"b": 1}}, [1e300], "hf-hub:a/b", "../../etc/passwd"),
]


def leaves(tree, path=()):
    """Every place in nested tables and lists, the inner nodes included."""
    yield path
    items = tree.items() if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        items = list(enumerate(tree))[:2]
    for key, value in items:
        yield from leaves(value, (*path, key))


def put(tree, path, value):
    """A copy with another value at a place."""
    if not path:
        return value
    made = copy.deepcopy(tree)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def without(tree, path):
    """A copy without a place."""
    made = copy.deepcopy(tree)
    at = made
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return made


def mutations(said, below=()):
    """Every place, or every one below another, with every wrong value, gone, or renamed.

    The many places that lie deep get some of the values in turn.
    """
    for number, path in enumerate(leaves(said)):
        if path[: len(below)] != below:
            continue
        step = 1 if len(path) < 2 else 10 if path[1] == "config" else 5
        values = WRONG[number % step :: step]
        for value in values:
            yield f"{path}={str(value)[:30]}", put(said, path, value)
        if path:
            yield f"{path} gone", without(said, path)
            if isinstance(path[-1], str):
                beside = put(without(said, path), (*path[:-1], "other"), 1)
                yield f"{path} renamed", beside


def answer(folder: Path) -> str:
    """What loading a folder does: "loaded", or the sentence."""
    said = "loaded"
    try:
        mx.MultiExitModel.from_pretrained(folder)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000
    return said


def refused(folder: Path, *words: str) -> None:
    """Loading says these words, and so does the command line, in one line."""
    said = answer(folder)
    assert all(word in said for word in words), said
    ended = command("predict", folder, "--policy", "fixed=0", stdin="y\n")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"multiexit: {said}\n"


# multiexit.json

FREE = {
    *("labels", "preprocessing", "policy", "latency", "threshold", "certificate", "machine"),
    *("risk", "confidence", "rows", "observed", "keys", "start_ms", "drop_ms", "full_ms"),
    *("stages_ms", "check_ms", "config", "attention", "input_shape", "kwargs", "in_channels"),
    *("size", "exits", "classifier"),
}
"""Where some of the wrong values are right, or make no difference to what is made."""


@pytest.mark.parametrize("kind", MAKERS)
def test_every_wrong_value_everywhere_is_refused(kind, folder):
    """Over 600 inputs in all: none ends in anything but a model or one sentence."""
    path = folder(kind) / "multiexit.json"
    said, tried, taken = json.loads(path.read_text()), 0, []
    for name, changed in mutations(said, () if kind == "bert" else ("backbone",)):
        path.write_text(json.dumps(changed))
        tried += 1
        if answer(path.parent) == "loaded" and not any(f"'{free}'" in name for free in FREE):
            taken.append(name)
    assert taken == []
    assert tried > (400 if kind == "bert" else 40)


SENTENCES = {
    "not JSON": (b"{", "multiexit.json is damaged or cut short"),
    "not UTF-8": (b"\xff\xfe{}", "multiexit.json is damaged or cut short"),
    "nested": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "nested tables": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
    "NaN": (b'{"format": NaN}', "NaN is no number"),
    "a long number": (b'{"format": ' + b"9" * 5000 + b"}", "multiexit.json is damaged"),
    "twice": (b'{"format": 1, "format": 1}', "'format' is there twice"),
    "true": (b'{"format": true}', "format True"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_what_is_no_json(case, folder):
    data, words = SENTENCES[case]
    path = folder()
    (path / "multiexit.json").write_bytes(data)
    refused(path, words)


DEEP: list = []
for _ in range(80):
    DEEP = [DEEP]

CHANGES = {
    "timm fetches": ("timm", ("kwargs", "pretrained"), True, "'pretrained', which is not known"),
    "timm's settings": (
        "timm", ("kwargs", "pretrained_cfg"), {"url": "http://a.b/c"}, "'pretrained_cfg'"),
    "timm's overlay": ("timm", ("kwargs", "pretrained_cfg_overlay"), {"file": "/a"}, "overlay"),
    "timm's checkpoint": ("timm", ("kwargs", "checkpoint_path"), "/etc/passwd", "checkpoint_path"),
    "timm's cache": ("timm", ("kwargs", "cache_dir"), "/", "'cache_dir'"),
    "timm's scripts": ("timm", ("kwargs", "scriptable"), True, "'scriptable'"),
    "timm from the hub": ("timm", ("name",), "hf-hub:a/b", "the plain name of a timm model"),
    "timm from a folder": ("timm", ("name",), "local-dir:/tmp", "the plain name"),
    "another of timm": ("timm", ("name",), "swin_tiny_patch4_window7_224", "no network"),
    "a deep timm": ("timm", ("name",), "vit_giant_patch14_224", "parameters"),
    "torchvision's weights": ("torchvision", ("kwargs", "weights"), "DEFAULT", "'weights'"),
    "torchvision's trunk": ("torchvision", ("name",), "fcn_resnet50", "a ResNet or ViT"),
    "a class of torchvision": ("torchvision", ("kwargs", "norm_layer"), "os.system", "norm_layer"),
    "many classes": ("torchvision", ("kwargs", "num_classes"), 10_000_000, "parameters"),
    "a file": ("cifar", ("weights",), "/etc/passwd", "'weights', which is not known"),
    "a large picture": ("cifar", ("size",), 10**12, "from 1 to 4096"),
    "code": ("bert", ("config", "auto_map"), {"AutoModel": "own.Own"}, "code of its own"),
    "a kernel": ("bert", ("attention",), "kernels-community/flash", "'eager', 'sdpa'"),
    "a kernel in the settings": (
        "bert", ("config", "attn_implementation"), "evil/kernel", "attn_implementation"),
    "no flash attention": ("bert", ("attention",), "flash_attention_2", "flash_attn"),
    "quantised": ("bert", ("config", "quantization_config"), {"a": 1}, "quantization_config"),
    "many layers": ("bert", ("config", "num_hidden_layers"), 10**9, "from 1 to 1000"),
    "more layers": ("bert", ("config", "num_hidden_layers"), 1000, "parameters"),
    "many words": ("bert", ("config", "vocab_size"), 9_999_999, "parameters"),
    "some words": ("bert", ("config", "vocab_size"), 61, "[60, 16], not [61, 16]"),
    "more than memory": ("bert", ("config", "hidden_size"), 10**12, "hidden_size is 1000000000000"),
    "deep inside": ("bert", ("config", "architectures"), DEEP, "nested more than 64 deep"),
    "no head count": ("bert", ("config", "num_attention_heads"), None, "num_attention_heads"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_a_description_is_an_architecture_and_nothing_else(case, folder):
    kind, place, value, words = CHANGES[case]
    path = folder(kind) / "multiexit.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(put(said, ("backbone", *place), value)))
    refused(path.parent, "multiexit.json" if "[60" not in words else "model.safetensors", words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_classes", 10**11, "num_classes is 100000000000; it must be a whole number from 1"),
        ("num_classes", 5_000_000, "labels has 2 names"),
        ("labels", ["a"], "labels has 1 names, for num_classes 2"),
        ("exits", [4, 1], "exits"),
        ("exits", [], "exits is []"),
        ("head", "nothing", "no head 'nothing'"),
        ("policy", {"class": "system", "threshold": 1}, "policy is a system"),
        ("policy", {"class": "MaxProb"}, "policy lacks threshold"),
        ("policy", {"class": "MaxProb", "threshold": 0.5, "x": 1}, "'x', which is not known"),
        ("policy", {"class": "Patience", "patience": 1.5}, "patience must be a whole number"),
        ("backbone", None, "pass backbone="),
    ],
)
def test_the_key_and_what_is_right_are_named(key, value, words, folder):
    path = folder() / "multiexit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    said = answer(path.parent)
    assert words in said


@pytest.mark.parametrize("order", [[9], [0, 0, 0], []])
def test_an_order_that_the_layers_don_t_have_is_refused(order, folder):
    path = folder() / "multiexit.json"
    said = json.loads(path.read_text())
    said["backbone"]["order"] = order
    path.write_text(json.dumps(said))
    assert "backbone.order is" in answer(path.parent)


# Weights


def _replace(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


NAME = "heads.0.linear.weight"
WEIGHTS = {
    "a pickle": (lambda p: torch.save({"a": torch.ones(1)}, p), "no safetensors file but a pickle"),
    "an old pickle": (lambda p: p.write_bytes(pickle.dumps([1], 2)), "weights_only=True"),
    "gone": (Path.unlink, "no weights at"),
    "empty": (lambda p: p.write_bytes(b""), "damaged or cut short"),
    "a long header": (lambda p: p.write_bytes(b"\xff" * 8 + b"{}"), "damaged or cut short"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "no regular file"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "no regular file"),
    "a device": (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "no regular file"),
    "a link out": (lambda p: (p.unlink(), p.symlink_to("/etc/hosts")), "outside its folder"),
    "whole numbers": (
        lambda p: _replace(p, lambda t: t.update({NAME: t[NAME].long()})),
        f"{NAME} is stored as I64",
    ),
    "missing": (lambda p: _replace(p, lambda t: t.pop(NAME)), f"it lacks {NAME}"),
    "another shape": (
        lambda p: _replace(p, lambda t: t.update({NAME: t[NAME][:1].clone()})),
        f"{NAME} is [1, 16], not [2, 16]",
    ),
    "too many": (lambda p: _replace(p, lambda t: t.update(a=torch.zeros(1))), "it has a too many"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none(case, folder):
    change, words = WEIGHTS[case]
    path = folder()
    change(path / "model.safetensors")
    refused(path, words)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_settings_that_are_no_file(make, folder):
    path = folder()
    (path / "multiexit.json").unlink()
    make(path / "multiexit.json")
    refused(path, "multiexit.json is no regular file")


def test_the_hubs_cache_links_to_its_blobs(folder, tmp_path):
    path, blobs = folder(), tmp_path / "hub" / "blobs"
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in path.iterdir():
        shutil.move(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert answer(snapshot) == "loaded"
    assert command("predict", snapshot, stdin="good film\n").code == 0


def test_published_weights_as_a_pickle(tmp_path):
    path = tmp_path / "resnet20.th"
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(16, 3, 3, 3)}}, path)
    with pytest.raises(ValueError, match=r"no safetensors file but a pickle.*'module\.' off"):
        mx.cifar_resnet(20, weights=path)


# Tokenizers and networks of transformers

CODE = """
    from pathlib import Path
    Path(__file__).with_name("ran").touch()
    from transformers import BertConfig, BertModel, BertTokenizer
    class Own(BertTokenizer): pass
    class OwnConfig(BertConfig): pass
    class OwnModel(BertModel): pass
"""
MAPS = {
    "AutoTokenizer": ["own.Own", "own.Own"],
    "AutoConfig": "own.OwnConfig",
    "AutoModel": "own.OwnModel",
    "AutoProcessor": "own.Own",
}
FILES = ("tokenizer_config.json", "config.json", "processor_config.json")


@pytest.fixture
def coded(folder, monkeypatch):
    """`coded(file)`: a model's folder with code, which a file names."""

    def add(file: str) -> Path:
        path = folder()
        (path / "own.py").write_text(textwrap.dedent(CODE))
        said = {"tokenizer_class": "Own", "auto_map": MAPS}
        if file == "config.json":
            said["model_type"] = "bert"
        there = json.loads((path / file).read_text()) if (path / file).exists() else {}
        (path / file).write_text(json.dumps({**there, **said}))
        monkeypatch.setenv("HF_MODULES_CACHE", str(path / "modules"))
        return path

    return add


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("words", [("predict", "-"), ("export", "out")])
def test_an_answer_on_stdin_runs_nothing(file, words, coded):
    name, last = words
    path = coded(file)
    last = path.parent / "out" if last == "out" else last
    ended = command(name, path, last, "--policy", "fixed=0", stdin="y\ny\ngood film\n")
    assert (ended.code, ended.out) == (2, "")
    assert "code of its own" in ended.err
    assert ended.err.count("\n") == 1
    assert not list(path.rglob("ran"))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["info", "train"])
def test_nor_where_the_folder_is_a_backbone(file, name, coded, tmp_path):
    path = coded(file)
    network = MAKE["bert"]()
    if file != "config.json":
        (path / "config.json").write_text(network.config.to_json_string())
    words = ["info", path]
    if name == "train":
        data = tmp_path / "data"
        words = ["train", "--task", "sst2", "--data-dir", data, "--backbone", path]
        words += ["--output", tmp_path / "run"]
    ended = command(*words, stdin="y\ny\n")
    assert ended.code == 2
    assert "code of its own" in ended.err
    assert not list(path.rglob("ran"))


def test_trust_is_refused_by_hand_too():
    with pytest.raises(ValueError, match="trust_remote_code=True would run"):
        mx.wrap("somebody/model", trust_remote_code=True)


TOKENIZER = {
    "cut": ("tokenizer.json", "{"),
    "a list": ("tokenizer.json", "[]"),
    "nothing in it": ("tokenizer.json", "{}"),
    "another model": ("tokenizer.json", '{"model": {"type": "X"}, "added_tokens": []}'),
    "settings cut": ("tokenizer_config.json", "{"),
    "settings a list": ("tokenizer_config.json", "[]"),
    "settings nested": ("tokenizer_config.json", "[" * 100_000),
    "an unknown class": ("tokenizer_config.json", '{"tokenizer_class": "os.system"}'),
    "a class that is none": ("tokenizer_config.json", '{"tokenizer_class": 3}'),
    "tokens of numbers": ("tokenizer_config.json", '{"added_tokens_decoder": {"a": 3}}'),
    "special tokens a list": ("special_tokens_map.json", "[1]"),
    "a file elsewhere": ("tokenizer_config.json", '{"vocab_file": "/etc/hosts"}'),
    "an adapter": ("adapter_config.json", '{"base_model_name_or_path": "a/b"}'),
}


@pytest.mark.parametrize("case", TOKENIZER)
def test_a_damaged_tokenizer_is_one_sentence(case, folder):
    file, text = TOKENIZER[case]
    path = folder()
    (path / file).write_text(text)
    ended = command("predict", path, stdin="good film\n")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("multiexit: ")
    assert ended.err.count("\n") == 1


NETWORK = {
    "a pickle": (None, lambda p: torch.save({}, p / "pytorch_model.bin"), "as a pickle"),
    "many layers": ({"num_hidden_layers": 10**9}, None, "num_hidden_layers is 1000000000"),
    "no number": ({"hidden_size": "wide"}, None, "hidden_size is 'wide'"),
    "a kernel": ({"attn_implementation": "evil/kernel"}, None, "attn_implementation"),
    "quantised": ({"quantization_config": {"a": 1}}, None, "quantization_config"),
    "no type": ({"model_type": 3}, None, ""),
    "another size": ({"hidden_size": 32}, None, ""),
}


@pytest.mark.parametrize("case", NETWORK)
def test_a_network_of_transformers_that_lies(case, tmp_path):
    said, change, words = NETWORK[case]
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    if change is not None:
        (tmp_path / "model.safetensors").unlink()
        change(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(said or {})}))
    ended = command("info", tmp_path)
    assert ended.code == 2
    assert words in ended.err
    assert "multiexit: " in ended.err


def test_as_many_classes_as_no_machine_holds():
    ended = command("info", "cifar-resnet-20", "--classes", "100000000000")
    assert (ended.code, ended.out) == (2, "")
    assert "less than or equal to 100000" in ended.err
    with pytest.raises(ValueError, match="num_classes is 100,000,000,000"):
        mx.MultiExitModel(mx.cifar_resnet(20), 100_000_000_000)


# Nothing is fetched or opened

WATCHED = """
    import os, sys
    import torch, transformers, timm, torchvision
    import multiexit as mx
    from multiexit.cli import typed
    from multiexit.backbones import timm, torchvision, transformer
    folders, opened = sys.argv[1:], []

    def watch(event, args):
        if event.startswith(("socket.connect", "socket.getaddrinfo", "urllib.Request")):
            opened.append(f"{event} {args}")
        if event in ("subprocess.Popen", "os.system", "os.exec"):
            opened.append(event)
        if event == "open" and isinstance(args[0], (str, bytes)):
            opened.append(os.fsdecode(args[0]))

    sys.addaudithook(watch)
    for folder in folders:
        opened.clear()
        mx.MultiExitModel.from_pretrained(folder)
        if os.path.exists(folder + "/tokenizer.json"):
            typed.tokenizer(folder)
        places = (folder, sys.prefix, sys.base_prefix, os.getcwd(), "/proc/", "/sys/", "/dev/null")
        outside = [name for name in opened if not os.path.abspath(name).startswith(places)]
        print(outside)
"""


def test_loading_makes_no_request_and_opens_no_file_elsewhere(made):
    folders = [str(made(kind)) for kind in MAKERS]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WATCHED), *folders],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n" * len(folders), done.stdout + done.stderr


NOBODY = """
    import os, pwd, sys

    def unknown(uid):
        raise KeyError(uid)

    pwd.getpwuid = unknown
    from pathlib import Path
    from multiexit import cli
    from multiexit.data import cifar, token_cache
    from multiexit.files.paths import CACHE, home

    assert home(CACHE) is None
    token_cache.LEAST = 0
    try:
        cli.main()
    except SystemExit as end:
        print("ended", end.code)
    try:
        cifar.load("cifar10")
    except ValueError as error:
        print(error)
"""


def test_a_user_without_a_home(made):
    """As a container with any user id has it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOME")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NOBODY), "predict", str(made("bert"))],
        env={**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        input="good film\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert '"text": "good film"' in done.stdout, done.stderr
    assert "give the data's folder (data_dir, --data-dir)" in done.stdout


# Copies


@pytest.mark.parametrize("kind", ["bert", "cifar", "timm", "torchvision"])
def test_copies_and_pickles_answer_alike(kind, made, text):
    model = mx.MultiExitModel.from_pretrained(made(kind))
    inputs = text(3) if kind == "bert" else {"x": torch.randn(2, 3, 32, 32)}
    with torch.no_grad():
        wanted = model(**inputs)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(**inputs), wanted)
            assert (other.policy, other.labels, other.latency) == (
                model.policy, model.labels, model.latency)  # fmt: skip


def test_copies_of_policies_keep_their_certificate():
    certificate = mx.Certificate("accuracy", 0.1, None, 50, 0.0, None)
    policy = mx.MaxProb(0.5).with_certificate(certificate)
    for other in (copy.copy(policy), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert other == policy
        assert other.certificate == certificate


# Inputs


def test_pipes_and_devices_are_no_lines(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = folder()
    for name in (tmp_path / "pipe", "/dev/zero", tmp_path):
        ended = command("predict", path, name)
        assert ended.code == 2
        assert "no regular file" in ended.err
