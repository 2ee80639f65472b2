"""multiexit.json that lies: one sentence refuses it, whatever is wrong and wherever."""

import copy
import json
from functools import reduce

import pytest
from folders import MAKERS, answer, put, refused

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


FREE = {
    *(
        "labels",
        "preprocessing",
        "policy",
        "latency",
        "calibration",
        "threshold",
        "certificate",
        "machine",
    ),
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
        free = name == "('problem',) gone" or any(f"'{free}'" in name for free in FREE)
        if answer(path.parent) == "loaded" and not free:
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


DEEP = reduce(lambda inner, _: [inner], range(80), [])

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
    "torchvision's trunk": ("torchvision", ("name",), "fcn_resnet50", "a classifier of images"),
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
        ("backbone", None, "give from_pretrained the same backbone"),
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
