"""Tokenizers and networks of transformers with code of their own, damaged, or of no size."""

import json
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import command
from networks import MAKE

import multiexit as mx

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
    if name == "info":  # of a trained model it reads the settings alone
        (path / "multiexit.json").unlink()
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
    lines = ended.err.splitlines()
    assert all(line.startswith("multiexit: ") for line in lines)
    assert [line for line in lines if "latency table" not in line] == lines[-1:]  # a note


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
