"""Exports of models whose rows are several labels or numbers: the same answers, without torch."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import multiexit as mx
from multiexit_runner import Runner
from multiexit_runner.folder import SETTINGS, seal

pytestmark = pytest.mark.usefixtures("onnx_operators")

POLICIES = {
    "multi-label": [mx.Patience(1), mx.MostConfident(0.7)],
    "regression": [mx.Patience(1, tolerance=0.5)],
}
CASES = [(problem, policy) for problem in POLICIES for policy in POLICIES[problem]]


def model_of(problem, C=3, labels=None):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(*layers)), C, labels=labels, problem=problem)
    with torch.no_grad():  # exits that agree on some rows
        for layer, _ in layers:
            layer.weight.mul_(0.3).add_(torch.eye(6))
        first, *others = [head.linear.weight for head in model.heads]
        first.mul_(3)
        for weight in others:
            weight.copy_(first)
    return model.eval()


@pytest.mark.parametrize(("problem", "policy"), CASES, ids=repr)
def test_graphs_say_what_the_model_says(problem, policy, tmp_path):
    model, x = model_of(problem), torch.randn(40, 6)
    rows = [x[:0], x.clone().requires_grad_()]
    parity = mx.export(model, tmp_path / "export", policy, rows=rows)
    assert (parity.same_class, parity.same_exit, parity.same_answer) == (1, 1, 1)
    runner = Runner(tmp_path / "export")
    assert runner.problem == problem
    logits_BC, exit_B = runner.predict(x.numpy())
    wanted = model.predict(policy, x)
    assert exit_B.tolist() == wanted.exit_B.tolist()
    assert len(set(exit_B.tolist())) > 1
    np.testing.assert_allclose(logits_BC, wanted.logits_BC, atol=1e-4)
    streamed = list(runner.stream([x[:7].numpy(), x[7:].numpy()], batch_size=4))
    assert np.concatenate([answer.exit_B for answer in streamed]).tolist() == exit_B.tolist()


def test_graphs_give_vectors_and_leave_when_they_have_settled(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(*layers)), problem="embedding").eval()
    x, policy = torch.randn(40, 6), mx.Settled(0.6)
    wanted = model.predict(policy, x)
    assert len(set(wanted.exit_B.tolist())) > 1
    mx.export(model, tmp_path / "export", policy, rows=[x])
    logits_BC, exit_B = Runner(tmp_path / "export").predict(x.numpy())
    assert exit_B.tolist() == wanted.exit_B.tolist()
    np.testing.assert_allclose(logits_BC, wanted.logits_BC, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(logits_BC, axis=1), 1, atol=1e-5)


def test_numbers_are_turned_and_ranged_by_decisions(tmp_path):
    model, x = model_of("multi-label", C=5), torch.randn(40, 6)
    mx.export(model, tmp_path / "export", mx.MaxProb(0.8))
    runner = Runner(tmp_path / "export")
    for threshold in (0.55, 0.95):
        runner.set(threshold=threshold)
        wanted = model.predict(mx.MaxProb(threshold), x)
        assert runner.predict(x.numpy()).exit_B.tolist() == wanted.exit_B.tolist()


def test_exports_that_dont_tell_their_problem_are_read(tmp_path):
    for C, usual in ((3, "classification"), (1, "regression")):
        folder = tmp_path / usual
        mx.export(model_of(usual, C), folder, mx.FixedExit(1))
        path = folder / SETTINGS
        settings = json.loads(path.read_text())
        assert settings.pop("problem") == usual
        path.write_text(json.dumps(settings))
        seal(folder)
        runner = Runner(folder)
        assert runner.problem == usual
        assert runner.predict(np.ones((2, 6), np.float32)).logits_BC.shape == (2, C)
        path.write_text(json.dumps({**settings, "problem": "several"}))
        seal(folder)
        with pytest.raises(ValueError, match=r"problem is 'several'; it must be one of classif"):
            Runner(folder)
