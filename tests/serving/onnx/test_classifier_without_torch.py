"""`multiexit_runner.Classifier`: the answers of `mx.Classifier`, where there is no torch."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from answering import pictures, text_model, texts, tokenizer_in
from helpers import ROOT, command

import multiexit as mx
from multiexit.policies import POLICIES, parse
from multiexit_runner import Classifier, Runner
from multiexit_runner.folder import SETTINGS, seal
from multiexit_runner.turning import numbers_of, typed_policy

pytestmark = pytest.mark.usefixtures("onnx_operators")

CODE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "multiexit", "transformers", "onnx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from multiexit_runner import Classifier

classify = Classifier.from_pretrained(sys.argv[1], threads=1)
inputs, options = json.load(sys.stdin)
inputs = [tuple(each) if isinstance(each, list) else each for each in inputs]
print(json.dumps([classify(inputs, **options), list(classify(iter(inputs), batch_size=2))]))
"""


def without_torch(folder, inputs, **options):
    words = [sys.executable, "-c", CODE, str(folder)]
    text = json.dumps([inputs, options])
    done = subprocess.run(words, input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def same(got, wanted):
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert list(one) == list(other)
        for key in one:
            numbers = key in ("score", "scores", "value")
            assert one[key] == (pytest.approx(other[key], abs=1e-4) if numbers else other[key])


@pytest.mark.filterwarnings("ignore:inputs")  # that fill all tokens
def test_texts_get_the_same_answers(exported_texts, tmp_path):
    model, tokenizer, _, exported = exported_texts
    rows, folder = [*texts(13), "the cat " * 20], tmp_path / "export"
    shutil.copytree(exported, folder)  # to be changed at the end
    wanted = mx.Classifier(model, tokenizer, mx.MaxProb(0.6))
    listed, streamed = without_torch(folder, rows)
    same(listed, wanted(rows))
    same(streamed, wanted(rows))
    assert len({answer["exit"] for answer in listed}) > 1
    classify = Classifier.from_pretrained(folder)
    for policy in ("max-prob=0.9", {"threshold": 0.9}):
        same(classify(rows, policy=policy, top_k=2), wanted(rows, policy="max-prob=0.9", top_k=2))
    same(classify(rows, batch_size=3), wanted(rows))
    for target in ({"speedup": 1.5}, {"speedup": np.float32(1.5)}, {"max_loss": np.int64(50)}):
        same(classify(rows, **target), wanted(rows, **target))
    for policy in (None, "max-prob=0.8", mx.MaxProb(0.8)):
        ours = mx.Classifier.from_pretrained(folder, policy)
        same(ours(rows), wanted(rows, policy=policy))
        same(ours(rows, policy=mx.MaxProb(0.9)), wanted(rows, policy="max-prob=0.9"))
    for call, message in [
        (lambda: classify(rows, speedup=9), "the fastest gives"),
        (lambda: classify(rows, policy=mx.Patience(2)), "hold the policy max-prob"),
        (lambda: classify(rows, policy={"class": "Entropy", "threshold": 1.0}), "hold the policy"),
        (lambda: classify(rows, policy={"threshold": "much"}), "threshold"),
        (lambda: mx.Classifier.from_pretrained(folder, device="cuda"), "on the CPU"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"inputs\[1\]"):
        classify([rows[0], None])
    with pytest.raises(ValueError, match="hold the policy max-prob"):
        classify(rows, policy="patience=2")
    with pytest.raises(ValueError, match=r"threshold is 30.0; it must be from -0.1 to 1.1"):
        classify(rows, policy="max-prob=30")
    ended = command("info", folder)
    assert ended.code == 0, ended.err
    for line in ("graphs: 4, up to layers 1, 2, 3, 4", "stops by: max-prob=0.6", "reads: text"):
        assert line in ended.out
    assert "settings of max-prob, up to 4.00 times fewer layers" in ended.out
    ended = command("info", folder, "--classes", 3)
    assert (ended.code, "--classes is for a backbone" in ended.err) == (2, True)
    with pytest.raises(ValueError, match="give a tokenizer"):
        Classifier(Runner(folder))
    model = copy.deepcopy(model)
    model.preprocessing["pairs"] = True  # the same graphs read pairs
    settings = json.loads((folder / SETTINGS).read_text())
    settings["preprocessing"] = model.preprocessing
    (folder / SETTINGS).write_text(json.dumps(settings))
    seal(folder)
    pairs = list(zip(rows, texts(14, 1), strict=True))
    classify = Classifier.from_pretrained(folder)
    same(classify(pairs), mx.Classifier(model, tokenizer, mx.MaxProb(0.6))(pairs))


def test_images_get_the_same_answers(exported_images, tmp_path):
    (model, folder), files = exported_images, []
    for number, image in enumerate(pictures(9)):
        files.append(str(tmp_path / f"{number}.png"))
        image.convert("L" if number % 3 == 0 else "RGB").save(files[-1])
    wanted = mx.Classifier(model, policy=mx.MaxProb(0.6))
    listed, streamed = without_torch(folder, files)
    same(listed, wanted(files))
    same(streamed, wanted(files))
    classify = Classifier.from_pretrained(folder)
    arrays = [np.asarray(image) for image in pictures(9)]
    same(classify(arrays), wanted(arrays))
    with pytest.raises(ValueError, match=r"inputs\[1\]: can't read"):
        classify([arrays[0], "none.png"])
    moved = shutil.copytree(folder, tmp_path / "export")
    classify = Classifier.from_pretrained(moved)
    shutil.rmtree(moved)
    same(classify(arrays, policy="max-prob=0.9"), wanted(arrays, policy="max-prob=0.9"))


@pytest.mark.filterwarnings("ignore:inputs")  # that fill all tokens
def test_words_get_the_same_labels(tmp_path):
    tokenizer, folder = tokenizer_in(tmp_path), tmp_path / "export"
    model = text_model(tokenizer, "token-classification", exits=[0, 3])
    rows = [text.split() for text in texts(13)]
    rows[3:6] = [["cats"], ["the", "\u200b", "dogs", "runs"], ["cats", "runs"] * 9]
    tokenizer.padding_side = "left"
    mx.export(model, folder, mx.MaxProb(0.6), tokenizer=tokenizer)
    for side in ("left", "right"):
        if side == "right":  # of the same graphs
            tokenizer.padding_side = side
            tokenizer.save_pretrained(folder)
            seal(folder)
        wanted = mx.Classifier(model, tokenizer, mx.MaxProb(0.6))(rows)
        assert len({answer["exit"] for answer in wanted}) > 1
        classify = Classifier.from_pretrained(folder)
        for size in (1, 4, 32):
            for got, want in zip(classify(rows, batch_size=size), wanted, strict=True):
                assert got == want | {"scores": pytest.approx(want["scores"], abs=1e-4)}
    assert classify(" ".join(rows[0])) == classify(tuple(rows[0])) == classify([rows[0]])[0]
    with pytest.raises(ValueError, match=r"inputs\[1\]"):
        classify([rows[0], ["a", " "]])


def test_a_text_that_is_cut_is_told_at_the_line_that_gave_it(exported_texts):
    classify = Classifier.from_pretrained(exported_texts[3])
    with pytest.warns(UserWarning, match=r"inputs\[0\] fills all") as told:
        classify(["the cat " * 20])
    assert told[0].filename == __file__


def test_policies_are_typed_as_everywhere():
    for name in POLICIES:
        ones = ",".join("1" for _ in fields(POLICIES[name]))
        policy = parse(f"{name}={ones}")
        data = mx.policies.to_json(policy)
        knobs = {key: value for key, value in data.items() if key != "class"}
        read = numbers_of(f"{name}={ones}", data, knobs)
        assert read == pytest.approx(knobs)
        assert typed_policy({**data, **read}) == typed_policy(data)  # no patience=1.0
        with pytest.raises(ValueError, match="is fixed in these graphs"):
            numbers_of(f"{name}=7", data, {})
