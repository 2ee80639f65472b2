"""A model repository of Triton: its form and answers, by `triton_standin.py` for the server."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import triton_standin
from answering import pictures, text_model, texts, tokenizer_in
from helpers import command
from tokenizers import Tokenizer

from multiexit.data import image_files
from multiexit.serving.onnx.triton import triton_repository
from multiexit_runner import Runner


def asked(repository, inputs, place):
    """What the stand-in answers in a process of its own, and the rows that each graph got."""
    place.mkdir()
    shutil.copy(triton_standin.__file__, place / "triton_python_backend_utils.py")
    np.savez(place / "given.npz", **inputs)
    code = "from triton_python_backend_utils import *; serve(Path(sys.argv[1]), *sys.argv[2:])"
    words = [repository, repository.name, place / "given.npz", place / "answered.npz"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"},
        cwd=place, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows, _, refusal = done.stdout.partition("] ")
    with np.load(place / "answered.npz") as file:
        return file["logits"], file["exit"], json.loads(rows + "]"), refusal


def same_form(repository):
    """Every configuration names what its graph has, and nothing else lies there."""
    (asked_one,) = [path for path in repository.iterdir() if (path / "1" / "model.py").exists()]
    assert asked_one.name == repository.name
    configs = {path.name: triton_standin.config_of(path) for path in repository.iterdir()}
    for name, config in configs.items():
        assert (config.name, config.max_batch_size) == (name, 0)
        if name == repository.name:
            assert config.backend == "python"
            continue
        assert config.backend == "onnxruntime"
        assert {path.name for path in (repository / name / "1").iterdir()} == {"model.onnx"}
        graph = onnx.load(repository / name / "1" / "model.onnx").graph
        for said, there in ((config.input, graph.input), (config.output, graph.output)):
            assert [each.name for each in said] == [each.name for each in there]
            for one, other in zip(said, there, strict=True):
                kind = other.type.tensor_type
                numpy = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                assert triton_standin.NUMPY[triton_standin.TYPES[one.data_type]] == numpy.name
                sizes = [-1 if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
                assert [*one.dims] == sizes
                assert sizes[0] == -1
    return configs


def test_texts_leave_between_graphs_as_by_the_runner(exported_texts, tmp_path):
    model, tokenizer, _, folder = exported_texts
    repository = tmp_path / "reviews"
    triton_repository(folder, repository)
    configs = same_form(repository)
    assert configs.keys() == {"reviews", *(f"reviews-exit-{exit}" for exit in range(4))}
    runner = Runner(folder, threads=1)
    reader = Tokenizer.from_file(str(repository / "reviews" / "1" / "tokenizer.json"))
    asking = [*texts(19, seed=4), " ".join(texts(9, seed=5))]  # the last is longer than may be
    encoded = reader.encode_batch(asking)
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = {n: np.array([getattr(row, fields[n]) for row in encoded]) for n in fields}
    cut = {"truncation": True, "max_length": model.preprocessing["max_length"]}
    for name, array in tokenizer(asking, padding=True, **cut, return_tensors="np").items():
        np.testing.assert_array_equal(inputs[name], array)
    wanted = runner.predict(**inputs)
    logits_BC, exit_B, rows, refusal = asked(repository, inputs, tmp_path / "here")
    assert exit_B.tolist() == wanted.exit_B.tolist()
    np.testing.assert_allclose(logits_BC, wanted.logits_BC, atol=1e-5)
    came = [int((wanted.exit_B >= exit).sum()) for exit in range(4)]
    assert came[1] < came[0]
    assert came[-1] == 0  # that graph isn't asked at all
    assert rows == [count for count in came if count]
    assert "INVALID_ARG input_ids must be int64" in refusal


def test_images_and_their_fixed_sizes(exported_images, tmp_path):
    model, folder = exported_images
    triton_repository(folder, tmp_path / "pets.v1")
    config = same_form(tmp_path / "pets.v1")["pets.v1"]
    assert [[*each.dims] for each in config.input] == [[-1, 3, 8, 8]]
    x = np.stack([image_files.read(each, model.preprocessing).numpy() for each in pictures(9)])
    runner = Runner(folder, threads=1)
    (name,) = runner.settings["inputs"]
    wanted = runner.predict(x)
    logits_BC, exit_B, _, refusal = asked(tmp_path / "pets.v1", {name: x}, tmp_path / "here")
    assert exit_B.tolist() == wanted.exit_B.tolist()
    np.testing.assert_allclose(logits_BC, wanted.logits_BC, atol=1e-5)
    assert "INTERNAL" in refusal
    assert "NaN" in refusal


@pytest.mark.usefixtures("onnx_operators")
def test_from_the_command_line(tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    text_model(tokenizer).save_pretrained(tmp_path / "model", tokenizer)
    out = tmp_path / "made" / "tags"
    words = ("export", tmp_path / "model", out, "--policy", "max-prob=0.7", "--triton")
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert (
        f"next: `tritonserver --model-repository={out}` serves it: ask the model tags" in ended.out
    )
    same_form(out)
    settings = json.loads((out / "tags" / "1" / "export.json").read_text())
    assert settings["policy"]["threshold"] == 0.7
    assert not (out / "tags" / "1" / "multiexit_runner" / "server").exists()
    for name, message in ((out, "exists already"), (tmp_path / "a b", "'a b' is to be the name")):
        ended = command("export", tmp_path / "model", name, *words[3:])
        assert (ended.code, message in ended.err) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.txt", "model", "made"}
