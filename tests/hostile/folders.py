"""Saved folders of each kind, and what loading one does."""

import copy
from pathlib import Path

from helpers import command
from networks import MAKE
from transformers import BertTokenizer

import multiexit as mx

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "y"]


def bert_folder(folder: Path) -> None:
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


def vision_folder(name: str, **kwargs):
    def make(folder: Path) -> None:
        backbone = mx.wrap(name, **kwargs)
        mx.MultiExitModel(backbone, 2, exits=[backbone.num_stages - 1]).save_pretrained(folder)

    return make


MAKERS = {
    "bert": bert_folder,
    "cifar": vision_folder("cifar-resnet-20"),
    "timm": vision_folder("timm:test_resnet", input_shape=(3, 32, 32)),
    "torchvision": vision_folder("torchvision:resnet18", input_shape=(3, 32, 32)),
}


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
