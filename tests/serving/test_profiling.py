"""A profile of a model, by hand and on the command line."""

import json

import pytest
from helpers import command

import multiexit as mx


def test_a_profile_measures_every_part(bert, tmp_path):
    model, inputs = bert
    latency = mx.profile(model, inputs=inputs, batch_sizes=(1, 3), repeats=1)
    M = model.num_exits
    assert latency.batch_sizes == (1, 3)
    assert [len(part) for part in (latency.stages_ms, latency.check_ms)] == [M, M]
    every = [*latency.stages_ms, *latency.check_ms, latency.start_ms, latency.full_ms]
    assert all(len(part) == 2 and min(part) > 0 for part in [*every, latency.drop_ms])
    until = latency.until_exit_ms(3)
    parts = zip(latency.stages_ms, latency.check_ms, strict=True)
    wanted = latency.start_ms[1] + sum(stage[1] + check[1] for stage, check in parts)
    assert until == sorted(until)
    assert until[-1] == pytest.approx(wanted)
    assert mx.Latency.from_json(json.loads(json.dumps(latency.to_json()))) == latency
    model.latency = latency
    model.save_pretrained(tmp_path)
    assert mx.MultiExitModel.from_pretrained(tmp_path).latency == latency


def test_the_command_line_profiles_a_folder(tmp_path):
    mx.MultiExitModel(mx.cifar_resnet(20), 10, exits=[2, 8]).save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    ended = command("profile", tmp_path, "--batch-sizes", "1,2", "--repeats", 1)
    assert ended.code == 0, ended.err
    assert "no early exits" in ended.out
    latency = mx.MultiExitModel.from_pretrained(tmp_path).latency
    assert (latency.batch_sizes, len(latency.stages_ms)) == ((1, 2), 2)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    for words, message in (
        (("--batch-sizes", "2,1"), "that rise"),
        (("--batch-sizes", "1,x"), "whole numbers"),
        (("--tokens", 5), "reads x, not text"),
    ):
        ended = command("profile", tmp_path, *words)
        assert ended.code == 2
        assert message in ended.err
