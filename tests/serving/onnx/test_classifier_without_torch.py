"""`multiexit_runner.Classifier`: the answers of `mx.Classifier`, where there is no torch."""

import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from answering import image_model, pictures, text_model, texts, tokenizer_in
from helpers import ROOT

import multiexit as mx
from multiexit.policies import POLICIES, parse
from multiexit_runner import Classifier, Runner
from multiexit_runner.classifier import _numbers_of
from multiexit_runner.folder import SETTINGS, seal

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
def test_texts_get_the_same_answers(tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    model, rows = text_model(tokenizer, exits=[0, 3]), [*texts(13), "the cat " * 20]
    mx.export(model, tmp_path / "export", mx.MaxProb(0.6), tokenizer=tokenizer)
    wanted = mx.Classifier(model, tokenizer, mx.MaxProb(0.6))
    listed, streamed = without_torch(tmp_path / "export", rows)
    same(listed, wanted(rows))
    same(streamed, wanted(rows))
    assert len({answer["exit"] for answer in listed}) > 1
    classify = Classifier.from_pretrained(tmp_path / "export")
    for policy in ("max-prob=0.9", {"threshold": 0.9}):
        same(classify(rows, policy=policy, top_k=2), wanted(rows, policy="max-prob=0.9", top_k=2))
    same(classify(rows, batch_size=3), wanted(rows))
    with pytest.raises(ValueError, match=r"inputs\[1\]"):
        classify([rows[0], None])
    with pytest.raises(ValueError, match="hold the policy max-prob"):
        classify(rows, policy="patience=2")
    with pytest.raises(ValueError, match="give a tokenizer"):
        Classifier(Runner(tmp_path / "export"))
    model.preprocessing["pairs"] = True  # the same graphs read pairs
    settings = json.loads((tmp_path / "export" / SETTINGS).read_text())
    settings["preprocessing"] = model.preprocessing
    (tmp_path / "export" / SETTINGS).write_text(json.dumps(settings))
    seal(tmp_path / "export")
    pairs = list(zip(rows, texts(14, 1), strict=True))
    classify = Classifier.from_pretrained(tmp_path / "export")
    same(classify(pairs), mx.Classifier(model, tokenizer, mx.MaxProb(0.6))(pairs))


def test_images_get_the_same_answers(tmp_path):
    model, files = image_model(), []
    for number, image in enumerate(pictures(9)):
        files.append(str(tmp_path / f"{number}.png"))
        image.convert("L" if number % 3 == 0 else "RGB").save(files[-1])
    mx.export(model, tmp_path / "export", mx.MaxProb(0.6))
    wanted = mx.Classifier(model, policy=mx.MaxProb(0.6))
    listed, streamed = without_torch(tmp_path / "export", files)
    same(listed, wanted(files))
    same(streamed, wanted(files))
    classify = Classifier.from_pretrained(tmp_path / "export")
    arrays = [np.asarray(image) for image in pictures(9)]
    same(classify(arrays), wanted(arrays))
    with pytest.raises(ValueError, match=r"inputs\[1\]: can't read"):
        classify([arrays[0], "none.png"])


def test_policies_are_typed_as_everywhere():
    for name in POLICIES:
        ones = ",".join("1" for _ in fields(POLICIES[name]))
        policy = parse(f"{name}={ones}")
        data = mx.policies.to_json(policy)
        knobs = {key: value for key, value in data.items() if key != "class"}
        assert _numbers_of(f"{name}={ones}", data, knobs) == pytest.approx(knobs)
        with pytest.raises(ValueError, match="is fixed in these graphs"):
            _numbers_of(f"{name}=7", data, {})
