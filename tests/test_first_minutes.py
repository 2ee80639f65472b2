"""The README's first lines, exactly as they stand, on 800 rows of four classes.

They name a network of the hub. The hub's cache here has a tiny one under its name.
"""

import ast
import csv
import json
import os
import random
import shlex
import subprocess
import sys
import time

import httpx
import pytest
import torch
from helpers import ROOT, command, free_port
from test_docs import PAGES, blocks
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

README = ROOT / "README.md"
SERVING = ROOT / "docs" / "serving.md"
NAME = "sentence-transformers/all-MiniLM-L6-v2"
TOPICS = {
    "1": "broken refund return damaged waste",
    "2": "slow late missing wrong unclear",
    "3": "usable plain average fair small",
    "4": "perfect lovely recommend fast solid",
}
FILLER = ["the", "a", "it", "was", "and", "for", "my", "with", "this", "box", "order", "phone"]


def sentence(draw: random.Random, topic: str) -> str:
    words = [*draw.choices(FILLER, k=6), *draw.sample(TOPICS[topic].split(), 2)]
    draw.shuffle(words)
    return " ".join(words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the two tables, and the hub's cache with the network's name in it."""
    commit = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = commit / "snapshots" / ("0" * 40)
    (commit / "refs").mkdir(parents=True)
    (commit / "refs" / "main").write_text("0" * 40)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *" ".join(TOPICS.values()).split()]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(snapshot)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), intermediate_size=64, initializer_range=0.1, **sizes)
    BertModel(config).save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    draw = random.Random(0)
    for file, rows in (("reviews.csv", 800), ("new.csv", 40)):
        topics = draw.sample(sorted(TOPICS) * (rows // 4), rows)
        with open(file, "w", newline="") as out:
            table = csv.writer(out)
            table.writerow(["review", "stars"])
            table.writerows([sentence(draw, topic), topic] for topic in topics)
    return empty


@pytest.mark.usefixtures("onnx_operators")
def test_five_commands(folder, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or True)
    lines = blocks(README, "sh")[0].code.replace("\\\n", " ").splitlines()
    assert len(lines) == 5
    for line in lines[:4]:
        program, *words = shlex.split(line, comments=True)
        assert program == "multiexit"
        ended = command(*words)
        assert ended.code == 0, f"{line}\n{ended.err}"
        if words[0] == "train":
            assert "the learning rate 0.0001 (--lr) and at exits the mean over" in ended.err
    assert shown[0].endswith("runs/reviews/report.html")
    exits = json.loads((folder / "runs/reviews/results.json").read_text())["exits"]
    assert all(exit["scores"]["accuracy"] > 0.4 for exit in exits), "one class in four is chance"
    ended = command("predict", "runs/reviews", "new.csv")
    predicted = [json.loads(line) for line in ended.out.splitlines()]
    assert len(predicted) == 40
    assert sum(answer["label"] == answer["stars"] for answer in predicted) > 0.4 * 40
    answers = served(lines[4], [answer["review"] for answer in predicted])["answers"]
    assert [(a["label"], a["exit"]) for a in answers] == [
        (a["label"], a["exit"]) for a in predicted
    ]
    from_the_run_to_a_service()


def from_the_run_to_a_service():
    """The lines of the page on serving, and those that each command says to type next."""
    (path,) = [b.code for b in blocks(SERVING, "sh") if "recommend" in b.code]
    recommend, calibrate, export, serve = path.splitlines()
    printed = next_line(recommend)
    assert printed.startswith("multiexit calibrate runs/reviews --table --policy ")
    printed = next_line(printed)
    assert printed.startswith("multiexit export runs/reviews reviews-onnx-2")
    printed = next_line(printed)
    assert printed.startswith("multiexit serve reviews-onnx-2 --target-ms 50 --min-score ")
    next_line(calibrate)
    assert next_line(export).startswith("multiexit serve reviews-int8 --target-ms 50")
    for line in (printed, serve):
        said = served(line, ["the order was perfect"])
        assert said["expected_score"] >= float(line.split()[-1])
        assert said["loss_bound"] is not None


def next_line(line):
    """Run a command, and give the first that it says to type next."""
    ended = command(*shlex.split(line)[1:])
    assert ended.code == 0, f"{line}\n{ended.err}"
    (said,) = [out for out in ended.out.splitlines() if out.startswith("next: `")]
    return said.split("`")[1]


def served(line, texts):
    """What the last command answers over HTTP, at a port that is free."""
    port = free_port()
    variables = {**os.environ, "MULTIEXIT_SERVE_PORT": str(port), "PYTHONPATH": str(ROOT)}
    words = shlex.split(line, comments=True)
    words = [sys.executable, "-m", "multiexit.cli", *words[1:]]
    with subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            asked = httpx.Request(
                "POST", f"http://127.0.0.1:{port}/predict", json={"inputs": texts}
            )
            for _ in range(600):
                assert process.poll() is None, process.stderr.read()
                try:
                    with httpx.Client(timeout=60) as client:
                        return client.send(asked).raise_for_status().json()
                except httpx.ConnectError:
                    time.sleep(0.1)
            raise AssertionError("no answer in a minute")
        finally:
            process.terminate()


@pytest.mark.usefixtures("onnx_operators")
def test_fifteen_lines_of_python(folder, capsys):
    (block,) = [b for b in blocks(README, "python") if b.info == "own-test"]
    assert len([line for line in block.code.splitlines() if line]) <= 15
    exec(compile(block.code, "README.md", "exec"), {"__name__": "first_minutes"})
    answer = ast.literal_eval(capsys.readouterr().out)
    assert answer["label"] in TOPICS
    assert answer["layers"] == answer["exit"] + 1


def test_nothing_else_is_left_to_this_file():
    left = [(page, b) for page in PAGES for b in blocks(page, "python") if b.info == "own-test"]
    assert [page for page, _ in left] == [README]
