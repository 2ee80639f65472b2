"""Copies and pickles of what was loaded."""

import copy
import pickle

import pytest
import torch

import multiexit as mx


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
